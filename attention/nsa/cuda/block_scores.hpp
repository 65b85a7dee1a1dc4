// Block scores for the selection of Native Sparse Attention, in device memory.
#pragma once

#include <reticle/attention/nsa/config.hpp>
#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/runtime.hpp>

namespace reticle::cuda {

/// Whether block_scores has a kernel for these queries and compressed keys: F16 or BF16, head_dim 64 or 128, at most 64
/// query heads per KV head, and windows and blocks of few strides.
RETICLE_API bool block_scores_serve(const AttentionInputs& inputs, const NsaConfig& config);

/// Writes the scores (b, hkv, sq, blocks) F32 of the first `blocks` blocks, as defined by reticle::block_scores, for
/// queries (b, hq, sq, d) from position `first_query` on and compressed keys (b, hkv, m, d); lse (b, hq, sq) is that of
/// compressed attention. inputs.values is not read. One launch, no waiting. DeviceError where there is no kernel.
RETICLE_API void block_scores(const AttentionInputs& inputs, Index first_query, const NsaConfig& config,
                              const float* lse, Index blocks, float* scores, Stream stream);

}  // namespace reticle::cuda
