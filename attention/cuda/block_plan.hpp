// A mask as tiles of rows and blocks of keys, for the tensor cores.
#pragma once

#include <optional>
#include <vector>

#include <reticle/attention/cuda/tiles.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle::cuda {

/// A mask as kernels read it. Bytes: 8 per block of keys; for a block that is attended to in part, 8 more per row of
/// the tile, or per query if the mask's heads share their pattern; 16 more per row where some p is not 1.
struct RETICLE_API BlockPlan {
  std::vector<Tile> tiles;  // tiles with the most blocks first, so that the last to be started are the shortest
  std::vector<KeyBlock> blocks;
  std::vector<std::uint64_t> bits;
  std::vector<RowWeights> weights;
  int words = kTileRowCount;
  bool heads_share = false;

  TileLists lists() const { return {tiles.data(), blocks.data(), bits.data(), weights.data(), words, heads_share}; }
  Index bytes() const;
};

/// Makes tiles of up to tile_rows rows (kTileRowCount or kWideTileRows), each with the blocks of 64 keys that any of
/// its rows attends to. With `causal`, keys after a row's own position are left out. A block whose rows have several p
/// other than 1 is listed several times. Empty when a row has more than kMaxRepeats such p in a block, as in masks
/// that weigh each key separately; those use lists. ShapeError when the heads are not a multiple of kv_heads.
inline constexpr int kMaxRepeats = 4;
RETICLE_API std::optional<BlockPlan> plan_blocks(const Mask& mask, Index kv_heads, bool causal,
                                                 int tile_rows = kTileRowCount, const Context& context = {});

/// The inverse of a plan: for each block of keys, the tiles that attend to it, in the order of plan.tiles.
struct BlockPlanByKeys {
  std::vector<Index> starts;  // indexed by (batch, KV head, block of keys), with the end as last element
  std::vector<TileOfKeys> tiles;
};
/// Inverts plan_blocks(mask, ...), given the mask's shape.
RETICLE_API BlockPlanByKeys by_keys(const BlockPlan& plan, const MaskShape& shape, Index kv_heads);

}  // namespace reticle::cuda
