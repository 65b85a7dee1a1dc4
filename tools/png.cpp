#include <filesystem>
#include <string>
#include <vector>

#include <reticle/core/base/output_file.hpp>

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

void write_png(const std::filesystem::path& path, int width, int height, const std::vector<unsigned char>& rgb) {
  if (width < 1 || height < 1) throw Error(path.string() + ": a mask without positions has no picture");
  std::string bytes;
  const auto append = [](void* to, void* data, int size) {
    static_cast<std::string*>(to)->append(static_cast<const char*>(data), static_cast<std::size_t>(size));
  };
  if (stbi_write_png_to_func(append, &bytes, width, height, 3, rgb.data(), 3 * width) == 0)
    throw Error(path.string() + ": the picture cannot be made");
  write_file(path, bytes);
}

}  // namespace reticle::tools
