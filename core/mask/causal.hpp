// Causal restriction of masks. Query i has position keys - queries + i and sees the keys up to that position.
#pragma once

#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// The mask's entries at or before each query's position.
RETICLE_API Mask restrict_causal(const Mask& mask, const Context& context = {});
/// nnz of restrict_causal(mask), without building that mask.
RETICLE_API Index causal_nnz(const Mask& mask, const Context& context = {});

}  // namespace reticle
