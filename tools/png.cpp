#include <filesystem>
#include <vector>

#include "options.hpp"

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include <stb_image_write.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

namespace reticle::tools {

void write_png(const std::filesystem::path& path, int width, int height, const std::vector<unsigned char>& grey) {
  if (width < 1 || height < 1) throw Error(path.string() + ": a mask without positions has no picture");
  if (stbi_write_png(path.c_str(), width, height, 1, grey.data(), width) == 0)
    throw Error(path.string() + ": cannot be written");
}

}  // namespace reticle::tools
