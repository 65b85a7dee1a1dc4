// Applies masks to dense tensors of their logical shape: for small problems, tests and interactive use.
#pragma once

#include <span>

#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// x * p.
RETICLE_API Array<float> apply(const Mask& mask, std::span<const float> x, const Context& context = {});
/// x / p where attended, else 0: the Horvitz-Thompson weighting.
RETICLE_API Array<float> apply_inverse(const Mask& mask, std::span<const float> x, const Context& context = {});

}  // namespace reticle
