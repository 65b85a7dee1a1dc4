// Objectives that a search over configurations minimises: one number from a sparse pattern's error and density. The
// definitions are those of sparse-attention-hub.
#pragma once

#include <algorithm>

namespace reticle {

/// Favours the least error at a density of at most `percent` %; density above that costs ten times as much as error.
constexpr double objective_at_density(double error, double density, double percent) {
  return 0.99 * error + 0.01 * density + 10 * std::max(0.0, density - percent / 100);
}

/// Error plus a tenth of the density, with a prohibitive penalty for densities above one half.
constexpr double balanced_objective(double error, double density) {
  return error + 0.1 * density + (density > 0.5 ? 5.0 : 0.0);
}

}  // namespace reticle
