// Random attention inputs, and the reference executor: attention in plain double-precision loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/executor.hpp>
#include <reticle/core/mask/convert.hpp>

namespace reticle::testing {

struct Shapes {
  Index batch = 1, heads = 4, kv_heads = 2, queries = 5, keys = 37, head_dim = 16, value_dim = 16;
};

inline Tensor random_tensor(DType dtype, std::initializer_list<Index> shape, std::mt19937& random, float scale = 1) {
  Tensor tensor(DType::f32, shape);
  std::normal_distribution<float> normal(0, scale);
  for (float& value : tensor.span<float>()) value = normal(random);
  return Tensor::copy(tensor, dtype);
}

/// Owns the tensors that its inputs view.
struct OwnedInputs {
  Tensor queries, keys, values, attention_mask;
  AttentionInputs inputs;

  OwnedInputs(const Shapes& s, std::uint32_t seed, DType dtype = DType::f32) {
    std::mt19937 random(seed);
    queries = random_tensor(dtype, {s.batch, s.heads, s.queries, s.head_dim}, random);
    keys = random_tensor(dtype, {s.batch, s.kv_heads, s.keys, s.head_dim}, random);
    values = random_tensor(dtype, {s.batch, s.kv_heads, s.keys, s.value_dim}, random);
    inputs.queries = queries.view();
    inputs.keys = keys.view();
    inputs.values = values.view();
    inputs.scaling = 1 / std::sqrt(static_cast<float>(s.head_dim));
  }
};

struct Reference {
  std::vector<double> output, lse, weights;  // weights is dense, (b, h, q, k)
};

inline double element(const TensorView& t, Index b, Index h, Index i, Index j) {
  return static_cast<double>(read_float(t, b * t.stride(0) + h * t.stride(1) + i * t.stride(2) + j * t.stride(3)));
}

inline Reference reference_attention(const AttentionInputs& in, const Mask& mask,
                                     const AttentionOptions& options = {}) {
  const double infinity = std::numeric_limits<double>::infinity();
  const MaskShape shape = in.shape();
  const Array<float> p = to_dense(mask);
  const Index dv = in.values.size(3);
  Reference reference;
  for (Index row = 0; row < shape.rows(); ++row) {
    const RowId id = shape.row_of_logical(row);
    std::vector<double> scores(static_cast<std::size_t>(shape.keys), -infinity);
    double max = -infinity;
    const bool has_sink = !options.sink_logits.empty();
    const double sink =
        has_sink ? static_cast<double>(options.sink_logits[static_cast<std::size_t>(id.head)]) : -infinity;
    for (Index key = 0; key < shape.keys; ++key) {
      if (p[static_cast<std::size_t>(row * shape.keys + key)] == 0) continue;
      if (in.causal && key > in.position(id.query)) continue;
      double score = 0;
      for (Index i = 0; i < in.head_dim(); ++i)
        score += element(in.queries, id.batch, id.head, id.query, i) *
                 element(in.keys, id.batch, in.kv_head(id.head), key, i);
      score *= static_cast<double>(in.scaling);
      if (options.soft_cap) score = *options.soft_cap * std::tanh(score / *options.soft_cap);
      if (in.attention_mask) {
        const TensorView& m = *in.attention_mask;
        const auto at = [&](int dim, Index i) { return m.size(dim) == 1 ? 0 : i; };
        const double bias = element(m, at(0, id.batch), at(1, id.head), at(2, id.query), at(3, key));
        score = bias < -1e37 ? -infinity : score + bias;
      }
      scores[static_cast<std::size_t>(key)] = score;
      max = std::max(max, score);
    }
    max = std::max(max, sink);
    double sum = has_sink ? std::exp(sink - max) : 0;
    std::vector<double> weights(scores.size(), 0), output(static_cast<std::size_t>(dv), 0);
    for (std::size_t key = 0; key < scores.size(); ++key) {
      if (scores[key] == -infinity) continue;
      weights[key] =
          std::exp(scores[key] - max) / static_cast<double>(p[static_cast<std::size_t>(row * shape.keys) + key]);
      sum += weights[key];
    }
    for (std::size_t key = 0; key < scores.size(); ++key) {
      if (sum > 0) weights[key] /= sum;
      for (Index j = 0; j < dv; ++j)
        output[static_cast<std::size_t>(j)] +=
            weights[key] * element(in.values, id.batch, in.kv_head(id.head), static_cast<Index>(key), j);
    }
    reference.lse.push_back(sum > 0 ? max + std::log(sum) : -infinity);
    reference.output.insert(reference.output.end(), output.begin(), output.end());
    reference.weights.insert(reference.weights.end(), weights.begin(), weights.end());
  }
  return reference;
}

/// Tiles of bfloat16 round weights to bfloat16, where the processor multiplies pairs of them: an error of 2^-9 of what
/// a weight brings. Values here are of order 1.
inline double rounding_of_weights(DType dtype) { return dtype == DType::bf16 ? 2e-3 : 0; }

inline double rounding(DType dtype) { return dtype == DType::f32 ? 2e-6 : dtype == DType::f16 ? 1e-3 : 8e-3; }

inline void expect_agrees(const AttentionResult& result, const Reference& reference, double tolerance = 5e-6) {
  const TensorView& output = result.output.view();
  tolerance = std::max(tolerance, rounding_of_weights(output.dtype));
  for (Index i = 0; i < output.elements(); ++i) {
    const double expected = reference.output[static_cast<std::size_t>(i)];
    ASSERT_NEAR(read_float(output, i), expected, tolerance + rounding(output.dtype) * std::abs(expected))
        << "output " << i;
  }
  for (std::size_t i = 0; i < reference.lse.size(); ++i) {
    if (std::isinf(reference.lse[i])) {
      ASSERT_EQ(result.lse.span<float>()[i], -std::numeric_limits<float>::infinity());
    } else {
      ASSERT_NEAR(result.lse.span<float>()[i], reference.lse[i], 2e-5);
    }
  }
}

}  // namespace reticle::testing
