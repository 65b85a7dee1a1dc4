// Gradients of attention over a mask.
#pragma once

#include <vector>

#include <reticle/attention/executor.hpp>

namespace reticle {

/// F32, whatever the dtype of the inputs: sums over rows and heads are float32, and the caller rounds once when storing
/// them.
struct AttentionGradients {
  Tensor queries;                  // (b, hq, sq, d)
  Tensor keys;                     // (b, hkv, sk, d), summed over the query heads of a group
  Tensor values;                   // (b, hkv, sk, dv)
  std::vector<float> sink_logits;  // (hq), with respect to options.sink_logits
};

/// Gradients of attention(inputs, mask, options), from its output (b, hq, sq, dv), its lse (b, hq, sq) F32 and d_output
/// (b, hq, sq, dv), the gradient of a loss with respect to the output. Any strides. Weights are recomputed from the LSE
/// (Dao et al. 2022), and entries sampled with p < 1 are weighted as in attention; the mask, its p and the attention
/// mask get no gradient. Sums are float32 and do not depend on the number of threads. ShapeError and ValueError under
/// the same conditions as attention. Time O(nnz * (d + dv)); memory O(keys * (d + dv)) per KV head, for at most 8
/// partial sums in all.
/// For tensors on the current GPU the work is queued on context.stream, and the gradients lie there; sink logits are a
/// DeviceError.
RETICLE_API AttentionGradients attention_backward(const AttentionInputs& inputs, const Pattern& pattern,
                                                  const TensorView& output, const TensorView& lse,
                                                  const TensorView& d_output, const AttentionOptions& options = {},
                                                  const Context& context = {});

/// The same on a GPU, into the caller's memory: contiguous F32 of the extents of queries, keys and values.
RETICLE_API void attention_backward_into(const AttentionInputs& inputs, const Pattern& pattern,
                                         const TensorView& output, const TensorView& lse, const TensorView& d_output,
                                         float* d_queries, float* d_keys, float* d_values,
                                         const AttentionOptions& options = {}, const Context& context = {});

/// ShapeError or DeviceError unless output, lse and d_output fit attention over these inputs and lie on their device.
RETICLE_API void require_gradient_inputs(const AttentionInputs& inputs, const TensorView& output, const TensorView& lse,
                                         const TensorView& d_output);

}  // namespace reticle
