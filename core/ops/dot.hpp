// Dot products of a few queries with many keys: the kernel under exact scores and the executor.
#pragma once

#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle {

/// How many queries share one pass over the keys.
inline constexpr Index kQueriesPerPass = 4;

/// scores[r * stride + i] = queries[r] . keys[i], for r < rows (at most kQueriesPerPass) and all i.
/// queries (rows, d) F32 contiguous; keys (n, d) F32, F16 or BF16, any strides. Sums in float, in one order per pair of
/// vectors, so a pair's product does not depend on what it is computed beside. Reads each key once: n * d * size bytes.
RETICLE_API void dot(const float* queries, Index rows, const TensorView& keys, float* scores, Index stride);

/// The same for the keys that `indices` name.
RETICLE_API void dot_gather(const float* queries, Index rows, const TensorView& keys, const std::int32_t* indices,
                            Index count, float* scores, Index stride);

}  // namespace reticle
