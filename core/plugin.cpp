#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <iterator>
#include <string>

#include <reticle/core/masker.hpp>
#include <reticle/core/plugin.hpp>

namespace reticle {
namespace {

std::string build_of(const AbiStamp& stamp) {
  const auto text = [](const auto& field) { return std::string(field, strnlen(field, sizeof field)); };
  return "reticle " + text(stamp.version) + " with " + text(stamp.compiler) + " (layout " +
         std::to_string(stamp.layout) + ")";
}

}  // namespace

void require_matching_stamps(const std::filesystem::path& file) {
  static constexpr AbiStamp kOurs = abi_stamp();
  std::ifstream stream(file, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (!stream && bytes.empty()) throw PluginError(file.string() + ": cannot be read");
  if (!bytes.starts_with("\x7f"
                         "ELF"))
    throw PluginError(file.string() + ": is not a shared object");
  const std::string_view magic(kOurs.magic, sizeof kOurs.magic);
  std::size_t stamps = 0;
  for (std::size_t at = bytes.find(magic); at != std::string::npos; at = bytes.find(magic, at + 1)) {
    if (bytes.size() - at < sizeof(AbiStamp)) break;
    AbiStamp theirs;
    std::memcpy(&theirs, bytes.data() + at, sizeof theirs);
    if (std::memcmp(&theirs, &kOurs, sizeof theirs) != 0)
      throw PluginError(file.string() + ": was built for " + build_of(theirs) + "; this is " + build_of(kOurs) +
                        ". Build it again against the installed library");
    ++stamps;
  }
  if (stamps == 0)
    throw PluginError(file.string() +
                      ": has no reticle ABI stamp; a plugin registers its maskers with RETICLE_REGISTER_MASKER");
}

SharedObject::SharedObject(const std::filesystem::path& file) {
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw PluginError(std::string("cannot be loaded: ") + dlerror());
  handle_ = std::shared_ptr<void>(handle, [](void* open) { dlclose(open); });
}

void SharedObject::keep() {
  if (handle_) new std::shared_ptr<void>(handle_);
}

}  // namespace reticle
