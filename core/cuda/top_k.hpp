// Top-k of rows of scores in device memory.
#pragma once

#include <reticle/core/cuda/runtime.hpp>

namespace reticle::cuda {

/// Selects the k highest of each of `rows` contiguous rows of `count` scores: writes their indices, ascending, from
/// indices[row * k] on, and their number (less than k where scores are NaN or -infinity) to counts[row]. Ties go to the
/// lower index. Selects the same indices as the CPU, bit for bit. Pointers are to device memory. Does not wait.
/// ValueError unless 0 < k <= 2^20 and the extents fit.
RETICLE_API void top_k(const float* scores, Index rows, Index count, Index k, std::int32_t* indices,
                       std::int32_t* counts, Stream stream);

}  // namespace reticle::cuda
