// The config of a pipeline: JSON in and out, checked, with its plugins loaded and its maskers made.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/config/subset.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/registry.hpp>

namespace reticle {

/// Whether a config's "plugins" are loaded; their code runs with the rights of the process. With `refuse`, a config
/// that names plugins is a ConfigError.
enum class Plugins : std::uint8_t { load, refuse };

/// The settings of a config besides its maskers.
struct PipelineOptions {
  bool causal = false;
  std::uint64_t seed = 0;
  MergeRule merge = MergeRule::add;
  std::vector<std::filesystem::path> plugins;
  std::string description;

  static constexpr const char* docs[] = {
      "forbid keys after each query's own position, to every masker and in the result",
      "random seed; the same seed gives the same mask",
      "how p of positions chosen twice combine: min(1, a + b), max(a, b), or 1 - (1-a)(1-b)",
      "shared objects to load first: absolute, relative to the config, or in RETICLE_PLUGIN_PATH",
      "what this config is, for people"};
};

/// The layers and query heads to which a masker applies.
struct Served {
  Subset layers, heads;

  static constexpr const char* docs[] = {"layers that it serves; all when absent",
                                         "query heads that it serves; all when absent"};
};

struct MaskerEntry {
  const MaskerType* type;
  std::shared_ptr<const void> config;
  std::shared_ptr<const Masker> masker;
  Served served;
};

struct PipelineConfig {
  PipelineOptions options;
  bool by_stage = false;
  std::array<std::vector<MaskerEntry>, 2> stages;  // indexed by Stage; equal unless by_stage

  const std::vector<MaskerEntry>& stage(Stage stage) const { return stages[static_cast<std::size_t>(stage)]; }

  /// See SparseAttention::from_json.
  static PipelineConfig from_json(std::string_view text, const std::filesystem::path& directory, Plugins plugins);
  /// See SparseAttention::by_stage.
  static PipelineConfig by_stage_of(const PipelineConfig& prefill, const PipelineConfig& generation);
  /// The config with every default filled in.
  std::string to_json() const;
};

/// JSON Schema of a masker's entry in a config, or of a whole config (type empty). ConfigError for an unknown type.
RETICLE_API std::string schema(std::string_view type = {});

}  // namespace reticle
