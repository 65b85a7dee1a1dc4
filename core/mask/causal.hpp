// Causality of masks: query i of a mask stands at position keys - queries + i, and sees the keys up to it.
#pragma once

#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// The entries at or before each query's own position.
RETICLE_API Mask restrict_causal(const Mask& mask, const Context& context = {});
/// nnz of restrict_causal(mask), without making it.
RETICLE_API Index causal_nnz(const Mask& mask, const Context& context = {});

}  // namespace reticle
