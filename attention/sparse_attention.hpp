// The door for users: a JSON config of maskers becomes a mask, the mask sparse attention, with figures of what it kept,
// what it cost and how far the result is from dense attention.
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

/// What one masker did.
struct MaskerMetrics {
  std::string type;
  Index added = 0;
  double seconds = 0;

  static constexpr const char* docs[] = {"name of the masker", "entries that were not in the mask before",
                                         "time of selecting and merging"};
};

/// What was kept, and what that cost.
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
  std::string type;  // of the masker; "dense" for heads that none serves
  Mask mask;
};

struct SparseAttentionResult {
  AttentionResult attention;
  Mask mask;
  Metrics metrics;
};

/// What SparseAttention::attend gives beside the result, and on a GPU where that goes (see attention_into): new tensors
/// without.
struct Wanted {
  bool mask = false, entries = false;
  void* output = nullptr;
  float* lse = nullptr;
};

struct Attended {
  AttentionResult attention;     // empty where it went to the caller's memory
  std::optional<Mask> mask;      // if wanted, or made on the way
  std::optional<Index> entries;  // if wanted: positions that the rows attend to
};

/// A pipeline of maskers for each stage, made from a config:
///
///   {"maskers": [{"type": "sink", "sink_size": 4}, ...], "causal": true, "seed": 0, "merge": "add",
///    "plugins": ["./my_masker.so"]}
///   {"prefill": {"maskers": [...]}, "generation": {"maskers": [...]}, "causal": true}
///
/// Every masker may say which layers and query heads it serves: "layers": [0, "16-"], "heads": [0, 3]. Heads that none
/// serves run dense attention, so an empty list of maskers does. Immutable and cheap to copy; maskers are shared.
///
/// Of tensors on a GPU attention runs there, queued on context.stream. So does the choice of keys for one query, if
/// every masker of the layer says what it chooses as rules; else maskers choose on the host, and warn() says which one
/// and why: keys and values are copied to it once, when a sequence begins, and then token by token.
class RETICLE_API SparseAttention {
 public:
  /// Relative paths in the text are relative to `directory`. ConfigError and PluginError say where and what.
  static SparseAttention from_json(std::string_view text, const std::filesystem::path& directory = ".",
                                   Plugins plugins = Plugins::load);
  static SparseAttention from_file(const std::filesystem::path& path, Plugins plugins = Plugins::load);
  /// The prefill stage of one, the generation stage of another (nano-sparse-attention's InferenceHandler). ConfigError
  /// when they differ in seed or merge rule; causal when either is.
  static SparseAttention by_stage(const SparseAttention& prefill, const SparseAttention& generation);

  /// The config with every default filled in.
  std::string to_json() const;
  /// Its "description", if it has one.
  const std::string& description() const;
  bool causal() const;
  /// Types of a stage's maskers, in order.
  std::vector<std::string> maskers(Stage stage) const;

  /// What a stage's maskers choose at one layer from `keys` keys, as rules that can be followed where the tensors lie.
  /// DeviceError that names the masker for which there is no rule; and where no masker serves the layer.
  std::vector<Rule> rules(Stage stage, int layer, Index keys, const Context& context = {}) const;

  /// How many of a prompt's last queries the generation stage's maskers decide by; 0: none does. A prompt that comes in
  /// parts needs as many in its last part.
  Index observed_queries() const;
  /// Types of the stage's maskers that choose for a query by more than it and the keys up to its position: a prompt has
  /// to come whole.
  std::vector<std::string> maskers_of_whole_prompts(Stage stage) const;

  /// ValueError, naming the maskers of the generation stage that may come back to any key, where there are some:
  /// nothing can be evicted.
  void require_forgetful() const;
  /// Of the keys so far, those that the generation stage may attend to from position `first` on, as a mask of
  /// inputs.one_query(): a cache may evict the others. ValueError as require_forgetful.
  Mask lasting(const AttentionInputs& inputs, Index first, SequenceState& state, const Context& context = {}) const;

  /// The mask that the maskers of inputs.stage build, each adding to what those before it chose; the first starts from
  /// `previous`, if given. It lies on the GPU where it was chosen there.
  Mask mask(const AttentionInputs& inputs, SequenceState& state, const Context& context = {},
            const std::optional<Mask>& previous = std::nullopt) const;
  /// Who chose which key: disjoint masks, one per masker of inputs.stage in order, whose union is what mask() gives. As
  /// one step of `state`, in place of mask().
  std::vector<Contribution> contributions(const AttentionInputs& inputs, SequenceState& state,
                                          const Context& context = {}) const;
  /// Attention over what the maskers of inputs.stage choose. On a GPU a step whose keys are chosen there waits for
  /// nothing, unless entries are wanted that depend on the scores.
  Attended attend(const AttentionInputs& inputs, SequenceState& state, const AttentionOptions& options = {},
                  Wanted wanted = {}, const Context& context = {}) const;
  /// One layer of a whole sequence whose last `output_length` tokens are taken as generated: the others are prefilled,
  /// then these attend, in one call, to all keys up to their own as the generation stage chooses. Causal, whatever the
  /// config says; on the CPU. Equals decoding them one by one with maskers that choose for a query from the keys up to
  /// its own and draw nothing at random; page rules do not, for a page is bounded by all its keys, those after the
  /// query included. ShapeError unless output_length is in [0, queries) and queries and keys are as many.
  AttentionResult forward(const AttentionInputs& sequence, Index output_length, SequenceState& state,
                          const AttentionOptions& options = {}, const Context& context = {}) const;
  /// The mask, attention over it and metrics; with `compare`, dense attention too. DeviceError on a GPU, whose times
  /// are not measured here.
  SparseAttentionResult run(const AttentionInputs& inputs, SequenceState& state, bool compare = false,
                            const AttentionOptions& options = {}, const Context& context = {}) const;

 private:
  explicit SparseAttention(PipelineConfig config);
  /// The inputs and context as this config has them: causal, seeded, checked.
  AttentionInputs configured(const AttentionInputs& inputs) const;
  Context configured(const Context& context) const;
  /// A stage's rules at a layer, or why there are none.
  struct Ruled {
    std::vector<Rule> rules;
    std::string why;
  };
  Ruled ruled(Stage stage, int layer, Index keys, const Context& context) const;
  /// Whether a masker of the stage serves a layer.
  bool serves(Stage stage, int layer) const;
  // attention/cuda/pipeline.cpp
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
