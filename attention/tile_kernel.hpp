// Flash attention over a block of keys, for many rows at once. Internal to the executor.
#pragma once

#include <array>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include <reticle/attention/bf16_kernel.hpp>
#include <reticle/attention/plan.hpp>
#include <reticle/core/base/machine.hpp>

namespace reticle {

inline constexpr Index kTileKeys = 128;

/// How tiles of queries, keys and values of these dtypes are multiplied.
Bf16Product tile_product(const AttentionInputs& inputs);

/// The next keys and values of a tile, with each row's bits, p and bias. They are floats, or pairs of bfloat16, as the
/// tile's product demands. Floats in the order of pairs have neighbours swapped, since the instruction for pairs adds
/// the second product of a pair first: the channels of keys, and the values of two keys.
struct TileBlock {
  Index count = 0;              // at most kTileKeys
  const float* keys = nullptr;  // (count, d)
  Index key_stride = 0;
  const float* values = nullptr;  // (count, dv)
  Index value_stride = 0;
  PairMatrix key_pairs;                     // (count, d / 2)
  const Bf16Pair* value_pairs = nullptr;    // ((count + 1) / 2, dv)
  const std::uint64_t* attended = nullptr;  // per key, bit r: row r attends; null: all rows do
  const float* inverse_p = nullptr;         // (count, kTileRows); null: all 1
  const float* bias = nullptr;              // (count, kTileRows), added to the scores; null: none
  std::optional<float> soft_cap;
};

/// The softmax states of up to kTileRows rows. Everything is stored with the rows along vectors, so that maxima, sums
/// and rescaling need no operations across lanes, and keys and values are used as they lie in memory.
class TileState {
 public:
  /// Unless the product is exact, queries are given unscaled, since they stay bfloat16, and scores are multiplied by
  /// `scaling`.
  TileState(Index head_dim, Index value_dim, Bf16Product product, float scaling);

  /// Clears the states for a new tile of `rows` rows.
  void reset(Index rows);
  /// Sets row r's query, scaled if the product is exact.
  void set_query(Index r, std::span<const float> query);
  void fold(const TileBlock& block);

  float max(Index r) const { return max_[static_cast<std::size_t>(r)]; }
  float sum(Index r) const { return sum_[static_cast<std::size_t>(r)]; }
  /// The unnormalised output of row r, (dv).
  void copy_output(Index r, std::span<float> to) const;

 private:
  Index head_dim_, value_dim_, rows_ = 0;
  std::array<float, kTileRows> max_{}, sum_{};
  std::vector<float> queries_;  // (d, kTileRows)
  std::vector<float> scores_;   // (kTileKeys, kTileRows)
  std::vector<float> output_;   // (dv, kTileRows)
  Bf16Product product_;
  float scaling_;
  std::vector<Bf16Pair> query_pairs_, weight_pairs_;  // (d / 2 | kTileKeys / 2, kTileRows)
};

/// Packs rows of a matrix as float: writes (count, width) to `to`. `indices` names the rows; null means the first
/// `count`.
void pack_rows(const TensorView& matrix, const std::int32_t* indices, Index count, float* to);

/// The same for a BF16 matrix, with the two channels of each pair swapped.
void pack_rows_in_pairs(const TensorView& matrix, const std::int32_t* indices, Index count, float* to);

}  // namespace reticle
