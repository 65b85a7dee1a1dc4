// The process-wide registry of maskers by name; it lives in the shared library.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <reticle/core/mask/picture.hpp>
#include <reticle/core/masker.hpp>

namespace reticle {

struct RETICLE_API MaskerType {
  std::string name;
  MaskerDocs docs;
  std::string origin;  // "built in", or the plugin's path
  MaskerFactory factory;

  /// Makes a masker that knows its name; `config` is of factory.config_type.
  std::shared_ptr<const Masker> make(const void* config) const;
};

class RETICLE_API Registry {
 public:
  /// Never destroyed: live masks and maskers may outlast static destructors.
  static Registry& global();

  /// ConfigError on a bad or duplicate name.
  void add(MaskerType type);
  /// As add, but replaces a masker of the same name and origin, as when a notebook's cell runs again. Pipelines made
  /// with the old one keep it.
  void add_or_replace(MaskerType type);
  /// ConfigError that names the nearest known masker.
  const MaskerType& at(std::string_view name) const;
  bool contains(std::string_view name) const;
  /// Sorted by name, so that the order of linking never shows.
  std::vector<const MaskerType*> list() const;

  /// Loads a shared object and registers its maskers, all or none; a file that is loaded already is not loaded again.
  /// The ABI stamp is read from the file before any of its code runs. PluginError says what is wrong and what to do.
  /// Plugins are never unloaded, since their vtables may still be in use.
  std::vector<const MaskerType*> load_plugin(const std::filesystem::path& path);

 private:
  Registry();
  struct State;
  friend class MaskerRegistration;
  State* state_;  // leaked with the registry
};

/// The colors of masker types in every picture: the registered color if there is one (sinks blue, windows orange), grey
/// for full attention ("dense"), and for the others, in order of first appearance, green, purple, vermilion, sky blue
/// and yellow, then again from green (the palette of Okabe and Ito 2008, which color-blind readers can tell apart).
RETICLE_API std::vector<Color> masker_colors(std::span<const std::string> types);

/// The path of a plugin that a config names: absolute, or relative to `directory`, or in a folder of
/// RETICLE_PLUGIN_PATH (colon-separated). PluginError lists the places tried.
RETICLE_API std::filesystem::path find_plugin(const std::filesystem::path& name,
                                              const std::filesystem::path& directory);

/// Writes a checksum of the loaded parts of a plugin's file into its stamp; from then on the file is refused if one of
/// those bytes is damaged or changed. PluginError when it is not a plugin, FormatError when it cannot be written.
RETICLE_API void seal_plugin(const std::filesystem::path& file);

/// Loads every *.so in the folders of RETICLE_PLUGIN_PATH; returns one message per file or folder that was refused.
RETICLE_API std::vector<std::string> load_plugins_from_environment();

}  // namespace reticle
