#include <cmath>
#include <numbers>
#include <string>

#include <boost/math/special_functions/erf.hpp>

#include <reticle/core/base/error.hpp>
#include <reticle/core/ops/statistics.hpp>

namespace reticle {

double normal_quantile(double p) {
  if (!(p > 0 && p < 1)) throw ValueError("normal_quantile: p is " + std::to_string(p) + "; expected a p in (0, 1)");
  return -std::numbers::sqrt2 * boost::math::erfc_inv(2 * p);
}

}  // namespace reticle
