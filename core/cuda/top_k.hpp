// Top-k of rows of scores in device memory.
#pragma once

#include <reticle/core/cuda/runtime.hpp>

namespace reticle::cuda {

/// Of each of `rows` rows of `count` scores, one after another: the indices of the k highest, ascending, to
/// indices[row * k], and how many there are (fewer than k where scores are NaN or -infinity) to counts[row]. Equal
/// scores go to the lower index: the CPU's selection, bit for bit. Pointers are the device's; waits for nothing.
/// ValueError unless 0 < k <= 2^20 and the extents fit.
RETICLE_API void top_k(const float* scores, Index rows, Index count, Index k, std::int32_t* indices,
                       std::int32_t* counts, Stream stream);

}  // namespace reticle::cuda
