// A mask as tiles of rows and blocks of keys, for the tensor cores.
#pragma once

#include <optional>
#include <vector>

#include <reticle/attention/cuda/tiles.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle::cuda {

/// What kernels read of a mask. Bytes: 8 per block of keys, and 8 a row of the tile more for one that is attended to in
/// part, or a query, where the mask's heads share their pattern; 16 more where some p is not 1.
struct RETICLE_API BlockPlan {
  std::vector<Tile> tiles;  // those with the most blocks first: the last to be started are the shortest
  std::vector<KeyBlock> blocks;
  std::vector<std::uint64_t> bits;
  std::vector<RowWeights> weights;
  int words = kTileRowCount;
  bool heads_share = false;

  TileLists lists() const { return {tiles.data(), blocks.data(), bits.data(), weights.data(), words, heads_share}; }
  Index bytes() const;
};

/// Tiles of up to tile_rows rows, kTileRowCount or kWideTileRows, and the blocks of 64 keys that any of their rows
/// attends to. With `causal`, keys after a row's own position are left out. Nothing when some row has more than
/// kMostRepeats p other than 1 in a block, as masks have that weigh every key by itself: lists serve those. ShapeError
/// when the heads are not a multiple of kv_heads.
inline constexpr int kMostRepeats = 4;
RETICLE_API std::optional<BlockPlan> plan_blocks(const Mask& mask, Index kv_heads, bool causal,
                                                 int tile_rows = kTileRowCount, const Context& context = {});

/// A plan the other way round: what tiles attend to a block of keys, in the order of plan.tiles.
struct BlockPlanByKeys {
  std::vector<Index> starts;  // by (batch, KV head, block of keys), and one more
  std::vector<TileOfKeys> tiles;
};
/// Of plan_blocks(mask, ...) of a mask of this shape.
RETICLE_API BlockPlanByKeys by_keys(const BlockPlan& plan, const MaskShape& shape, Index kv_heads);

}  // namespace reticle::cuda
