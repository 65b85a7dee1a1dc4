// Pointwise operations of a decoder layer: RMSNorm, the gate of SwiGLU, residual sums.
#pragma once

#include <span>

#include <reticle/core/base/context.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle {

/// Each row of x (n, width) F32 becomes weight * x / sqrt(mean(x^2) + epsilon) (Zhang and Sennrich 2019); weight
/// (width).
RETICLE_API Tensor rms_norm(const TensorView& x, const TensorView& weight, float epsilon, const Context& context = {});
/// gate = silu(gate) * up, element by element (Shazeer 2020).
RETICLE_API void swiglu(std::span<float> gate, std::span<const float> up, const Context& context = {});
/// x += y.
RETICLE_API void add(std::span<float> x, std::span<const float> y);

}  // namespace reticle
