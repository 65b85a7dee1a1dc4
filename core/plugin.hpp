// Shared objects of plugins: checked before their code runs, closed unless kept. Internal to the registry.
#pragma once

#include <filesystem>
#include <memory>

namespace reticle {

/// PluginError unless every ABI stamp in the file equals that of this library and there is at least one; the message
/// names both builds. A check of compatibility, not of trust: a plugin runs with the rights of the process.
void require_matching_stamps(const std::filesystem::path& file);

/// A file opened by dlopen with RTLD_NOW | RTLD_LOCAL.
class SharedObject {
 public:
  SharedObject() = default;
  /// PluginError with the dynamic linker's reason, e.g. a missing symbol.
  explicit SharedObject(const std::filesystem::path& file);
  /// Keeps the object loaded until the process ends.
  void keep();

 private:
  std::shared_ptr<void> handle_;
};

}  // namespace reticle
