// The main interface of the library. A JSON config of maskers selects a mask; attention is computed over the mask, with
// metrics of what was kept, what it cost and how far the result is from dense attention.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <reticle/attention/comparison.hpp>
#include <reticle/attention/executor.hpp>
#include <reticle/attention/pipeline_config.hpp>
#include <reticle/attention/sequence_state.hpp>

namespace reticle {

/// One masker's part in a mask.
struct MaskerMetrics {
  std::string type;
  Index added = 0;
  double seconds = 0;

  static constexpr const char* docs[] = {"name of the masker", "entries that were not in the mask before",
                                         "time of selecting and merging"};
};

/// How many positions were kept, and the cost in time and memory.
struct Metrics {
  double density = 0, visible_density = 0;
  std::vector<double> head_density;
  Index entries = 0, mask_bytes = 0;
  double mask_seconds = 0, attention_seconds = 0;
  std::vector<MaskerMetrics> maskers;
  std::optional<Comparison> comparison;

  static constexpr const char* docs[] = {"entries over all positions",
                                         "entries over the positions that causality leaves",
                                         "density of each (batch * heads)",
                                         "positions attended to",
                                         "memory of the mask",
                                         "time of building the mask",
                                         "time of attention over it",
                                         "each masker's part, in order",
                                         "how far the output is from dense attention, if asked for"};
};

/// The entries of a mask that one masker was the first to choose.
struct Contribution {
  std::string type;  // the masker's type; "dense" for heads to which no masker applies
  Mask mask;
};

struct SparseAttentionResult {
  AttentionResult attention;
  Mask mask;
  Metrics metrics;
};

/// What SparseAttention::attend returns beside the attention. On a GPU, output and lse are the memory to write to (see
/// attention_into); null for new tensors.
struct Wanted {
  bool mask = false, entries = false;
  void* output = nullptr;
  float* lse = nullptr;
};

struct Attended {
  AttentionResult attention;     // empty if written to the caller's memory
  std::optional<Mask> mask;      // set if wanted, or if the call built one anyway
  std::optional<Index> entries;  // set if wanted: the number of positions attended to
};

/// A pipeline of maskers for each stage, made from a config:
///
///   {"maskers": [{"type": "sink", "sink_size": 4}, ...], "causal": true, "seed": 0, "merge": "add",
///    "plugins": ["./my_masker.so"]}
///   {"prefill": {"maskers": [...]}, "generation": {"maskers": [...]}, "causal": true}
///
/// A masker can be limited to layers and query heads: "layers": [0, "16-"], "heads": [0, 3]. Heads to which no masker
/// applies run dense attention, and so does an empty list of maskers. Immutable and cheap to copy; copies share the
/// maskers.
///
/// Attention over tensors on a GPU runs there, queued on context.stream. Keys for a single query are also selected
/// there if every masker of the layer states its selection as rules. Otherwise maskers select on the host, and warn()
/// names the masker and the reason; keys and values are then copied to the host once, when a sequence begins, and after
/// that token by token.
class RETICLE_API SparseAttention {
 public:
  /// Parses and checks a config. Relative paths in it are relative to `directory`. ConfigError and PluginError say what
  /// is wrong and where.
  static SparseAttention from_json(std::string_view text, const std::filesystem::path& directory = ".",
                                   Plugins plugins = Plugins::load);
  static SparseAttention from_file(const std::filesystem::path& path, Plugins plugins = Plugins::load);
  /// Combines the prefill stage of one pipeline with the generation stage of another (nano-sparse-attention's
  /// InferenceHandler). ConfigError when they differ in seed or merge rule; causal when either is.
  static SparseAttention by_stage(const SparseAttention& prefill, const SparseAttention& generation);

  /// The config with every default filled in.
  std::string to_json() const;
  /// The config's "description"; empty if it has none.
  const std::string& description() const;
  bool causal() const;
  /// The types of a stage's maskers, in order.
  std::vector<std::string> maskers(Stage stage) const;

  /// The selection of a stage's maskers at one layer from `keys` keys, as rules that a GPU can execute. DeviceError if
  /// a masker has no rules (the message names it), or if no masker applies to the layer.
  std::vector<Rule> rules(Stage stage, int layer, Index keys, const Context& context = {}) const;

