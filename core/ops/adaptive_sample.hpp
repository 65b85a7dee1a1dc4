// Samples whose size a small base sample decides: as many keys as a row's softmax denominator needs to be within
// epsilon of the truth. vAttention (Desai et al. 2025).
#pragma once

#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/random.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/ops/mass.hpp>
#include <reticle/core/rule.hpp>

namespace reticle {

/// One row's scores, and what the keys chosen already sum to. Weights are computed for the keys that are asked for: the
/// chosen ones and a sample, a fraction of all.
struct RETICLE_API RowWeights {
  RowWeights(std::span<const float> scores, const Mask& previous, RowId row);

  /// exp(score - highest score); 0 where forbidden.
  double of(Index key) const;
  /// Mean and sample standard deviation of the weights of some keys.
  std::pair<double, double> moments(std::span<const std::int32_t> keys) const;

  std::span<const float> scores;
  std::optional<MassScale> scale;  // none: no key is allowed
  std::vector<Run> chosen;
  double chosen_sum = 0;
};

/// What a rule of kind `adaptive` draws for a row, without replacement.
RETICLE_API void adaptive_sample(const Rule& rule, const AttentionInputs& inputs, const RowWeights& weights, RowId row,
                                 Philox& random, Selection& selection);

/// How many keys the base sample of n candidates has.
RETICLE_API Index base_sample_size(const Size& base, Index n);

}  // namespace reticle
