// The algebra of attention states. The state of a set of keys is (output, LSE): the softmax-weighted mean of its values
// and the natural log of the sum of its weights. States of disjoint sets merge exactly, in any order; the state of the
// empty set, LSE -infinity, is the identity. Split-KV decoding, tiles and keys distributed over machines are folds over
// `merge`. After FlashInfer's state.cuh (Ye et al. 2025).
#pragma once

#include <cmath>
#include <limits>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// How to combine two states: output = a * output_a + b * output_b.
struct StateMerge {
  float a = 0, b = 0;
  float lse = -std::numeric_limits<float>::infinity();
};

RETICLE_HD inline StateMerge merge_states(float lse_a, float lse_b) {
  const float max = lse_a > lse_b ? lse_a : lse_b;
  if (max == -std::numeric_limits<float>::infinity()) return {};
  const float weight_a = std::exp(lse_a - max), weight_b = std::exp(lse_b - max);
  const float sum = weight_a + weight_b;
  return {weight_a / sum, weight_b / sum, max + std::log(sum)};
}

}  // namespace reticle
