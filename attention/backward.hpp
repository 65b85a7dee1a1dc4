// Gradients of attention over a mask.
#pragma once

#include <vector>

#include <reticle/attention/executor.hpp>

namespace reticle {

/// F32, whatever the inputs are: sums over rows and heads are float32, and rounded once by who stores them.
struct AttentionGradients {
  Tensor queries;                  // (b, hq, sq, d)
  Tensor keys;                     // (b, hkv, sk, d), summed over the query heads of a group
  Tensor values;                   // (b, hkv, sk, dv)
  std::vector<float> sink_logits;  // (hq), of options.sink_logits
};

/// Of attention(inputs, mask, options), whose output (b, hq, sq, dv) and lse (b, hq, sq) F32 it is given with
/// d_output (b, hq, sq, dv), the gradient of a loss by the output. Any strides. Weights are computed again from the
/// LSE (Dao et al. 2022), entries drawn with p < 1 as attention weighs them; the mask, its p and the attention mask get
/// no gradient. Sums are float32 and do not depend on the number of threads. ShapeError and ValueError as of attention.
/// Time O(nnz * (d + dv)); memory O(keys * (d + dv)) per KV head, for at most 8 partial sums in all.
RETICLE_API AttentionGradients attention_backward(const AttentionInputs& inputs, const Mask& mask,
                                                  const TensorView& output, const TensorView& lse,
                                                  const TensorView& d_output, const AttentionOptions& options = {},
                                                  const Context& context = {});

}  // namespace reticle
