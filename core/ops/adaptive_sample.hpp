// Samples whose size is decided by a small base sample: as many keys as are needed to estimate a row's softmax
// denominator within epsilon. vAttention (Desai et al. 2025).
#pragma once

#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/random.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/ops/softmax_mass.hpp>
#include <reticle/core/rule.hpp>

namespace reticle {

/// One row's scores, and the estimated sum of the weights over the keys chosen already. Weights are computed only for
/// the keys that are asked for: the chosen ones and a sample, a fraction of all.
struct RETICLE_API RowWeights {
  RowWeights(std::span<const float> scores, const Mask& previous, RowId row);

  /// exp(score - highest score); 0 where forbidden.
  double of(Index key) const;
  /// Mean and sample standard deviation of the weights of some keys.
  std::pair<double, double> moments(std::span<const std::int32_t> keys) const;

  std::span<const float> scores;
  std::optional<MassScale> scale;  // absent: no key is allowed
  std::vector<Run> chosen;
  double chosen_sum = 0;
};

/// Draws a row's keys without replacement, as a rule of kind `adaptive` says.
RETICLE_API void adaptive_sample(const Rule& rule, const AttentionInputs& inputs, const RowWeights& weights, RowId row,
                                 Philox& random, Selection& selection);

/// The size of the base sample from n candidates.
RETICLE_API Index base_sample_size(const Size& base, Index n);

}  // namespace reticle
