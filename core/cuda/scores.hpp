// Scores of queries with keys in device memory.
#pragma once

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/runtime.hpp>

namespace reticle::cuda {

/// Writes scores (b * hq * sq, sk) = scaling * queries . keys; -infinity for keys that causality forbids. Tensors are
/// in device memory, F32, F16 or BF16, with contiguous rows aligned to 16 bytes. Does not wait. DeviceError for head
/// sizes other than 64, 128 and 256.
RETICLE_API void dot_scores(const AttentionInputs& inputs, float* scores, Stream stream);

}  // namespace reticle::cuda
