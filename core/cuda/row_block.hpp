// Rows of queries, keys and values, distributed over neighbouring lanes of a warp in pieces of 16 bytes.
#pragma once

#include <cstring>
#include <limits>
#include <optional>

#include <reticle/core/base/types.hpp>
#include <reticle/core/cuda/block.hpp>
#include <reticle/core/tensor/tensor_view.hpp>
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace reticle::cuda {

/// Strides of a tensor in elements. The last dimension is contiguous, and rows are aligned to 16 bytes.
struct Strides {
  Index batch = 0, head = 0, row = 0;
};
inline Strides strides_of(const TensorView& view) { return {view.stride(0), view.stride(1), view.stride(2)}; }

/// An additive attention mask: F32, broadcast where a stride is 0; null: none.
struct BiasView {
  const float* data = nullptr;
  Strides strides;
  Index key_stride = 0;

  static BiasView of(const std::optional<TensorView>& mask) {
    if (!mask) return {};
    const auto stride = [&](int dim) { return mask->size(dim) == 1 ? 0 : mask->stride(dim); };
    return {static_cast<const float*>(mask->data), {stride(0), stride(1), stride(2)}, stride(3)};
  }
  RETICLE_HD const float* row(int batch, int head, int query) const {
    return data + batch * strides.batch + head * strides.head + query * strides.row;
  }
  /// The number to add to a score; -infinity for a forbidden key, as in AttentionMaskRow.
  RETICLE_HD float of(const float* row, int key) const {
    const float bias = row[key * key_stride];
    constexpr float kForbidden = -std::numeric_limits<float>::max() / 2;
    return bias <= kForbidden ? -std::numeric_limits<float>::infinity() : bias;
  }
};

/// to_float, with the hardware's instruction where there is one.
template <class T>
RETICLE_HD float widened(T x) {
  return to_float(x);
}
#if defined(__CUDA_ARCH__)
template <>
__device__ inline float widened<Half>(Half x) {
  return __half2float(__ushort_as_half(x.bits));
}
#endif

/// 16 bytes of a row.
template <class T>
struct Piece {
  static constexpr int kElements = 16 / static_cast<int>(sizeof(T));
  alignas(16) T elements[extent<kElements>];

  RETICLE_HD static Piece load(const T* from) {
    Piece piece;
#if defined(__CUDA_ARCH__)
    *reinterpret_cast<uint4*>(piece.elements) = __ldg(reinterpret_cast<const uint4*>(from));
#else
    std::memcpy(piece.elements, from, sizeof(piece.elements));
#endif
    return piece;
  }
};

/// How many neighbouring heads of a group a block processes together, so that it loads keys once for them; registers
/// limit the number to 4.
constexpr int heads_taken_together(Index group) { return group % 4 == 0 ? 4 : group % 2 == 0 ? 2 : 1; }

/// Calls work.operator()<together>().
template <class Work>
void dispatch_together(int together, Work&& work) {
  if (together == 4) return work.template operator()<4>();
  if (together == 2) return work.template operator()<2>();
  work.template operator()<1>();
}

/// The lanes that share a row: lane l holds pieces l, l + kCount, ...
template <class T, int head_dim>
struct RowLanes {
  static constexpr int kPieces = head_dim / Piece<T>::kElements;
  static constexpr int kCount = kPieces < kWarp ? kPieces : kWarp;
  static constexpr int kLanePieces = kPieces / kCount;  // pieces per lane
  static_assert(kPieces % kCount == 0 && (kCount & (kCount - 1)) == 0);
};

/// A lane's share of a row, in the tensor's dtype.
template <class T, int head_dim>
struct RowShare {
  using Lanes = RowLanes<T, head_dim>;
  Piece<T> pieces[extent<Lanes::kLanePieces>];

  RETICLE_HD void load(const T* row, int lane) {
    unrolled<Lanes::kLanePieces>(
        [&](int o) { pieces[o] = Piece<T>::load(row + (o * Lanes::kCount + lane) * Piece<T>::kElements); });
  }
};

/// A lane's share of a row, as floats.
template <class T, int head_dim>
struct FloatShare {
  using Lanes = RowLanes<T, head_dim>;
  static constexpr int kElements = Piece<T>::kElements;
  float of[extent<Lanes::kLanePieces>][extent<kElements>] = {};

  RETICLE_HD void load(const T* row, int lane) {
    RowShare<T, head_dim> share;
    share.load(row, lane);
    each([&](int o, int e, float& x) { x = widened(share.pieces[o].elements[e]); });
  }
  /// Calls f(piece, index in the piece, element) for all elements.
  template <class F>
  RETICLE_HD void each(F&& f) {
    unrolled<Lanes::kLanePieces>([&](int o) { unrolled<kElements>([&](int e) { f(o, e, of[o][e]); }); });
  }
  RETICLE_HD float product(const RowShare<T, head_dim>& row) {
    float sum = 0;
    each([&](int o, int e, float x) { sum += x * widened(row.pieces[o].elements[e]); });
    return sum;
  }
  RETICLE_HD void scale(float factor) {
    each([&](int, int, float& x) { x *= factor; });
  }
  RETICLE_HD void add(float factor, const RowShare<T, head_dim>& row) {
    each([&](int o, int e, float& x) { x += factor * widened(row.pieces[o].elements[e]); });
  }
};

}  // namespace reticle::cuda
