// The door for users: a JSON config of maskers becomes a mask, the mask sparse attention, with figures of what it kept,
// what it cost and how far the result is from dense attention.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <reticle/attention/executor.hpp>
#include <reticle/core/masker.hpp>

namespace reticle {

namespace cuda {
class DeviceSequence;
}

/// What the maskers of every layer keep for one sequence. One call at a time works on it: another one that comes
/// meanwhile, from a second thread or from a masker's own code, gets a ValueError.
class RETICLE_API SequenceState {
 public:
  /// Held by a call for as long as it works on a state.
  class RETICLE_API Lease {
   public:
    explicit Lease(const SequenceState& state);
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease();

   private:
    std::atomic<bool>& leased_;
  };

  SequenceState() = default;
  SequenceState(SequenceState&&) noexcept = default;
  SequenceState& operator=(SequenceState&&) noexcept = default;
  SequenceState(const SequenceState&) = delete;  // see fork
  SequenceState& operator=(const SequenceState&) = delete;
  ~SequenceState() = default;

  LayerState& layer(int index) { return layers_[index]; }
  /// What is kept where the tensors lie on a GPU; made at first use.
  cuda::DeviceSequence& on_gpu();
  void reset();

  /// As if keys from position `keys` on had never been seen: the cache was cropped. ValueError, naming the masker,
  /// where what it keeps cannot follow (it chose what to keep from a prompt that is longer); what was kept is then
  /// unspecified.
  void truncate(Index keys);
  /// Sequence i of the batch becomes what sequence rows[i] was: beams were reordered, repeated or dropped. ValueError
  /// for rows that are negative, or likewise.
  void select(std::span<const Index> rows);
  /// A copy: the sequences go on in two ways.
  SequenceState fork() const;

 private:
  /// A state that was moved is not leased.
  struct Flag {
    std::atomic<bool> value{false};
    Flag() = default;
    Flag(Flag&&) noexcept {}
    Flag& operator=(Flag&&) noexcept { return *this; }
    Flag(const Flag&) = delete;
    Flag& operator=(const Flag&) = delete;
    ~Flag() = default;
  };
  std::map<int, LayerState> layers_;
  std::shared_ptr<cuda::DeviceSequence> on_gpu_;
  mutable Flag leased_;
};

/// What one masker did.
struct MaskerMetrics {
  std::string type;
  Index added = 0;     // entries that were not in the mask before
  double seconds = 0;  // selecting and merging
};

/// Sparse against dense attention on the same inputs.
struct Comparison {
  double relative_error = 0;                // ||dense - sparse|| / ||dense||, Frobenius, over the whole output
  std::vector<double> head_relative_error;  // (batch * heads)
  double mean_mass = 0, least_mass = 0;     // share of a row's dense attention mass that the mask covers, over the rows
  std::vector<double> head_mean_mass;       // (batch * heads)
  double dense_seconds = 0;
};

struct Metrics {
  double density = 0;                // entries over all positions
  double visible_density = 0;        // entries over the positions that causality leaves
  std::vector<double> head_density;  // (batch * heads)
  Index entries = 0;
  Index mask_bytes = 0;
  std::vector<MaskerMetrics> maskers;
  double mask_seconds = 0, attention_seconds = 0;
  std::optional<Comparison> comparison;
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

/// Whether a config's "plugins" are loaded: their code then runs with the rights of the process. Refused, a config that
/// names some is a ConfigError.
enum class Plugins : std::uint8_t { load, refuse };

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
  /// The prefill stage of one, the generation stage of another. ConfigError when they differ in seed or merge rule;
  /// causal when either is.
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
  /// The mask, attention over it and metrics; with `compare`, dense attention too. DeviceError on a GPU, whose times
  /// are not measured here.
  SparseAttentionResult run(const AttentionInputs& inputs, SequenceState& state, bool compare = false,
                            const AttentionOptions& options = {}, const Context& context = {}) const;

 private:
  struct Config;
  explicit SparseAttention(std::shared_ptr<const Config> config);
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

  std::shared_ptr<const Config> config_;
};

/// JSON Schema of a masker's config, or of a whole pipeline config (type empty).
RETICLE_API std::string schema(std::string_view type = {});
/// How a masker is documented: source, rule, parameters with defaults, cost. Markdown.
RETICLE_API std::string describe_masker(std::string_view type);

}  // namespace reticle