  /// The number of a prompt's last queries on which the generation stage's maskers base their decisions; 0 if none
  /// needs any. The last part of a prompt that is prefilled in parts must hold at least this many.
  Index observed_queries() const;
  /// The types of the stage's maskers whose selection for a query depends on more than that query and the keys up to
  /// its position. With such maskers a prompt cannot be prefilled in parts.
  std::vector<std::string> maskers_of_whole_prompts(Stage stage) const;

  /// Throws ValueError, naming them, if maskers of the generation stage may select any key again later, so that no key
  /// can be evicted.
  void require_forgetful() const;
  /// The keys so far that the generation stage may still attend to from position `first` on, as a mask of
  /// inputs.one_query(); a cache may evict the others. ValueError as in require_forgetful.
  Mask lasting(const AttentionInputs& inputs, Index first, SequenceState& state, const Context& context = {}) const;

  /// The mask that the maskers of inputs.stage build; each adds to the selection of those before it, and the first to
  /// `previous`, if given. The mask is on the GPU if it was selected there.
  Mask mask(const AttentionInputs& inputs, SequenceState& state, const Context& context = {},
            const std::optional<Mask>& previous = std::nullopt) const;
  /// Which masker selected which key: disjoint masks, one per masker of inputs.stage in order, whose union is mask().
  /// Advances `state` by one step, as mask() does; call one or the other.
  std::vector<Contribution> contributions(const AttentionInputs& inputs, SequenceState& state,
                                          const Context& context = {}) const;
  /// Attention over the mask that the maskers of inputs.stage select. On a GPU, a step whose keys are selected there
  /// does not synchronise, unless `entries` is wanted and depends on the scores.
  Attended attend(const AttentionInputs& inputs, SequenceState& state, const AttentionOptions& options = {},
                  Wanted wanted = {}, const Context& context = {}) const;
  /// One layer of a whole sequence whose last `output_length` tokens count as generated: the tokens before them are
  /// prefilled, then these attend, in one call, to keys up to their position as the generation stage selects. Always
  /// causal; on the CPU. Equals decoding token by token if every masker selects for a query from the keys up to its
  /// position alone, without random draws. Page rules do not qualify: a page's bounds cover all its keys, including
  /// those after the query. ShapeError unless output_length is in [0, queries) and there are as many queries as keys.
  AttentionResult forward(const AttentionInputs& sequence, Index output_length, SequenceState& state,
                          const AttentionOptions& options = {}, const Context& context = {}) const;
  /// The mask, attention over it and metrics; with `compare`, dense attention too. DeviceError on a GPU, whose times
  /// are not measured here.
  SparseAttentionResult run(const AttentionInputs& inputs, SequenceState& state, bool compare = false,
                            const AttentionOptions& options = {}, const Context& context = {}) const;

 private:
  explicit SparseAttention(PipelineConfig config);
  /// The inputs and context with the config's settings applied: causal and seed. Inputs are validated.
  AttentionInputs configured(const AttentionInputs& inputs) const;
  Context configured(const Context& context) const;
  /// A stage's rules at a layer, or the reason why there are none.
  struct Ruled {
    std::vector<Rule> rules;
    std::string why;
  };
  Ruled ruled(Stage stage, int layer, Index keys, const Context& context) const;
  /// True if a masker of the stage applies to the layer.
  bool serves(Stage stage, int layer) const;
  // Defined in attention/cuda/pipeline.cpp.
  struct OnGpu;
  OnGpu chosen_on_gpu(const AttentionInputs& inputs, SequenceState& state, const Context& context) const;
  Attended attend_on_gpu(const AttentionInputs& inputs, SequenceState& state, const AttentionOptions& options,
                         Wanted wanted, const Context& context) const;
  Mask mask_on_gpu(const AttentionInputs& inputs, SequenceState& state, const Context& context) const;
  Mask build(const AttentionInputs& inputs, const std::optional<Mask>& previous, SequenceState& state,
             const Context& context, Metrics& metrics, std::vector<Contribution>* contributions = nullptr) const;

  std::shared_ptr<const PipelineConfig> config_;
};

}  // namespace reticle
