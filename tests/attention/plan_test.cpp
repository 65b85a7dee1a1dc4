#include <algorithm>
#include <bit>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/plan.hpp>

#include "support/attention.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

/// What a plan computes for row r: keys with their 1 / p.
std::map<std::int32_t, float> planned_row(const TilePlan& plan, Index r) {
  std::map<std::int32_t, float> keys;
  const auto rows = static_cast<Index>(plan.rest_ptr.size()) - 1;
  Index ordinal = 0;
  const auto share = [&](std::int32_t key, bool attends) {
    const float inverse_p =
        plan.inverse_p.empty() ? 1.0f : plan.inverse_p[static_cast<std::size_t>(ordinal++ * rows + r)];
    EXPECT_TRUE(!attends || keys.emplace(key, inverse_p).second) << "key " << key << " twice";
  };
  for (const TilePlan::Shared& segment : plan.shared) {
    for (std::int32_t key = segment.begin; key < segment.end; ++key)
      share(key, segment.attended < 0 ||
                     (plan.attended[static_cast<std::size_t>(segment.attended + key - segment.begin)] >> r & 1) != 0);
  }
  for (const std::int32_t key : plan.shared_list) share(key, true);
  for (Index i = plan.rest_ptr[static_cast<std::size_t>(r)]; i < plan.rest_ptr[static_cast<std::size_t>(r) + 1]; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const float inverse_p = plan.rest_inverse_p.empty() ? 1.0f : plan.rest_inverse_p[at];
    EXPECT_TRUE(keys.emplace(plan.rest[at], inverse_p).second) << "key " << plan.rest[at] << " twice";
  }
  return keys;
}

void expect_plans_every_entry_once(const AttentionInputs& inputs, const Mask& mask) {
  const AttentionPlan plan(inputs, mask, Context(1));
  const Tiling tiling(inputs, mask);
  ASSERT_EQ(static_cast<Index>(plan.tiles().size()), tiling.count());
  Index rows = 0;
  for (Index tile = 0; tile < tiling.count(); ++tile) {
    const TileRows of_tile = tiling.rows(tile);
    for (Index r = 0; r < of_tile.count(); ++r, ++rows) {
      const RowId row = of_tile.row(r);
      std::vector<Run> runs;
      mask.row(row, runs);
      std::map<std::int32_t, float> expected;
      for (const Run& run : runs) {
        for (std::int32_t key = run.begin; key < std::min<Index>(run.end, inputs.visible_keys(row.query)); ++key)
          expected.emplace(key, 1.0f / run.p);
      }
      ASSERT_EQ(planned_row(plan.tiles()[static_cast<std::size_t>(tile)], r), expected)
          << "row " << row.batch << ", " << row.head << ", " << row.query;
    }
  }
  EXPECT_EQ(rows, inputs.shape().rows());
}

TEST(AttentionPlan, HoldsEveryEntryOfEveryRowOnceForEveryRepresentationSharingAndCausality) {
  std::mt19937 random(1);
  for (const Shapes& s : {Shapes{2, 6, 2, 70, 200, 4, 4}, Shapes{1, 8, 1, 1, 300, 4, 4}, Shapes{1, 3, 3, 130, 90, 4, 4},
                          Shapes{1, 14, 2, 9, 64, 4, 4}}) {
    OwnedInputs owned(s, 1);
    for (const bool causal : {false, true}) {
      owned.inputs.causal = causal;
      for (const NamedMask& m : random_masks(owned.inputs.shape(), random)) {
        SCOPED_TRACE(m.name + (causal ? ", causal" : "") + ", queries " + std::to_string(s.queries));
        expect_plans_every_entry_once(owned.inputs, m.mask);
      }
    }
  }
}

TEST(AttentionPlan, KeysThatEnoughRowsAttendToAreShared) {
  const OwnedInputs owned({1, 1, 1, 64, 4096, 4, 4}, 2);
  // 200 columns that every row has, and one of its own.
  const Mask mask = Mask::from_selections(
      owned.inputs.shape(),
      [](RowId row, Selection& selection) {
        for (std::int32_t i = 0; i < 200; ++i) selection.indices.push_back(5 * i);
        selection.indices.push_back(2000 + static_cast<std::int32_t>(row.query));
      },
      Context(1));
  const AttentionPlan plan(owned.inputs, mask);
  ASSERT_EQ(plan.tiles().size(), 1u);
  EXPECT_EQ(plan.tiles()[0].shared_keys(), 200);
  EXPECT_TRUE(plan.tiles()[0].attended.empty());
  EXPECT_EQ(plan.tiles()[0].rest.size(), 64u);
  EXPECT_EQ(plan.describe().substr(0, 89),
            "1 tiles; 99.5 % of 12864 entries shared by rows (tiles filled to 100.0 %), 0.5 % gathered");
}

TEST(AttentionPlan, BlocksOfOneRowAreSharedInFull) {
  const OwnedInputs owned({1, 2, 2, 128, 1024, 4, 4}, 3);
  const Mask mask = Mask::intervals(owned.inputs.shape(), [](RowId row) {
    const auto block = static_cast<std::int32_t>((row.query / 64 + row.head) % 8);
    return Interval{128 * block, 128 * block + 128};
  });
  const AttentionPlan plan(owned.inputs, mask);
  ASSERT_EQ(plan.tiles().size(), 4u);
  for (const TilePlan& tile : plan.tiles()) {
    EXPECT_EQ(tile.shared_keys(), 128);
    EXPECT_TRUE(tile.attended.empty());
    EXPECT_TRUE(tile.rest.empty());
  }
}

TEST(AttentionPlan, KeysThatMostlySomeRowOfADecodeStepWantsAreOneStretchUpToTheLastKey) {
  const OwnedInputs owned({1, 4, 1, 1, 300, 4, 4}, 3);
  const Mask mask = Mask::from_selections(
      owned.inputs.shape(),
      [](RowId row, Selection& selection) {
        for (std::int32_t key = 0; key < 300; ++key) {
          if (key % 8 != 0 && (key + row.head) % 2 == 0) selection.indices.push_back(key);
        }
      },
      Context(1));
  const AttentionPlan plan(owned.inputs, mask);
  ASSERT_EQ(plan.tiles().size(), 1u);
  ASSERT_EQ(plan.tiles()[0].shared.size(), 1u);
  EXPECT_EQ(plan.tiles()[0].shared[0].begin, 0);
  EXPECT_EQ(plan.tiles()[0].shared[0].end, 300);
  EXPECT_TRUE(plan.tiles()[0].rest.empty());
}

TEST(AttentionPlan, IsRefusedForOtherExtents) {
  OwnedInputs owned({1, 4, 2, 3, 8, 4, 4}, 4);
  const AttentionPlan plan(owned.inputs, Mask::full(owned.inputs.shape()));
  owned.inputs.causal = true;
  try {
    attention(owned.inputs, plan);
    ADD_FAILURE() << "accepted";
  } catch (const ShapeError& error) {
    EXPECT_STREQ(error.what(), "attention: the plan is for 2 KV heads, causal false; the inputs have 2, causal true");
  }
  const OwnedInputs longer({1, 4, 2, 3, 9, 4, 4}, 4);
  EXPECT_THROW(attention(longer.inputs, plan), ShapeError);
}

}  // namespace
}  // namespace reticle::testing
