// A mask as tiles of rows and blocks of keys, for the tensor cores.
#pragma once

#include <vector>

#include <reticle/attention/cuda/tile_block.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle::cuda {

/// What attend_tile reads. Bytes: 8 per block of keys, and 8 a row of the tile more for one that is attended to in
/// part.
struct RETICLE_API BlockPlan {
  std::vector<Tile> tiles;  // those with the most blocks first: the last to be started are the shortest
  std::vector<KeyBlock> blocks;
  std::vector<std::uint64_t> bits;

  Index bytes() const;
};

/// Tiles of up to tile_rows rows, kTileRowCount or kWideTileRows, without their blocks of keys. ShapeError when the
/// heads are no multiple of kv_heads.
RETICLE_API std::vector<Tile> tiles_of(const MaskShape& shape, Index kv_heads, int tile_rows = kTileRowCount);

/// Tiles of up to tile_rows rows, whole groups of query heads at neighbouring queries, and the blocks of 64 keys that
/// any of their rows attends to. With `causal`, keys after a row's own position are left out. ShapeError when the heads
/// are no multiple of kv_heads; ValueError for a weighted mask, of which bits say too little.
RETICLE_API BlockPlan plan_blocks(const Mask& mask, Index kv_heads, bool causal, int tile_rows = kTileRowCount,
                                  const Context& context = {});

}  // namespace reticle::cuda
