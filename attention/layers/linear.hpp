// Matrix products of a model's layers.
#pragma once

#include <reticle/core/base/context.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle {

/// y = x W^T: x (n, in) F32 contiguous, weight (out, in) F32, F16 or BF16 with rows of stride 1; y (n, out) F32. A few
/// rows are computed as dot products with the weights as they are stored (bound by reading them); more rows use BLAS,
/// with 16-bit weights converted panel by panel to floats. ShapeError, naming the shapes, when they do not fit.
RETICLE_API Tensor linear(const TensorView& x, const TensorView& weight, const Context& context = {});

struct LinearGradients {
  Tensor x;       // (n, in)
  Tensor weight;  // (out, in)
};
/// Gradients of linear, for dy (n, out) F32 and F32 weights.
RETICLE_API LinearGradients linear_backward(const TensorView& x, const TensorView& weight, const TensorView& dy);

}  // namespace reticle
