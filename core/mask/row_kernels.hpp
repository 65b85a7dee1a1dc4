// What unions of stored rows are made of, for the instruction set that the process runs on. Internal to core/mask.
#pragma once

#include <cstdint>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

enum class BitOp : std::uint8_t { unite, intersect, subtract };

/// What a row holds: positions, and maximal runs of them.
struct RowCounts {
  Index entries = 0, runs = 0;
};

/// out = a op b over `count` words; out may be a.
RETICLE_API RowCounts combine_words(BitOp op, const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out,
                                    Index count);

/// Room that merge_columns may write beyond its result.
inline constexpr Index kMergeSlack = 64;

/// The union of two strictly ascending lists of columns below 2^31 - 1; `out` has room for both and kMergeSlack more.
RETICLE_API RowCounts merge_columns(const std::int32_t* a, Index a_count, const std::int32_t* b, Index b_count,
                                    std::int32_t* out);

/// How p of a column that both lists hold combine: row_op::Add, Max and Independent in vectors.
enum class UnionRule : std::uint8_t { add, max, independent };

/// The same with a p in (0, 1] per column; null: all 1. `out_p` is aligned with `out`, and has the same room.
RETICLE_API RowCounts merge_weighted_columns(UnionRule rule, const std::int32_t* a, const float* a_p, Index a_count,
                                             const std::int32_t* b, const float* b_p, Index b_count, std::int32_t* out,
                                             float* out_p);

/// Sets the bits of ascending columns.
RETICLE_API void set_bits(const std::int32_t* columns, Index count, std::uint64_t* words);

}  // namespace reticle
