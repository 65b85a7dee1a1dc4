// Vector kernels for the operations on stored rows, dispatched to the instruction set at run time (Highway). Internal
// to core/mask and the attention planner.
#pragma once

#include <cstdint>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>
#include <reticle/core/mask/run.hpp>

namespace reticle {

/// out = a op b over `count` words of bits; out may be a.
RETICLE_API RowCounts combine_words(SetOp op, const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out,
                                    Index count);

/// Elements past a result that kernels may overwrite: allocate this many extra.
inline constexpr Index kSlack = 64;

/// The union of two strictly ascending lists of columns below 2^31 - 1. `out` has space for a_count + b_count + kSlack
/// elements.
RETICLE_API RowCounts merge_columns(const std::int32_t* a, Index a_count, const std::int32_t* b, Index b_count,
                                    std::int32_t* out);

/// The union as `count` words of bits, whose first bit is column 0.
RETICLE_API RowCounts unite_columns_as_bits(const std::int32_t* a, Index a_count, const std::int32_t* b, Index b_count,
                                            std::uint64_t* words, Index count);

/// The union by `op`, which must be a union, of columns with a p in (0, 1] each; a null a_p or b_p means that all are
/// 1. `out_p` is aligned with `out` and has the same size. Returns the number of entries. Runs are counted by a
/// separate call, count_runs, because reading back vectors just written stalls.
RETICLE_API Index merge_weighted_columns(SetOp op, const std::int32_t* a, const float* a_p, Index a_count,
                                         const std::int32_t* b, const float* b_p, Index b_count, std::int32_t* out,
                                         float* out_p);

/// The number of maximal runs: adjacent columns of equal p.
RETICLE_API Index count_runs(const std::int32_t* columns, const float* p, Index count);

/// The union as p of every position, 0 where neither list has it; `weighted` is set when some p is below 1.
RETICLE_API RowCounts unite_columns_as_dense(SetOp op, const std::int32_t* a, const float* a_p, Index a_count,
                                             const std::int32_t* b, const float* b_p, Index b_count, float* p,
                                             Index keys, bool& weighted);

/// Sets the bits of ascending columns; bit 0 of the first word is column `origin`, a multiple of 64.
RETICLE_API void set_bits(const std::int32_t* columns, Index count, std::int32_t origin, std::uint64_t* words);

/// The counts of a dense row of p, where 0 means not attended; `weighted` is set when some p is below 1.
RETICLE_API RowCounts count_dense(const float* p, Index count, bool& weighted);

/// Sets bits [begin, end).
RETICLE_API void set_bit_range(std::uint64_t* words, Index begin, Index end);

RETICLE_API Index count_bits(const std::uint64_t* words, Index count);

/// Writes the set bits of `count` words as ascending columns; bit 0 of the first word is column `origin`. Returns their
/// number; `out` has space for them and kSlack more.
RETICLE_API Index columns_of_bits(const std::uint64_t* words, Index count, std::int32_t origin, std::int32_t* out);

/// Finds the columns that at least `least` (1 to 64) of up to 64 rows attend to (in_enough), and those that all rows
/// attend to (in_all), as bits of `width` words; `words` is (rows, width). Returns the number of columns in in_enough.
RETICLE_API Index columns_in_at_least(Index least, const std::uint64_t* words, Index rows, Index width,
                                      std::uint64_t* in_enough, std::uint64_t* in_all);

/// Transposes a bit matrix: bit r of out[i], i < 64, becomes bit i of words[r * stride], for up to 64 rows.
RETICLE_API void transpose_bits(const std::uint64_t* words, Index rows, Index stride, std::uint64_t* out);

}  // namespace reticle
