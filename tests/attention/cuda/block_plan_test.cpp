#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/cuda/block_plan.hpp>

#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

using reticle::testing::message_of;

TEST(CudaBlockPlan, FullBlocksHaveNoBitsAndTilesWithMostBlocksComeFirst) {
  const Mask causal = Mask::full({1, 4, 256, 256});
  const BlockPlan plan = plan_blocks(causal, 2, true).value();
  ASSERT_EQ(plan.tiles.size(), 2u * 8u);  // 32 queries of two heads
  EXPECT_EQ(plan.tiles.front().blocks, 4);
  EXPECT_EQ(plan.tiles.back().blocks, 1);
  // Queries [32 t, 32 t + 32) attend wholly to the blocks before their own, and to that one in part.
  EXPECT_EQ(plan.bits.size(), 16u * 32u) << "a word a query, which the heads share";
  for (const Tile& tile : plan.tiles) {
    for (int i = 0; i < tile.blocks; ++i) {
      const KeyBlock& block = *(plan.blocks.begin() + tile.first_block + i);
      EXPECT_EQ(block.first_key, 64 * i);
      EXPECT_EQ(block.bits < 0, i + 1 < tile.blocks);
    }
  }
  EXPECT_EQ(plan_blocks(Mask::full({1, 1, 64, 128}), 1, false)->bits.size(), 0u);
  EXPECT_EQ(plan_blocks(Mask::full({1, 1, 64, 130}), 1, false)->bits.size(), 64u) << "the last block is not all keys";
  EXPECT_EQ(plan_blocks(Mask::full({1, 1, 128, 130}), 1, false, kWideTileRows)->tiles.size(), 1u);
}

TEST(CudaBlockPlan, ABlockComesAsOftenAsItsKeysHaveOtherPAndNotTooOften) {
  std::vector<float> p(64, 1.0f);
  const auto plan_of = [&] { return plan_blocks(Mask::dense({1, 1, 1, 64}, p), 1, false); };
  EXPECT_EQ(plan_of()->blocks, (std::vector<KeyBlock>{{0, -1, -1}}));
  p[3] = p[9] = 0.5f;
  EXPECT_EQ(plan_of()->blocks, (std::vector<KeyBlock>{{0, -1, 0}}));
  EXPECT_EQ(plan_of()->weights.front(), (RowWeights{1 << 3 | 1 << 9, 1}));
  p[10] = 0.25f;
  EXPECT_EQ(plan_of()->blocks, (std::vector<KeyBlock>{{0, 0, 0}, {0, 1, 1}}));
  for (std::size_t i = 20; i < 40; ++i) p[i] = static_cast<float>(i) / 100;
  EXPECT_FALSE(plan_of().has_value());
}

TEST(CudaBlockPlan, RefusesHeadsThatDoNotFit) {
  EXPECT_THROW(plan_blocks(Mask::full({1, 3, 1, 1}), 2, false), ShapeError);
  EXPECT_EQ(message_of<ShapeError>([] {
              plan_blocks(Mask::full({1, 3, 1, 1}), 2, false);
            }),
            "block plan: 3 query heads are not a multiple of 2 KV heads");
}

TEST(CudaBlockPlan, ByteCountsAreThoseOfItsParts) {
  // One tile of 28 bytes with two blocks of 12; the second block is partial and the heads share: a word a query.
  const Mask mask = Mask::intervals(MaskShape{1, 2, 1, 128}.one_head(), [](RowId) { return Interval{0, 100}; });
  const BlockPlan plan = plan_blocks(mask, 1, false).value();
  EXPECT_TRUE(plan.heads_share);
  ASSERT_EQ(plan.tiles.size(), 1u);
  EXPECT_EQ(plan.tiles[0].rows, 2);
  EXPECT_EQ(plan.blocks, (std::vector<KeyBlock>{{0, -1, -1}, {64, 0, -1}}));
  ASSERT_EQ(plan.bits.size(), 32u) << "queries that a tile of 64 rows holds of two heads";
  EXPECT_EQ(plan.bits[0], (std::uint64_t{1} << 36) - 1) << "keys 64 to 99";
  EXPECT_EQ(plan.bytes(), 28 + 2 * 12 + 32 * 8);
}

TEST(CudaBlockPlan, RowsWithoutKeysHaveATileWithoutBlocks) {
  const BlockPlan plan = plan_blocks(Mask::empty({1, 1, 3, 64}), 1, false).value();
  ASSERT_EQ(plan.tiles.size(), 1u);
  EXPECT_EQ(plan.tiles[0].rows, 3);
  EXPECT_EQ(plan.tiles[0].blocks, 0);
  EXPECT_TRUE(plan.blocks.empty());
  EXPECT_TRUE(plan_blocks(Mask::full({1, 1, 0, 64}), 1, false)->tiles.empty());
}

TEST(CudaBlockPlan, ByKeysEachBlockListsTheTilesThatAttendToIt) {
  // One head, 128 causal queries over 128 keys: tile 0 (queries 64 to 127) meets both blocks, tile 1 the first alone.
  const MaskShape shape{1, 1, 128, 128};
  const BlockPlan plan = plan_blocks(Mask::full(shape), 1, true).value();
  const BlockPlanByKeys by_key = by_keys(plan, shape, 1);
  EXPECT_EQ(by_key.starts, (std::vector<Index>{0, 2, 3}));
  ASSERT_EQ(by_key.tiles.size(), 3u);
  const auto block_of = [&](std::size_t i) { return plan.blocks[static_cast<std::size_t>(by_key.tiles[i].block)]; };
  EXPECT_EQ(by_key.tiles[0].tile, 0);
  EXPECT_EQ(block_of(0).first_key, 0);
  EXPECT_EQ(by_key.tiles[1].tile, 1);
  EXPECT_EQ(block_of(1).first_key, 0);
  EXPECT_EQ(by_key.tiles[2].tile, 0);
  EXPECT_EQ(block_of(2).first_key, 64);
}

}  // namespace
}  // namespace reticle::cuda
