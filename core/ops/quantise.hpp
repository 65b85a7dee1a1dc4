// Uniform quantisation with results kept as floats, which simulates a low-bit cache of labels.
#pragma once

#include <span>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// Rounds the values (half to even) to 2^bits levels between their least and largest. bits in [1, 16].
RETICLE_API void fake_quantise(std::span<float> values, Index bits);

}  // namespace reticle
