// Dot products of a few queries with many keys: the kernel behind exact scores and the executor.
#pragma once

#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle {

/// How many queries share one pass over the keys.
inline constexpr Index kQueriesPerPass = 4;

/// Rows of a matrix that will be read next, which a kernel prefetches while it computes.
struct UpcomingRows {
  const char* data = nullptr;
  Index stride = 0, size = 0;  // bytes from row to row, bytes of a row
  const std::int32_t* indices = nullptr;
  Index count = 0;

  UpcomingRows() = default;
  UpcomingRows(const TensorView& matrix, const std::int32_t* row_indices, Index rows)
      : data(static_cast<const char*>(matrix.data)),
        stride(matrix.stride(0) * size_of(matrix.dtype)),
        size(row_bytes(matrix.dtype, matrix.stride(1) == 1 ? matrix.size(1) : 1)),
        indices(row_indices),
        count(rows) {}
};

/// scores[r * stride + i] = queries[r] . keys[i], for r < rows (at most kQueriesPerPass) and all i.
/// queries (rows, d) F32 contiguous; keys (n, d) F32, F16 or BF16 of any strides, Q8 or Q4. Sums in float, in one order
/// per pair of vectors, so a product does not depend on the products computed with it. For quantised keys the query is
/// rounded to 10 (1024 channels), 13 (128), 14 (64) or 16 bits (16), and the sum of the products of integers is exact.
/// Reads each key once: n * d * size bytes.
RETICLE_API void dot(const float* queries, Index rows, const TensorView& keys, float* scores, Index stride);

/// The same for the `count` keys at `indices`; `next` are rows to prefetch meanwhile.
RETICLE_API void dot_gather(const float* queries, Index rows, const TensorView& keys, const std::int32_t* indices,
                            Index count, float* scores, Index stride, const UpcomingRows& next = {});

}  // namespace reticle
