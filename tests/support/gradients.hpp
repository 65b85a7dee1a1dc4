// Gradients of attention beside central differences of the reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <span>
#include <string>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>

#include "support/attention.hpp"

namespace reticle::testing {

/// A problem, its forward pass, and the gradient of a loss by its output.
struct Differentiated {
  OwnedInputs owned;
  Tensor d_output;
  AttentionOptions options;

  Differentiated(const Shapes& shapes, std::uint32_t seed, DType dtype = DType::f32) : owned(shapes, seed, dtype) {
    std::mt19937 random(seed + 1);
    d_output = random_tensor(DType::f32, {shapes.batch, shapes.heads, shapes.queries, shapes.value_dim}, random);
  }

  AttentionGradients gradients(const Mask& mask, const Context& context = {}) const {
    const AttentionResult result = attention(owned.inputs, mask, options, context);
    return attention_backward(owned.inputs, mask, result.output, result.lse, d_output, options, context);
  }
  /// sum(output * d_output) in double.
  double loss(const Mask& mask) const {
    const Reference reference = reference_attention(owned.inputs, mask, options);
    double sum = 0;
    const auto d = d_output.span<float>();
    for (std::size_t i = 0; i < d.size(); ++i) sum += reference.output[i] * static_cast<double>(d[i]);
    return sum;
  }
};

/// Central differences of `loss` by a few elements of `tensor`.
inline void expect_slopes(Tensor& tensor, std::span<const float> gradient, const std::function<double()>& loss,
                          const std::string& name) {
  const auto values = tensor.span<float>();
  ASSERT_EQ(values.size(), gradient.size()) << name;
  for (std::size_t i = 0; i < values.size(); i += std::max<std::size_t>(1, values.size() / 24)) {
    const float at = values[i], high = at + 2e-3f, low = at - 2e-3f;
    values[i] = high;
    const double above = loss();
    values[i] = low;
    const double below = loss();
    values[i] = at;
    const double slope = (above - below) / (static_cast<double>(high) - static_cast<double>(low));
    EXPECT_NEAR(gradient[i], slope, 2e-4 + 1e-3 * std::abs(slope)) << name << " " << i;
  }
}

inline void expect_gradients(Differentiated& problem, const Mask& mask) {
  const AttentionGradients gradients = problem.gradients(mask);
  const auto loss = [&] { return problem.loss(mask); };
  expect_slopes(problem.owned.queries, gradients.queries.span<float>(), loss, "queries");
  expect_slopes(problem.owned.keys, gradients.keys.span<float>(), loss, "keys");
  expect_slopes(problem.owned.values, gradients.values.span<float>(), loss, "values");
}

}  // namespace reticle::testing
