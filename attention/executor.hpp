// Sparse attention over the entries of a mask only, on the device where the tensors lie.
#pragma once

#include <optional>
#include <span>

#include <reticle/attention/pattern.hpp>
#include <reticle/attention/plan.hpp>
#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle {

struct RETICLE_API AttentionOptions {
  /// Scores become cap * tanh(score / cap) before the attention mask is added (Gemma 2).
  std::optional<float> soft_cap;
  /// One logit per query head that takes part in the softmax with a value of zero (gpt-oss). The LSE includes it: of
  /// states that will be merged, give it to only one.
  std::span<const float> sink_logits;
  /// Return the normalised weight of every entry.
  bool weights = false;
  /// Let NaN and infinity through instead of throwing ValueError.
  bool allow_non_finite = false;

  /// ShapeError or ValueError unless the options and head sizes are supported.
  void validate(const AttentionInputs& inputs) const;
};

/// Weights aligned with to_csr(mask): rows over the logical shape.
struct AttentionWeights {
  Buffer<Index> row_ptr;
  Buffer<std::int32_t> indices;
  Array<float> values;
};

struct AttentionResult {
  Tensor output;  // (b, hq, sq, dv), dtype of the queries
  Tensor lse;     // (b, hq, sq) F32: log sum of exp(score) / p over the entries
  std::optional<AttentionWeights> weights;
};

/// output_i = sum_j w_ij v_j / sum_j w_ij over the entries j of row i, w_ij = exp(score_ij) / p_ij, with score =
/// scaling * q.k, then soft cap, then attention mask. A row without entries (or all forbidden) gives output 0 and LSE
/// -infinity. Head sizes up to 1024. Sums are float32; the result does not depend on the number of threads. ShapeError
/// when inputs and mask do not fit; ValueError naming the row when a result is not finite. Time O(nnz * (d + dv)),
/// memory O(threads * (d + dv)) beyond the result: nothing of size queries x keys.
///
/// For tensors on the current GPU the work is queued on context.stream, and the result lies there: head sizes up to
/// 256, one dtype, no weights, and non-finite results are returned as they are (docs/cuda.md). DeviceError for what is
/// not supported on a GPU.
RETICLE_API AttentionResult attention(const AttentionInputs& inputs, const Pattern& pattern,
                                      const AttentionOptions& options = {}, const Context& context = {});
/// The same on a GPU, into the caller's memory: output (b, hq, sq, dv) of the queries' dtype and lse (b, hq, sq) F32,
/// contiguous. Temporary memory of the call is released once the stream has finished it.
RETICLE_API void attention_into(const AttentionInputs& inputs, const Pattern& pattern, void* output, float* lse,
                                const AttentionOptions& options = {}, const Context& context = {});
RETICLE_API void attention_into(const AttentionInputs& inputs, const AttentionPlan& plan, void* output, float* lse,
                                const AttentionOptions& options = {}, const Context& context = {});

/// The same with a plan made before, for a mask that is used in several calls. ShapeError when the plan is for other
/// extents.
RETICLE_API AttentionResult attention(const AttentionInputs& inputs, const AttentionPlan& plan,
                                      const AttentionOptions& options = {}, const Context& context = {});

/// Merges the results over two disjoint sets of keys into the result over their union. ShapeError when their shapes
/// differ. Weights are dropped.
RETICLE_API AttentionResult merge(const AttentionResult& a, const AttentionResult& b);

}  // namespace reticle
