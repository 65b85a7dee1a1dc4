// Small statistics that samplers need.
#pragma once

#include <reticle/core/base/export.hpp>

namespace reticle {

/// The standard normal quantile: x with P(X <= x) = p, for p in (0, 1).
RETICLE_API double normal_quantile(double p);

}  // namespace reticle
