#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include <reticle/core/ops/lsh.hpp>

namespace reticle {

namespace {

/// Codes of one machine word are compared without branches, so that compilers do many at once.
template <class Code>
Index equal_codes(const std::uint8_t* a, const std::uint8_t* b, Index tables) {
  std::uint32_t found = 0;
  for (Index table = 0; table < tables; ++table) {
    Code left, right;
    std::memcpy(&left, a + table * Index{sizeof(Code)}, sizeof(Code));
    std::memcpy(&right, b + table * Index{sizeof(Code)}, sizeof(Code));
    found += left == right ? 1u : 0u;
  }
  return found;
}

}  // namespace

bool collide(const std::uint8_t* a, const std::uint8_t* b, Index tables, Index code_bytes, Index least) {
  if (code_bytes == 1) return equal_codes<std::uint8_t>(a, b, tables) >= least;
  if (code_bytes == 2) return equal_codes<std::uint16_t>(a, b, tables) >= least;
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
