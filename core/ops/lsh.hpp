// Locality-sensitive hashing by signs of random projections (SimHash, Charikar 2002): codes of K bits in each of L
// tables, and the probability that two vectors share them.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <span>
#include <vector>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// The probability that two vectors with this cosine share all `bits` of a table in at least `least` (1 or 2) of
/// `tables` tables: p = (1 - angle / pi)^bits, then 1 - (1-p)^tables [- tables p (1-p)^(tables-1)].
RETICLE_HD inline double collision_probability(double cosine, Index bits, Index tables, Index least) {
  const double bounded = cosine < -1 ? -1 : cosine > 1 ? 1 : cosine;
  const double bit = 1 - std::acos(bounded) / std::numbers::pi;
  const double table = std::pow(bit, static_cast<double>(bits));
  const double once = -std::expm1(static_cast<double>(tables) * std::log1p(-table));
  if (least <= 1) return once;
  const double exactly_one =
      table < 1 ? static_cast<double>(tables) * table * std::exp(static_cast<double>(tables - 1) * std::log1p(-table))
                : (tables == 1 ? 1.0 : 0.0);
  return once > exactly_one ? once - exactly_one : 0;
}

/// Parameters of sampling keys by hash collisions (MagicPIG, Chen et al. 2024).
struct RETICLE_API LshRecipe {
  Index tables = 1, bits = 1;                       // L tables of K bits
  Index min_collisions = 1;                         // tables, 1 or 2, that a key shares with the query
  bool center = true, center_query = true;          // subtract the mean of a sequence's first keys
  Index mean_skips_first = 0, mean_skips_last = 0;  // how many of those the mean leaves out
  bool lift = true;                                 // extends keys by one dimension onto a sphere
  std::uint64_t seed = 0;

  Index width(Index head_dim) const { return head_dim + (lift ? 1 : 0); }
  /// Bytes of one table's code; a vector's codes are (tables, code_bytes).
  Index code_bytes() const { return (bits + 7) / 8; }
  /// Standard normal vectors, (tables * bits, width).
  std::vector<float> projections(Index head_dim, int layer) const;
  bool operator==(const LshRecipe&) const = default;
};

/// Appends, ascending, the indices of those of `count` keys whose codes (count, tables, code_bytes) share at least
/// min_collisions tables with a query's.
RETICLE_API void collisions(const std::uint8_t* code, const std::uint8_t* codes, Index count, const LshRecipe& recipe,
                            std::vector<std::int32_t>& found);

/// Writes bit i % 8 of bits[i / 8] for each of `count` values: whether it is above zero. The bits after the last are 0.
RETICLE_API void positive_bits(const float* values, Index count, std::uint8_t* bits);

}  // namespace reticle
