// Gradients for a tile of rows and a block of keys, and for one row and the keys that it does not share. Internal to
// attention_backward.
#pragma once

#include <span>
#include <vector>

#include <reticle/attention/tile_kernel.hpp>
#include <reticle/core/tensor/buffer.hpp>

namespace reticle {

/// The inputs of a tile's rows, and the gradients of their queries. Rows lie along vectors, as in TileState; queries
/// and output gradients are also stored row by row, for the products that sum over rows.
class BackwardTile {
 public:
  BackwardTile(Index head_dim, Index value_dim);

  /// Clears the gradients for a new tile of `rows` rows.
  void reset(Index rows);
  /// Sets row r: its query (scaled), the gradient of its output, its LSE, and delta, the sum of gradient * output.
  void set_row(Index r, std::span<const float> query, std::span<const float> d_output, float lse, float delta);
  /// Adds the block's contribution to the queries' gradients, and leaves the gradients of its keys and values in
  /// d_keys() and d_values().
  void fold(const TileBlock& block);
  /// Gradients of key i (d) and of value i (dv) of the last block.
  const float* d_keys(Index i) const { return d_keys_.data() + i * query_stride_; }
  const float* d_values(Index i) const { return d_values_.data() + i * value_stride_; }
  /// Adds the gradient with respect to row r's scaled query.
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
