// SharedKeys and TileBlocks are internal: they are tested through attention and its gradients, whose tiles read their
// shared keys by them. Each case asks the plan whether keys are shared in the form that it is about.
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/plan.hpp>

#include "support/attention.hpp"
#include "support/gradients.hpp"

namespace reticle::testing {
namespace {

/// Keys [begin, end) for all rows, each one p.
Mask segments(const MaskShape& shape, const std::vector<Interval>& intervals) {
  return Mask::from_runs(shape.one_row(), [&](RowId, FunctionRef<void(Run)> emit) {
    for (const Interval& interval : intervals) emit({interval.begin, interval.end, 1});
  });
}

const TilePlan& only_tile(const AttentionPlan& plan) {
  EXPECT_EQ(plan.tiles().size(), 1u);
  return plan.tiles().front();
}

void expect_agrees_by_tiles(const OwnedInputs& owned, const Mask& mask) {
  expect_agrees(attention(owned.inputs, mask), reference_attention(owned.inputs, mask));
}

TEST(TileBlocks, SegmentsOfAnyLengthAreJoinedIntoBlocks) {
  // Blocks hold 128 keys: one segment in two blocks, several in one, one that ends where a block does.
  for (const std::vector<Interval>& intervals : {std::vector<Interval>{{3, 203}},
                                                 {{0, 20}, {30, 60}, {90, 91}},
                                                 {{0, 64}, {100, 164}, {200, 230}},
                                                 {{0, 128}, {300, 301}}}) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      const OwnedInputs owned({1, 1, 1, 20, 310, 12, 9}, 1, dtype);
      const Mask mask = segments(owned.inputs.shape(), intervals);
      SCOPED_TRACE(std::to_string(intervals.size()) + " segments of " + std::string(name_of(dtype)));
      const AttentionPlan plan(owned.inputs, mask);
      Index keys = 0;
      for (const Interval& interval : intervals) keys += interval.end - interval.begin;
      EXPECT_EQ(only_tile(plan).shared_keys(), keys);
      expect_agrees_by_tiles(owned, mask);
    }
  }
}

TEST(TileBlocks, KeysThatStandAloneAreGathered) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const OwnedInputs owned({1, 1, 1, 20, 3000, 12, 9}, 2, dtype);
    std::vector<Interval> alone;
    for (std::int32_t key = 1; key < 3000; key += 20) alone.push_back({key, key + 1});
    const Mask mask = segments(owned.inputs.shape(), alone);
    const AttentionPlan plan(owned.inputs, mask);
    EXPECT_EQ(only_tile(plan).shared_list.size(), alone.size());
    expect_agrees_by_tiles(owned, mask);
  }
}

TEST(TileBlocks, SegmentsThatAllRowsAttendToStandBesideThoseOfSome) {
  // Keys 40 to 79 are for all, the neighbours for the first twelve of sixteen rows.
  const OwnedInputs owned({1, 1, 1, 16, 120, 12, 9}, 3);
  const Mask mask = Mask::intervals(owned.inputs.shape(), [](RowId row) {
    return row.query < 12 ? Interval{0, 120} : Interval{40, 80};
  });
  const AttentionPlan plan(owned.inputs, mask);
  EXPECT_FALSE(only_tile(plan).attended.empty());
  expect_agrees_by_tiles(owned, mask);
}

TEST(TileBlocks, PAndAttentionMasksComeForTheKeysOfEachBlock) {
  OwnedInputs owned({1, 1, 1, 20, 300, 12, 9}, 4);
  std::mt19937 random(5);
  owned.attention_mask = random_tensor(DType::f32, {1, 1, 20, 300}, random);
  owned.inputs.attention_mask = owned.attention_mask.view();
  std::vector<float> p(20 * 300);
  for (std::size_t i = 0; i < p.size(); ++i) p[i] = static_cast<float>(1 + i % 8) / 8;
  const Mask mask = Mask::dense(owned.inputs.shape(), p);
  const AttentionPlan plan(owned.inputs, mask);
  EXPECT_FALSE(only_tile(plan).inverse_p.empty());
  expect_agrees_by_tiles(owned, mask);
}

TEST(TileBlocks, GradientsReadTheSameBlocks) {
  Differentiated problem(
      {.batch = 1, .heads = 1, .kv_heads = 1, .queries = 12, .keys = 310, .head_dim = 5, .value_dim = 4}, 6);
  const MaskShape shape = problem.owned.inputs.shape();
  expect_gradients(problem, segments(shape, {{0, 64}, {100, 164}, {200, 230}}));
  std::vector<Interval> alone;
  for (std::int32_t key = 1; key < 310; key += 20) alone.push_back({key, key + 1});
  expect_gradients(problem, segments(shape, alone));
}

}  // namespace
}  // namespace reticle::testing
