// One sparse pattern for the prompt, another for what is generated after it, and a record of what each left out. After
// nano-sparse-attention's InferenceHandler, with its state per sequence instead of per process.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include <reticle/attention/sparse_attention.hpp>

namespace reticle {

/// What one stage of one sequence attended to, call by call (a call is a layer at a step).
struct RETICLE_API StageRecord {
  struct SavedMask {
    int layer;
    Mask mask;
  };

  /// 1 - entries / positions that causality leaves, of each call: nano-sparse-attention's sparsity ratio.
  std::vector<double> sparsity;
  double entries = 0, visible = 0;  // sums over the calls
  std::vector<SavedMask> masks;     // if asked for

  /// Adds a call that attended to `entries` of `visible` positions.
  void add(double entries_of_call, double visible_to_it);
  /// nano-sparse-attention's figure: the mean over the calls, each counting alike; 0 without calls.
  double mean_sparsity() const;
  /// Entries over visible positions of all calls together: what the work is proportional to; 1 without calls.
  double density() const;
  /// Adds another's calls to these.
  void merge(const StageRecord& other);
};

/// One sequence's way through a handler, over all layers.
struct RETICLE_API InferenceState {
  SequenceState maskers;
  StageRecord prefill, generation;

  StageRecord& record(Stage stage) { return stage == Stage::prefill ? prefill : generation; }
  void reset() {
    maskers.reset();
    prefill = generation = {};
  }
  /// As SequenceState's. Records stay as they are; a fork begins with empty ones.
  void truncate(Index keys) { maskers.truncate(keys); }
  void select(std::span<const Index> rows) { maskers.select(rows); }
  InferenceState fork() const { return {maskers.fork(), {}, {}}; }
};

/// Immutable; one handler serves any number of sequences and threads, each sequence with its own InferenceState.
class RETICLE_API InferenceHandler {
 public:
  /// The maskers of `prefill`'s prefill stage and of `generation`'s generation stage. ConfigError when the two differ
  /// in seed or merge rule.
  InferenceHandler(const SparseAttention& prefill, const SparseAttention& generation)
      : InferenceHandler(SparseAttention::by_stage(prefill, generation)) {}
  explicit InferenceHandler(SparseAttention sparse) : sparse_(std::move(sparse)) {}

  const SparseAttention& sparse() const { return sparse_; }
  /// Whether records keep every call's mask: for pictures.
  void keep_masks(bool keep) { keep_masks_ = keep; }
  bool keeps_masks() const { return keep_masks_; }

  /// The keys that the stage's pipeline chooses for inputs.stage and inputs.layer, causal, recorded: for attention that
  /// is computed elsewhere.
  Mask mask(const AttentionInputs& inputs, InferenceState& state, const Context& context = {}) const;
  /// Causal attention of inputs.stage and inputs.layer over the keys that the stage's pipeline chooses.
  AttentionResult attend(const AttentionInputs& inputs, InferenceState& state, const AttentionOptions& options = {},
                         const Context& context = {}) const;
  /// The same on a GPU, into memory of the caller's (see attention_into).
  void attend_into(const AttentionInputs& inputs, InferenceState& state, void* output, float* lse,
                   const AttentionOptions& options = {}, const Context& context = {}) const;
  /// SparseAttention::lasting of the generation's maskers.
  Mask lasting(const AttentionInputs& inputs, Index first, InferenceState& state, const Context& context = {}) const {
    return sparse_.lasting(inputs, first, state.maskers, context);
  }
  /// One layer of a whole sequence whose last `output_length` tokens are taken as generated: the others are prefilled,
  /// then these attend, in one call, to all keys up to their own as the generation pipeline chooses. Equals decoding
  /// them one by one with maskers that choose for a query from the keys up to its own and draw nothing at random (page
  /// rules bound a page by all its keys, those after the query included). ShapeError unless output_length is in [0,
  /// queries) and queries and keys are as many.
  AttentionResult forward(const AttentionInputs& sequence, Index output_length, InferenceState& state,
                          const AttentionOptions& options = {}, const Context& context = {}) const;

 private:
  Attended attended(const AttentionInputs& inputs, InferenceState& state, const AttentionOptions& options,
                    Wanted wanted, const Context& context) const;
  /// One call, in the stage's record.
  void record(const AttentionInputs& inputs, Index entries, const std::optional<Mask>& mask, InferenceState& state,
              const Context& context) const;

  SparseAttention sparse_;
  bool keep_masks_ = false;
};

}  // namespace reticle
