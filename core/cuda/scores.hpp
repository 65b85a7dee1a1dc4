// Scores of queries with keys in device memory.
#pragma once

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/runtime.hpp>

namespace reticle::cuda {

/// Keys that are chosen whatever they score: the first `sinks`, and the last `window` up to a row's own position.
struct KeptKeys {
  Index sinks = 0, window = 0;
};

/// scores (b * hq * sq, sk) = scaling * queries . keys; -infinity for keys that causality forbids, +infinity for those
/// that are kept anyway, so that a top-k which counts them selects their union with the best of the others. Tensors are
/// in device memory, F32, F16 or BF16, rows contiguous and aligned to 16 bytes; waits for nothing. DeviceError for head
/// sizes other than 64, 128 and 256.
RETICLE_API void dot_scores(const AttentionInputs& inputs, const KeptKeys& kept, float* scores, Stream stream);

}  // namespace reticle::cuda
