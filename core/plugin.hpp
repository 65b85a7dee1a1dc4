// Shared objects: checked before their code runs, closed unless kept. Internal to the registry.
#pragma once

#include <filesystem>
#include <memory>

namespace reticle {

/// PluginError unless every ABI stamp in the file, of which there must be one, equals that of this library; the message
/// names both builds. A check of compatibility, not of trust: a plugin runs with the rights of the process.
void require_matching_stamps(const std::filesystem::path& file);

/// A dlopen'ed file, RTLD_NOW | RTLD_LOCAL.
class SharedObject {
 public:
  SharedObject() = default;
  /// PluginError with the loader's reason (a missing symbol, say).
  explicit SharedObject(const std::filesystem::path& file);
  /// From now on it stays loaded until the process ends.
  void keep();

 private:
  std::shared_ptr<void> handle_;
};

}  // namespace reticle
