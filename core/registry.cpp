#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <reticle/core/base/did_you_mean.hpp>
#include <reticle/core/plugin.hpp>
#include <reticle/core/registry.hpp>

namespace reticle {
namespace {

constexpr std::string_view kBuiltIn = "built in";

}  // namespace

struct Registry::State {
  mutable std::recursive_mutex mutex;
  std::map<std::string, std::unique_ptr<const MaskerType>, std::less<>> types;
  std::map<std::filesystem::path, std::vector<const MaskerType*>> plugins;  // by canonical path
  std::vector<std::unique_ptr<const MaskerType>> replaced;                  // pipelines may point to them
  std::string problem;                                                      // the first one of a built-in registration
  // While a plugin is loaded, its registrations are collected here; they arrive on the loading thread.
  std::vector<MaskerType>* batch = nullptr;

  void throw_problem() const {
    if (!problem.empty()) throw ConfigError(problem);
  }
  const MaskerType* insert(MaskerType type) {
    const std::string name = type.name;
    return types.emplace(name, std::make_unique<const MaskerType>(std::move(type))).first->second.get();
  }
};

Registry::Registry() : state_(new State) {}

std::shared_ptr<const Masker> MaskerType::make(const void* config) const {
  std::shared_ptr<Masker> masker = factory.make(config);
  masker->type_ = name;
  return masker;
}

Registry& Registry::global() {
  static auto& registry = *new Registry;
  return registry;
}

namespace {

/// The color, or nothing unless the text is "#rrggbb".
std::optional<Color> color_from(std::string_view text) {
  unsigned rgb = 0;
  if (text.size() != 7 || text[0] != '#') return std::nullopt;
  const auto [end, error] = std::from_chars(text.data() + 1, text.data() + 7, rgb, 16);
  if (error != std::errc() || end != text.data() + 7) return std::nullopt;
  return Color{static_cast<std::uint8_t>(rgb >> 16), static_cast<std::uint8_t>(rgb >> 8),
               static_cast<std::uint8_t>(rgb)};
}

}  // namespace

std::vector<Color> masker_colors(std::span<const std::string> types) {
  constexpr Color kDense{0x99, 0x99, 0x99};
  constexpr std::array<Color, 5> kOthers = {
      {{0x00, 0x9E, 0x73}, {0xCC, 0x79, 0xA7}, {0xD5, 0x5E, 0x00}, {0x56, 0xB4, 0xE9}, {0xF0, 0xE4, 0x42}}};
  std::vector<Color> colors;
  std::vector<std::string> others;
  for (const std::string& type : types) {
    const Registry& registry = Registry::global();
    const std::optional<Color> registered_color =
        registry.contains(type) ? color_from(registry.at(type).docs.color) : std::nullopt;
    if (registered_color || type == "dense") {
      colors.push_back(registered_color.value_or(kDense));
      continue;
    }
    const auto found = std::find(others.begin(), others.end(), type);
    colors.push_back(kOthers[static_cast<std::size_t>(found - others.begin()) % kOthers.size()]);
    if (found == others.end()) others.push_back(type);
  }
  return colors;
}

namespace {

/// Empty when the masker can be registered.
std::string problem_with(const MaskerType& type) {
  const bool well_formed = !type.name.empty() && std::all_of(type.name.begin(), type.name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
  if (!well_formed) return "masker name \"" + type.name + "\" is not made of a-z, 0-9 and _";
  if (!type.docs.color.empty() && !color_from(type.docs.color))
    return "masker \"" + type.name + "\": color \"" + std::string(type.docs.color) + "\"; expected \"#rrggbb\"";
  for (const Field& field : type.factory.config_type->fields()) {
    if (field.name == "type" || field.name == "layers" || field.name == "heads")
      return "masker \"" + type.name + "\" has a field \"" + std::string(field.name) +
             "\"; a config uses that name to say which masker serves where";
  }
  return {};
}

}  // namespace

void Registry::add(MaskerType type) {
  const std::lock_guard lock(state_->mutex);
  if (const std::string problem = problem_with(type); !problem.empty()) throw ConfigError(problem);
  if (const auto found = state_->types.find(type.name); found != state_->types.end())
    throw ConfigError("masker \"" + type.name + "\" (" + type.origin + ") is registered already (" +
                      found->second->origin + ")");
  state_->insert(std::move(type));
}

void Registry::add_or_replace(MaskerType type) {
  const std::lock_guard lock(state_->mutex);
  if (const std::string problem = problem_with(type); !problem.empty()) throw ConfigError(problem);
  const auto found = state_->types.find(type.name);
  if (found == state_->types.end() || found->second->origin != type.origin) return add(std::move(type));
  state_->replaced.push_back(std::exchange(found->second, std::make_unique<const MaskerType>(std::move(type))));
}

const MaskerType& Registry::at(std::string_view name) const {
  const std::lock_guard lock(state_->mutex);
  state_->throw_problem();
  if (const auto found = state_->types.find(name); found != state_->types.end()) return *found->second;
  std::vector<std::string_view> known;
  known.reserve(state_->types.size());
  for (const auto& [key, type] : state_->types) known.push_back(key);
  std::string hint = did_you_mean(name, known);
  if (hint.empty()) hint = "; `reticle list` shows those there are";
  throw ConfigError("no masker \"" + std::string(name) + "\"" + hint);
}

bool Registry::contains(std::string_view name) const {
  const std::lock_guard lock(state_->mutex);
  return state_->types.find(name) != state_->types.end();
}

std::vector<const MaskerType*> Registry::list() const {
  const std::lock_guard lock(state_->mutex);
  state_->throw_problem();
  std::vector<const MaskerType*> types;
  types.reserve(state_->types.size());
  for (const auto& [name, type] : state_->types) types.push_back(type.get());
  return types;
}

MaskerRegistration::MaskerRegistration(std::string_view name, MaskerFactory factory, const MaskerDocs& docs,
                                       const AbiStamp& stamp) noexcept {
  (void)stamp;  // taken by reference, so that it stays in the file
  Registry::State& state = *Registry::global().state_;
  const std::lock_guard lock(state.mutex);
  MaskerType type{std::string(name), docs, std::string(kBuiltIn), std::move(factory)};
  if (state.batch != nullptr) {
    state.batch->push_back(std::move(type));
    return;
  }
  try {
    Registry::global().add(std::move(type));
  } catch (const ConfigError& error) {
    if (state.problem.empty()) state.problem = error.what();
  }
}

std::vector<const MaskerType*> Registry::load_plugin(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::path file = std::filesystem::canonical(path, error);
  if (error) throw PluginError(path.string() + ": " + error.message());
  const std::lock_guard lock(state_->mutex);
  if (const auto loaded = state_->plugins.find(file); loaded != state_->plugins.end()) return loaded->second;

  require_matching_stamps(file);
  SharedObject object;  // before `batch`, whose contents its code made: closed after them
  std::vector<MaskerType> batch;
  state_->batch = &batch;
  std::string problem;
  try {
    object = SharedObject(file);
  } catch (const PluginError& refused) {
    problem = refused.what();
  }
  state_->batch = nullptr;
  if (problem.empty() && batch.empty())
    problem =
        file.string() + ": registers no masker (is it the library itself, or does it lack RETICLE_REGISTER_MASKER?)";
  for (std::size_t i = 0; i < batch.size() && problem.empty(); ++i) {
    const MaskerType& type = batch[i];
    problem = problem_with(type);
    if (const auto found = state_->types.find(type.name); found != state_->types.end())
      problem = "masker \"" + type.name + "\" is registered already (" + found->second->origin + ")";
    for (std::size_t j = 0; j < i; ++j) {
      if (batch[j].name == type.name) problem = "registers masker \"" + type.name + "\" twice";
    }
    if (!problem.empty()) problem = file.string() + ": " + problem;
  }
  if (!problem.empty()) throw PluginError(problem);  // closes the object
  object.keep();
  std::vector<const MaskerType*>& types = state_->plugins[file];
  for (MaskerType& type : batch) {
    type.origin = file.string();
    types.push_back(state_->insert(std::move(type)));
  }
  return types;
}

namespace {

std::vector<std::filesystem::path> plugin_folders() {
  std::vector<std::filesystem::path> folders;
  const char* value = std::getenv("RETICLE_PLUGIN_PATH");
  if (value == nullptr) return folders;
  std::string_view rest = value;
  while (!rest.empty()) {
    const std::size_t colon = std::min(rest.find(':'), rest.size());
    if (colon > 0) folders.emplace_back(rest.substr(0, colon));
    rest.remove_prefix(std::min(colon + 1, rest.size()));
  }
  return folders;
}

}  // namespace

std::filesystem::path find_plugin(const std::filesystem::path& name, const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> places{name.is_absolute() ? name : directory / name};
  if (name.is_relative()) {
    for (const std::filesystem::path& folder : plugin_folders()) places.push_back(folder / name);
  }
  std::string tried;
  for (const std::filesystem::path& place : places) {
    std::error_code ignored;
    if (std::filesystem::exists(place, ignored)) return place;
    tried += (tried.empty() ? "" : ", ") + place.string();
  }
  throw PluginError("no plugin \"" + name.string() + "\"; looked for " + tried);
}

std::vector<std::string> load_plugins_from_environment() {
  std::vector<std::string> refused;
  for (const std::filesystem::path& folder : plugin_folders()) {
    std::error_code error;
    std::vector<std::filesystem::path> files;
    for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error)) {
      if (entry->path().extension() == ".so") files.push_back(entry->path());
    }
    if (error) refused.push_back("RETICLE_PLUGIN_PATH: " + folder.string() + ": " + error.message());
    std::sort(files.begin(), files.end());
    for (const std::filesystem::path& file : files) {
      try {
        Registry::global().load_plugin(file);
      } catch (const Error& problem) {
        refused.emplace_back(problem.what());
      }
    }
  }
  return refused;
}

}  // namespace reticle
