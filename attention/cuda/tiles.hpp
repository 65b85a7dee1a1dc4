// Rows in tiles, and the blocks of 64 keys that each tile attends to, as tensor-core kernels read them.
#pragma once

#include <limits>
#include <string>

#include <reticle/core/base/error.hpp>
#include <reticle/core/cuda/block.hpp>
#include <reticle/core/mask/shape.hpp>

namespace reticle::cuda {

inline constexpr int kTileRowCount = 64;
inline constexpr int kWideTileRows = 128;  // in wide_tile_block.hpp
inline constexpr int kKeyBlock = 64;

/// A block of keys in a tile's plan. A block is listed several times if a row's entries in it have several p.
struct KeyBlock {
  std::int32_t first_key;
  std::int32_t bits;          // index of its words in TileLists::bits; -1: all rows attend to all of it
  std::int32_t weights = -1;  // index of its weights in TileLists::weights; -1: every p is 1

  bool operator==(const KeyBlock&) const = default;
};

/// A row's keys in a block whose p is not 1; all have the same p, as sampling produces.
struct RowWeights {
  std::uint64_t sampled = 0;  // bits of these keys
  float added = 0;            // added to their scores, in powers of two: -log2(p)

  RETICLE_HD float of(int key) const { return (sampled >> key & 1) != 0 ? added : 0; }
  bool operator==(const RowWeights&) const = default;
};

/// Query heads [first_head, first_head + heads) at consecutive queries from first_query on: row r is head first_head +
/// r % heads at query first_query + r / heads. All heads share one KV head.
struct Tile {
  std::int32_t batch, first_head, heads, first_query, rows;
  std::int32_t first_block, blocks;  // in TileLists::blocks, ascending

  RETICLE_HD int head_of(int row) const { return first_head + row % heads; }
  RETICLE_HD int query_of(int row) const { return first_query + row / heads; }
};

/// How rows are grouped into tiles of up to tile_rows: as many heads of a group as fit, at neighbouring queries, so
/// that GQA fills the tiles. The last queries, which attend to most under causality, come first.
struct Tiling {
  int batch = 1, kv_heads = 1, group = 1, queries = 1, tile_rows = kTileRowCount;

  /// ShapeError when the heads are not a multiple of kv_heads, or there are more tiles than 31 bits count.
  static Tiling of(const MaskShape& shape, Index kv_heads, int tile_rows) {
    if (kv_heads < 1 || shape.heads % kv_heads != 0)
      throw ShapeError("block plan: " + std::to_string(shape.heads) + " query heads are not a multiple of " +
                       std::to_string(kv_heads) + " KV heads");
    if (shape.batch * shape.heads * shape.queries > std::numeric_limits<std::int32_t>::max())
      throw ShapeError("block plan: " + shape.describe() + " has more rows than 31 bits count");
    return {static_cast<int>(shape.batch), static_cast<int>(kv_heads), static_cast<int>(shape.heads / kv_heads),
            static_cast<int>(shape.queries), tile_rows};
  }

  RETICLE_HD int heads_of_tile() const { return group < tile_rows ? group : tile_rows; }
  RETICLE_HD int queries_of_tile() const { return tile_rows / heads_of_tile(); }
  RETICLE_HD int tiles_of_group() const { return (group + heads_of_tile() - 1) / heads_of_tile(); }
  RETICLE_HD int query_tiles() const { return (queries + queries_of_tile() - 1) / queries_of_tile(); }
  RETICLE_HD int tiles_of_kv_head() const { return query_tiles() * tiles_of_group(); }
  RETICLE_HD int tiles() const { return batch * kv_heads * tiles_of_kv_head(); }
  /// Words per block of keys that is attended to in part.
  RETICLE_HD int words(bool heads_share) const { return heads_share ? queries_of_tile() : tile_rows; }

  /// The number of the i-th tile of a KV head.
  RETICLE_HD int number(int batch_index, int kv_head, int i) const {
    return (i / tiles_of_group() * batch + batch_index) * kv_heads * tiles_of_group() + kv_head * tiles_of_group() +
           i % tiles_of_group();
  }
  /// Tile number `number`, without blocks of keys.
  RETICLE_HD Tile at(int number) const {
    const int parts = tiles_of_group(), part = number % parts, kv_head = number / parts % kv_heads,
              batch_index = number / parts / kv_heads % batch,
              query = (query_tiles() - 1 - number / parts / kv_heads / batch) * queries_of_tile();
    const int head = part * heads_of_tile(), left = group - head,
              heads = left < heads_of_tile() ? left : heads_of_tile();
    const int query_count = queries - query < queries_of_tile() ? queries - query : queries_of_tile();
    return {batch_index, kv_head * group + head, heads, query, query_count * heads, 0, 0};
  }
};

/// A tile that attends to a block of keys; `block` is the index of the entry in TileLists::blocks.
struct TileOfKeys {
  std::int32_t tile, block;
};

/// A plan as kernels read it.
struct TileLists {
  const Tile* tiles = nullptr;
  const KeyBlock* blocks = nullptr;
  const std::uint64_t* bits = nullptr;
  const RowWeights* weights = nullptr;
  int words = kTileRowCount;  // words per block of keys that is attended to in part
  bool heads_share = false;   // words are per query instead of per row

  /// The bits of the keys of a block that row `row` attends to; 0 where the tile has no such row.
  RETICLE_HD std::uint64_t word(const Tile& tile, const KeyBlock& keys, int row) const {
    if (row >= tile.rows) return 0;
    if (keys.bits < 0) return ~std::uint64_t{0};
    return bits[place(tile, keys.bits, row)];
  }
  RETICLE_HD RowWeights weights_of(const Tile& tile, const KeyBlock& keys, int row) const {
    return keys.weights < 0 || row >= tile.rows ? RowWeights() : weights[place(tile, keys.weights, row)];
  }

 private:
  RETICLE_HD Index place(const Tile& tile, std::int32_t number, int row) const {
    return static_cast<Index>(number) * words + (heads_share ? row / tile.heads : row);
  }
};

}  // namespace reticle::cuda
