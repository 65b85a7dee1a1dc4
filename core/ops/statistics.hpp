// Statistics for samplers.
#pragma once

#include <cmath>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// The smallest sample size b of n weights, of which a base sample gave mean and standard deviation s, such that the
/// estimated total is off by more than the share `epsilon` of `chosen` + n * mean only if it is off by more than
/// `quantile` standard errors: the least b with quantile * sqrt(n^2 s^2 (1/b - 1/n)) <= epsilon * (chosen + n * mean).
/// 0 if the weights are all alike. vAttention (Desai et al. 2025).
RETICLE_HD inline Index adaptive_budget(Index n, double mean, double deviation, double chosen, double epsilon,
                                        double quantile) {
  if (!(deviation > 0) || !(quantile > 0)) return 0;
  const auto size = static_cast<double>(n);
  const double tolerated = epsilon * (chosen + size * mean) / (quantile * size);
  const double needed = 1 / (tolerated * tolerated / (deviation * deviation) + 1 / size);
  return static_cast<Index>(std::ceil(needed < size ? needed : size));
}

/// The standard normal quantile: x with P(X <= x) = p, for p in (0, 1).
RETICLE_API double normal_quantile(double p);

}  // namespace reticle
