#include <algorithm>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/vertical_slash.hpp>

#include "support/attention.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(VerticalSlashScores, SumTheLastQueriesAttentionByKeyAndByDistance) {
  const OwnedInputs owned({2, 4, 2, 9, 12, 8, 8}, 3);
  AttentionInputs causal = owned.inputs;
  causal.causal = true;
  const Reference reference = reference_attention(causal, Mask::full(causal.shape()));
  for (const Index window : {1, 4, 9, 100}) {
    const VerticalSlashScores scores = vertical_slash_scores(owned.inputs, 1, 2, window);
    std::vector<double> verticals(12, 0), slashes(12, 0);
    for (Index query = std::max<Index>(0, 9 - window); query < 9; ++query) {
      const Index position = 3 + query;
      for (Index key = 0; key <= position; ++key) {
        const double p = reference.weights[static_cast<std::size_t>(((1 * 4 + 2) * 9 + query) * 12 + key)];
        verticals[static_cast<std::size_t>(key)] += p;
        slashes[static_cast<std::size_t>(position - key)] += p;
      }
    }
    ASSERT_EQ(scores.verticals.size(), 12u);
    ASSERT_EQ(scores.slashes.size(), 12u);
    for (std::size_t i = 0; i < 12; ++i) {
      EXPECT_NEAR(scores.verticals[i], verticals[i], 1e-5) << window << ' ' << i;
      EXPECT_NEAR(scores.slashes[i], slashes[i], 1e-5) << window << ' ' << i;
    }
  }
}

TEST(Cover, CountsTheHighestScoresThatPassAShare) {
  const std::vector<float> scores{0.125f, 0.5f, 0.25f, 0.125f};
  EXPECT_EQ(cover(scores, 0), 1);
  EXPECT_EQ(cover(scores, 0.49), 1);
  EXPECT_EQ(cover(scores, 0.5), 2) << "half is not passed by half";
  EXPECT_EQ(cover(scores, 0.8), 3);
  EXPECT_EQ(cover(scores, 1), 4) << "never passed";
  EXPECT_EQ(cover({}, 0.5), 0);
}

using Numbers = std::vector<std::int32_t>;

TEST(HighestWithFirst, TakesTheForcedBeforeAllOthers) {
  const std::vector<float> scores{0, 1, 5, 3, 4};
  EXPECT_EQ(highest_with_first(scores, 3, 0), (Numbers{2, 3, 4}));
  EXPECT_EQ(highest_with_first(scores, 3, 2), (Numbers{0, 1, 2}));
  EXPECT_EQ(highest_with_first(scores, 2, 4), (Numbers{0, 1}));
  EXPECT_EQ(highest_with_first(scores, 9, 9), (Numbers{0, 1, 2, 3, 4}));
  EXPECT_EQ(highest_with_first({}, 3, 1), Numbers{});
}

class VerticalSlashMask : public ::testing::Test {
 protected:
  Mask mask(const VerticalSlash& pattern, Index block_size) const {
    return vertical_slash_mask(
        owned_.inputs, [&](Index, Index) { return pattern; }, block_size, Context(1));
  }
  OwnedInputs owned_{{1, 1, 1, 6, 8, 4, 4}, 1};  // queries at positions 2 to 7
};

TEST_F(VerticalSlashMask, HoldsExactlyTheKeysOnAVerticalOrASlash) {
  const Mask exact = mask({{1, 4}, {0, 3}}, 1);
  EXPECT_EQ(row_text(exact, 0), ".11.....");
  EXPECT_EQ(row_text(exact, 1), "11.1....");
  EXPECT_EQ(row_text(exact, 2), ".1..1...");
  EXPECT_EQ(row_text(exact, 3), ".11.11..");
  EXPECT_EQ(row_text(exact, 4), ".1.11.1.");
  EXPECT_EQ(row_text(exact, 5), ".1..1..1");
}

TEST_F(VerticalSlashMask, OfNothingIsEmpty) {
  EXPECT_EQ(mask({}, 1).nnz(), 0);
  EXPECT_EQ(mask({}, 4).nnz(), 0);
}

TEST_F(VerticalSlashMask, OfBlocksWidensEverySlashToABlockThatEndsWhereItLeaves) {
  const Mask blocks = mask({{0}, {0}}, 4);
  // Queries at positions 2 and 3 see keys [0, 4) up to their position; those at 4 to 7 see keys [4, 8) and the
  // vertical.
  EXPECT_EQ(row_text(blocks, 0), "111.....");
  EXPECT_EQ(row_text(blocks, 1), "1111....");
  EXPECT_EQ(row_text(blocks, 2), "1...1...");
  EXPECT_EQ(row_text(blocks, 5), "1...1111");
  // In the second block of queries, positions 4 to 7, the slash at distance 3 covers keys [1, 5).
  EXPECT_EQ(row_text(mask({{}, {3}}, 4), 5), ".1111...");
  // The ranges of distances 0 and 3, [4, 8) and [1, 5), touch and grow by a whole block.
  EXPECT_EQ(row_text(mask({{}, {0, 3}}, 4), 5), ".1111111");
}

TEST_F(VerticalSlashMask, OfBlocksCoversTheExactOne) {
  for (const VerticalSlash& pattern :
       {VerticalSlash{{0, 3}, {0, 2, 5}}, VerticalSlash{{}, {1, 6}}, VerticalSlash{{6}, {}}}) {
    const Mask exact = mask(pattern, 1), blocks = mask(pattern, 2);
    for (Index query = 0; query < 6; ++query) {
      for (Index key = 0; key < 8; ++key) EXPECT_LE(exact.at(0, 0, query, key), blocks.at(0, 0, query, key));
    }
  }
}

TEST(VerticalSlash, PatternsAreAskedForOncePerWantedHead) {
  OwnedInputs owned({1, 4, 2, 3, 5, 4, 4}, 1);
  const std::vector<std::uint8_t> wanted{0, 1, 0, 1};
  owned.inputs.wanted_heads = wanted;
  for (const Index block_size : {1, 2}) {
    std::vector<int> asked(4, 0);
    const Mask mask = vertical_slash_mask(
        owned.inputs,
        [&](Index, Index head) {
          ++asked[static_cast<std::size_t>(head)];
          return VerticalSlash{{static_cast<std::int32_t>(head)}, {}};
        },
        block_size, Context(1));
    EXPECT_EQ(asked, (std::vector<int>{0, 1, 0, 1}));
    EXPECT_EQ(row_text(mask, 2, 1), ".1...");
    EXPECT_EQ(row_text(mask, 2, 2), ".....");
    EXPECT_EQ(row_text(mask, 2, 3), "...1.");
  }
}

}  // namespace
}  // namespace reticle::testing
