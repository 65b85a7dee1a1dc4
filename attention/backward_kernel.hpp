// Gradients of a tile of rows by a block of keys, and of one row by the keys that it alone attends to. Internal to
// attention_backward.
#pragma once

#include <span>
#include <vector>

#include <reticle/attention/tile_kernel.hpp>
#include <reticle/core/tensor/buffer.hpp>

namespace reticle {

/// What a tile's rows bring, and the gradients of their queries. Rows along vectors, as in TileState, and once more row
/// by row for the products that sum over rows.
class BackwardTile {
 public:
  BackwardTile(Index head_dim, Index value_dim);

  /// Starts `rows` rows anew.
  void reset(Index rows);
  /// Row r: its query (scaled), its output's gradient, LSE, and the sum of gradient * output.
  void set_row(Index r, std::span<const float> query, std::span<const float> d_output, float lse, float delta);
  /// Adds the block's share to the queries' gradients, and leaves those of its keys and values in d_keys() and
  /// d_values().
  void fold(const TileBlock& block);
  /// Of key i of the block, (d) and (dv).
  const float* d_keys(Index i) const { return d_keys_.data() + i * query_stride_; }
  const float* d_values(Index i) const { return d_values_.data() + i * value_stride_; }
  /// Adds row r's gradient by its scaled query.
  void add_d_query(Index r, std::span<float> to) const;

 private:
  Index head_dim_, value_dim_, query_stride_, value_stride_, rows_ = 0;
  Array<float> queries_, d_outputs_;         // (d | dv, kTileRows)
  Array<float> query_rows_, d_output_rows_;  // (kTileRows, d | dv padded to whole vectors)
  Array<float> lse_, delta_;                 // (kTileRows)
  Array<float> weights_, d_scores_;          // (kTileKeys, kTileRows)
  Array<float> d_queries_;                   // (d, kTileRows)
  Array<float> d_keys_, d_values_;           // (kTileKeys, padded)
};

/// to += factor * from.
void add_scaled(const float* from, float factor, Index count, float* to);

}  // namespace reticle
