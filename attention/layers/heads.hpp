// Conversions between (tokens, heads, head_dim), as projections produce it, and (1, heads, tokens, head_dim), as
// attention takes it.
#pragma once

#include <algorithm>
#include <span>

#include <reticle/core/tensor/tensor.hpp>

namespace reticle {

/// Views tokens [begin, end) of (tokens, heads * head_dim) as (end - begin, heads, head_dim); no copy.
inline TensorView by_heads(const Tensor& packed, Index begin, Index end, Index head_dim) {
  const TensorView rows = packed.view().slice(0, begin, end);
  return {rows.data, rows.dtype, {rows.size(0), rows.size(1) / head_dim, head_dim}};
}
inline TensorView by_heads(const Tensor& packed, Index head_dim) {
  return by_heads(packed, 0, packed.view().size(0), head_dim);
}

/// Views (n, heads, d) as (1, heads, n, d); no copy.
inline TensorView heads_first(const TensorView& tokens_first) {
  TensorView view = tokens_first.permute({1, 0, 2});
  view.rank = 4;
  view.shape = {1, view.shape[0], view.shape[1], view.shape[2]};
  view.strides = {view.strides[0] * view.shape[1], view.strides[0], view.strides[1], view.strides[2]};
  return view;
}

/// Copies a (1, heads, n, d) F32 tensor to rows (one per token) that are `stride` elements apart.
inline void copy_tokens_first(const TensorView& heads_first, float* to, Index stride) {
  const Index width = heads_first.size(3);
  for (Index head = 0; head < heads_first.size(1); ++head) {
    for (Index i = 0; i < heads_first.size(2); ++i)
      std::copy_n(heads_first.at<float>(0, head, i, 0), width, to + i * stride + head * width);
  }
}

/// The same, adding instead of copying.
inline void add_tokens_first(const TensorView& heads_first, float* to, Index stride) {
  const Index width = heads_first.size(3);
  for (Index head = 0; head < heads_first.size(1); ++head) {
    for (Index i = 0; i < heads_first.size(2); ++i) {
      const float* from = heads_first.at<float>(0, head, i, 0);
      float* row = to + i * stride + head * width;
      for (Index j = 0; j < width; ++j) row[j] += from[j];
    }
  }
}

/// The elements of rows [begin, end), each `width` long.
template <class T>
std::span<T> rows_of(std::span<T> data, Index begin, Index end, Index width) {
  return data.subspan(static_cast<std::size_t>(begin * width), static_cast<std::size_t>((end - begin) * width));
}

/// A tensor of zeros, F32, of the same shape.
inline Tensor zeros_like(const TensorView& like) {
  Tensor tensor(DType::f32, std::span<const Index>(like.shape.data(), static_cast<std::size_t>(like.rank)));
  std::fill(tensor.span<float>().begin(), tensor.span<float>().end(), 0.0f);
  return tensor;
}

}  // namespace reticle
