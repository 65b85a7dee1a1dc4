// Products of bfloat16 matrices, two multiply-adds a lane, on processors that have them (AVX512_BF16: Zen 4, Cooper
// Lake, Sapphire Rapids and later). Internal to the tile kernel.
#pragma once

#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle {

/// Two neighbours along the dimension that is summed over.
struct alignas(4) Bf16Pair {
  BFloat16 first, second;
};

/// Pair (m, k) of a matrix is the element at data[m * row_stride + k * column_stride] and the one after it.
struct PairMatrix {
  const BFloat16* data = nullptr;
  Index row_stride = 0, column_stride = 0;
};

/// Columns that are multiplied together.
inline constexpr Index kPairLanes = 16;

/// c = scale * c + a b, for a (rows, depth), b (depth, columns) and c (rows, columns); depth counts pairs. Rows of b
/// and c are `stride` apart; columns is a multiple of kPairLanes, at most 64; `scale` (columns) is null for 0. Sums are
/// float32. Slow where has_bf16_pairs() is false.
RETICLE_API void multiply_bf16(PairMatrix a, Index rows, Index depth, const Bf16Pair* b, Index columns, Index stride,
                               const float* scale, float* c);

/// Pairs `count` rows of a BF16 matrix with stride 1 along its width, two by two: writes ((count + 1) / 2, width) to
/// `to`; the last row of an odd count is paired with zeros. `indices` names the rows; null means the first `count`.
RETICLE_API void pair_rows(const TensorView& matrix, const std::int32_t* indices, Index count, Bf16Pair* to);

}  // namespace reticle
