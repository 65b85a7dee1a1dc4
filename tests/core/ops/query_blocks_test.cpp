#include <atomic>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/query_blocks.hpp>

#include "support/attention.hpp"
#include "support/maskers.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

using Runs = std::vector<reticle::Run>;
using Blocks = std::vector<std::int32_t>;

OwnedInputs inputs_of(Index queries, Index keys, Index heads = 1, Index kv_heads = 1) {
  return OwnedInputs({1, heads, kv_heads, queries, keys, 4, 4}, 1);
}

TEST(QueryBlockMask, HasTheBlocksOfTheQueriesThatStandAmongTheKeys) {
  const auto blocks_of = [](Index queries, Index keys) {
    const OwnedInputs owned = inputs_of(queries, keys);
    std::size_t blocks = 0;
    query_block_mask(
        owned.inputs, 4, [&](Index, Index, std::span<Runs> runs) { blocks = runs.size(); }, Context(1));
    return blocks;
  };
  EXPECT_EQ(blocks_of(8, 8), 2u);
  EXPECT_EQ(blocks_of(9, 9), 3u);
  EXPECT_EQ(blocks_of(3, 10), 2u) << "positions 7 to 9";
  EXPECT_EQ(blocks_of(1, 10), 1u);
  EXPECT_EQ(blocks_of(10, 3), 1u) << "the last three queries";
  EXPECT_EQ(blocks_of(10, 0), 0u);
}

TEST(QueryBlockMask, GivesEveryQueryOfABlockTheBlocksRunsUpToItself) {
  const OwnedInputs owned = inputs_of(5, 8);
  const Mask mask = query_block_mask(
      owned.inputs, 3,
      [](Index, Index, std::span<Runs> runs) {
        ASSERT_EQ(runs.size(), 2u);  // blocks 1 (queries at 3 to 5) and 2 (at 6 and 7)
        runs[0] = {{0, 1, 1}, {4, 6, 1}};
        runs[1] = {{2, 9, 1}};
      },
      Context(1));
  EXPECT_EQ(row_text(mask, 0), "1.......");
  EXPECT_EQ(row_text(mask, 1), "1...1...");
  EXPECT_EQ(row_text(mask, 2), "1...11..");
  EXPECT_EQ(row_text(mask, 3), "..11111.");
  EXPECT_EQ(row_text(mask, 4), "..111111");
}

TEST(QueryBlockMask, AsksOnceForEachWantedHeadAndNotForQueriesBeforeTheFirstKey) {
  OwnedInputs owned = inputs_of(6, 2, 4, 2);
  const std::vector<std::uint8_t> wanted{1, 0, 1, 1};
  owned.inputs.wanted_heads = wanted;
  std::vector<std::atomic<int>> asked(4);
  const Mask mask = query_block_mask(
      owned.inputs, 4,
      [&](Index, Index head, std::span<Runs> runs) {
        ++asked[static_cast<std::size_t>(head)];
        for (Runs& of_block : runs) of_block = {{0, 2, 1}};
      },
      Context(2));
  for (std::size_t head = 0; head < 4; ++head) EXPECT_EQ(asked[head], wanted[head]) << head;
  EXPECT_EQ(head_counts(mask), (std::vector<Index>{3, 0, 3, 3}));
  EXPECT_EQ(row_text(mask, 3), "..");
  EXPECT_EQ(row_text(mask, 4), "1.");
}

TEST(KeyBlockMask, GivesEachQueryItsBlocksUpToItself) {
  const OwnedInputs owned = inputs_of(3, 8);
  const Mask mask = key_block_mask(
      owned.inputs, 3, 1,
      [](RowId row, Blocks& blocks) {
        if (row.query == 0) blocks = {0, 2};
        if (row.query == 2) blocks = {1, 2};
      },
      Context(1));
  EXPECT_EQ(row_text(mask, 0), "111.....") << "block 2 begins after position 5";
  EXPECT_EQ(row_text(mask, 1), "........");
  EXPECT_EQ(row_text(mask, 2), "...11111");
}

