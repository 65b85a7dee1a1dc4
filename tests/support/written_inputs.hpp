// Attention inputs of numbers that a test writes out, small enough to work out by hand.
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle::testing {

inline Tensor tensor_of(std::initializer_list<Index> shape, const std::vector<float>& values) {
  Tensor tensor(DType::f32, shape);
  EXPECT_EQ(tensor.view().elements(), static_cast<Index>(values.size()));
  std::copy(values.begin(), values.end(), tensor.span<float>().begin());
  return tensor;
}

/// Scaling 1, not causal; the values are the keys. Owns the tensors that its inputs view.
struct WrittenInputs {
  Tensor queries, keys, attention_mask;
  AttentionInputs inputs;

  WrittenInputs(std::array<Index, 4> queries_shape, const std::vector<float>& query_values,
                std::array<Index, 4> keys_shape, const std::vector<float>& key_values)
      : queries(tensor_of({queries_shape[0], queries_shape[1], queries_shape[2], queries_shape[3]}, query_values)),
        keys(tensor_of({keys_shape[0], keys_shape[1], keys_shape[2], keys_shape[3]}, key_values)) {
    inputs.queries = queries.view();
    inputs.keys = inputs.values = keys.view();
  }

  /// An attention mask that forbids these keys to every query, and adds nothing to the others.
  void forbid(std::initializer_list<Index> forbidden) {
    attention_mask = Tensor(DType::f32, {1, 1, 1, keys.view().size(2)});
    std::ranges::fill(attention_mask.span<float>(), 0.0f);
    for (const Index key : forbidden)
      attention_mask.span<float>()[static_cast<std::size_t>(key)] = -std::numeric_limits<float>::infinity();
    inputs.attention_mask = attention_mask.view();
  }
};

}  // namespace reticle::testing
