// One registry in the process, in the shared library: name -> masker type.
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

  /// A masker that knows its name; `config` is of factory.config_type.
  std::shared_ptr<const Masker> make(const void* config) const;
};

class RETICLE_API Registry {
 public:
  /// Never destroyed: live masks and maskers may outlast static destructors.
  static Registry& global();

  /// ConfigError on a bad or duplicate name.
  void add(MaskerType type);
  /// As add, but a masker of that name and the same origin gives way: a notebook's cell runs again. Pipelines made with
  /// the old one keep it.
  void add_or_replace(MaskerType type);
  /// ConfigError that names the nearest known masker.
  const MaskerType& at(std::string_view name) const;
  bool contains(std::string_view name) const;
  /// Sorted by name: the order of linking never shows.
  std::vector<const MaskerType*> list() const;

  /// Loads a shared object and registers its maskers, all or none; a file that is loaded already is left as it is. The
  /// ABI stamp is read out of the file before any of its code runs. PluginError says what is wrong and what to do.
  /// Plugins are never unloaded: vtables of theirs may live on.
  std::vector<const MaskerType*> load_plugin(const std::filesystem::path& path);

 private:
  Registry();
  struct State;
  friend class MaskerRegistration;
  State* state_;  // leaked with the registry
};

/// The colors of maskers in every picture, by their types: those that they are registered with (sinks blue, windows
/// orange), full attention ("dense") grey, and others in the order in which they first come: green, purple, vermilion,
/// sky blue, yellow, and again (Okabe and Ito 2008: told apart by color-blind readers, too).
RETICLE_API std::vector<Color> masker_colors(std::span<const std::string> types);

/// Where a plugin that a config names is: absolute, or relative to `directory`, or in a folder of RETICLE_PLUGIN_PATH
/// (colon-separated). PluginError lists the places tried.
RETICLE_API std::filesystem::path find_plugin(const std::filesystem::path& name,
                                              const std::filesystem::path& directory);

/// Writes a checksum of what a plugin's file loads into its stamp: from then on the file is refused when a byte of that
/// was damaged or changed. PluginError when it is not a plugin, FormatError when it cannot be written.
RETICLE_API void seal_plugin(const std::filesystem::path& file);

/// Loads every *.so in the folders of RETICLE_PLUGIN_PATH; returns one message per file or folder that was refused.
RETICLE_API std::vector<std::string> load_plugins_from_environment();

}  // namespace reticle