TEST(KeyBlockMask, SharesAListAmongTheHeadsThatItServes) {
  OwnedInputs owned = inputs_of(2, 4, 4, 2);
  const Mask mask = key_block_mask(
      owned.inputs, 2, 2, [](RowId row, Blocks& blocks) { blocks = {static_cast<std::int32_t>(row.head)}; },
      Context(1));
  for (const Index head : {0, 1}) EXPECT_EQ(row_text(mask, 1, head), "11..");
  for (const Index head : {2, 3}) EXPECT_EQ(row_text(mask, 1, head), "..11");
  const std::vector<std::uint8_t> wanted{0, 0, 0, 1};
  owned.inputs.wanted_heads = wanted;
  const Mask some = key_block_mask(
      owned.inputs, 2, 2,
      [](RowId row, Blocks& blocks) {
        EXPECT_EQ(row.head, 1) << "no head of list 0 is wanted";
        blocks = {0};
      },
      Context(1));
  EXPECT_EQ(head_counts(some), (std::vector<Index>{0, 0, 4, 4}));
  EXPECT_EQ(key_block_mask(
                owned.inputs, 2, 0, [](RowId, Blocks&) { ADD_FAILURE(); }, Context(1))
                .nnz(),
            0);
}

TEST(AppendBlocks, JoinsNeighbours) {
  Runs runs{{0, 4, 1}};
  append_blocks(Blocks{1, 2, 5}, 4, runs);
  EXPECT_EQ(runs, (Runs{{0, 12, 1}, {20, 24, 1}}));
  append_blocks({}, 4, runs);
  EXPECT_EQ(runs.size(), 2u);
}

TEST(AppendBlocks, StaysWithinTheColumnsThatCanBeAddressed) {
  Runs runs;
  append_blocks(Blocks{2147483647}, 2, runs);
  append_blocks(Blocks{2147483646}, 1, runs);
  constexpr std::int32_t kLast = std::numeric_limits<std::int32_t>::max();
  EXPECT_EQ(runs, (Runs{{kLast, kLast, 1}, {kLast - 1, kLast, 1}}));
}

TEST(BlockMeans, OfQueriesAreThoseOfTheirPositions) {
  // Queries have positions 2 to 6; blocks of four hold positions 2 to 3 and 4 to 6.
  const WrittenInputs written({1, 1, 5, 2}, {1, 10, 3, 20, 5, 30, 7, 40, 12, 50}, {1, 1, 7, 2}, std::vector<float>(14));
  const BlockMeans means = query_block_means(written.inputs, 0, 0, 4);
  EXPECT_EQ(means.first, 0);
  EXPECT_EQ(means.blocks, 2);
  EXPECT_EQ(means.means, (std::vector<float>{2, 15, 8, 40}));
  EXPECT_EQ(means.of(1)[0], 8);
}

TEST(BlockMeans, OfQueriesLeaveOutThoseBeforeTheFirstKey) {
  const WrittenInputs written({1, 1, 5, 1}, {100, 100, 3, 5, 7}, {1, 1, 3, 1}, std::vector<float>(3));
  EXPECT_EQ(query_block_means(written.inputs, 0, 0, 2).means, (std::vector<float>{4, 7}));
}

TEST(BlockMeans, OfKeysPassOverThoseThatTheAttentionMaskForbidsToAll) {
  WrittenInputs written({1, 1, 1, 1}, {1}, {1, 1, 5, 1}, {1, 3, 5, 8, 10});
  using Divisor = BlockMeans::Divisor;
  EXPECT_EQ(key_block_means(written.inputs, 0, 0, 2, Divisor::rows).means, (std::vector<float>{2, 6.5f, 10}));
  EXPECT_EQ(key_block_means(written.inputs, 0, 0, 2, Divisor::size).means, (std::vector<float>{2, 6.5f, 5}));
  written.forbid({1, 2, 3});
  const BlockMeans means = key_block_means(written.inputs, 0, 0, 2, Divisor::rows);
  EXPECT_EQ(means.means, (std::vector<float>{1, 0, 10}));
  EXPECT_EQ(means.empty, (std::vector<std::uint8_t>{0, 1, 0}));
}

}  // namespace
}  // namespace reticle::testing
