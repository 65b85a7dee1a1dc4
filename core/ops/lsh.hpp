// Locality-sensitive hashing by signs of random projections (SimHash, Charikar 2002): codes of K bits in each of L
// tables, and how likely two vectors share them.
#pragma once

#include <cstdint>
#include <span>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// Whether two vectors have the same code in at least `least` tables. Codes are (tables, code_bytes).
RETICLE_API bool collide(const std::uint8_t* a, const std::uint8_t* b, Index tables, Index code_bytes, Index least);

/// The probability that two vectors of this cosine share all `bits` of a table in at least `least` (1 or 2) of `tables`
/// tables: p = (1 - angle / pi)^bits, then 1 - (1-p)^tables [- tables p (1-p)^(tables-1)].
RETICLE_API double collision_probability(double cosine, Index bits, Index tables, Index least);

}  // namespace reticle
