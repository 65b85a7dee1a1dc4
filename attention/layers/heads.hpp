// Between (tokens, heads, head_dim), as projections make it, and (1, heads, tokens, head_dim), as attention takes it.
#pragma once

#include <reticle/core/tensor/tensor.hpp>

namespace reticle {

/// (n, heads, d) seen as (1, heads, n, d); no copy.
inline TensorView heads_first(const TensorView& tokens_first) {
  TensorView view = tokens_first.permute({1, 0, 2});
  view.rank = 4;
  view.shape = {1, view.shape[0], view.shape[1], view.shape[2]};
  view.strides = {view.strides[0] * view.shape[1], view.strides[0], view.strides[1], view.strides[2]};
  return view;
}

/// Rows of a (1, heads, n, d) F32 tensor to `to`, where the first head of a token stands and tokens are `stride`
/// elements apart; 0: heads * d.
inline void copy_tokens_first(const TensorView& heads_first, float* to, Index stride = 0) {
  const Index heads = heads_first.size(1), count = heads_first.size(2), width = heads_first.size(3);
  if (stride == 0) stride = heads * width;
  for (Index head = 0; head < heads; ++head) {
    for (Index i = 0; i < count; ++i)
      std::copy_n(heads_first.at<float>(0, head, i, 0), width, to + i * stride + head * width);
  }
}

}  // namespace reticle
