#include <algorithm>
#include <cmath>
#include <numbers>

#include <reticle/core/ops/lsh.hpp>

namespace reticle {

bool collide(const std::uint8_t* a, const std::uint8_t* b, Index tables, Index code_bytes, Index least) {
  Index found = 0;
  for (Index table = 0; table < tables; ++table, a += code_bytes, b += code_bytes) {
    if (std::equal(a, a + code_bytes, b) && ++found == least) return true;
  }
  return false;
}

double collision_probability(double cosine, Index bits, Index tables, Index least) {
  const double bit = 1 - std::acos(std::clamp(cosine, -1.0, 1.0)) / std::numbers::pi;
  const double table = std::pow(bit, static_cast<double>(bits));
  const double once = -std::expm1(static_cast<double>(tables) * std::log1p(-table));
  if (least <= 1) return once;
  const double exactly_one =
      table < 1 ? static_cast<double>(tables) * table * std::exp(static_cast<double>(tables - 1) * std::log1p(-table))
                : (tables == 1 ? 1.0 : 0.0);
  return std::max(0.0, once - exactly_one);
}

}  // namespace reticle
