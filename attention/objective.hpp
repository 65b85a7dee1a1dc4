// One figure for a sparse pattern's error and density: what a search over configurations minimises. Those of
// sparse-attention-hub.
#pragma once

#include <algorithm>

namespace reticle {

/// Least error at a density of at most `percent` %: what is above it costs ten times as much as error.
constexpr double objective_at_density(double error, double density, double percent) {
  return 0.99 * error + 0.01 * density + 10 * std::max(0.0, density - percent / 100);
}

/// Error and a tenth of the density; above one half it is out of the question.
constexpr double balanced_objective(double error, double density) {
  return error + 0.1 * density + (density > 0.5 ? 5.0 : 0.0);
}

}  // namespace reticle
