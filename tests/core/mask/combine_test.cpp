#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>

namespace reticle {
namespace {

TEST(Combine, MasksOfOtherShapesAreRefused) {
  try {
    merge(Mask::full({1, 1, 2, 3}), Mask::full({1, 1, 2, 4}));
    FAIL();
  } catch (const ShapeError& error) {
    EXPECT_STREQ(error.what(),
                 "merge: masks of shapes (1, 1, 2, 3) and (1, 1, 2, 4); expected one shape (broadcast_to gives it)");
  }
}

TEST(Combine, UnionsByNameAreMergeByRule) {
  const Mask a = Mask::dense({1, 1, 1, 4}, std::vector<float>{0.5f, 1, 0, 0.25f}),
             b = Mask::dense({1, 1, 1, 4}, std::vector<float>{0.25f, 0, 0.75f, 0.5f});
  for (const MergeRule rule : {MergeRule::add, MergeRule::max, MergeRule::independent})
    EXPECT_EQ(combine(a, b, op_of(rule)), merge(a, b, rule));
  EXPECT_EQ(combine(a, b, SetOp::max), Mask::dense(a.shape(), std::vector<float>{0.5f, 1, 0.75f, 0.5f}));
  EXPECT_EQ(combine(a, b, SetOp::intersect), Mask::dense(a.shape(), std::vector<float>{0.25f, 0, 0, 0.25f}));
  EXPECT_EQ(combine(a, b, SetOp::subtract), Mask::dense(a.shape(), std::vector<float>{0, 1, 0, 0}));
}

TEST(Combine, AWeightedMaskHasNoComplement) {
  const Mask weighted = Mask::dense({1, 1, 1, 2}, std::vector<float>{0.5f, 1});
  EXPECT_THROW(complement(weighted), ShapeError);
  EXPECT_EQ(complement(support(weighted)).nnz(), 0);
}

TEST(Combine, IndependentSamplesOverlapByTheirUnionProbability) {
  const Mask a = Mask::dense({1, 1, 1, 1}, std::vector<float>{0.5f}),
             b = Mask::dense({1, 1, 1, 1}, std::vector<float>{0.25f});
  EXPECT_FLOAT_EQ(merge(a, b, MergeRule::independent).at(0, 0, 0, 0), 0.625f);
  EXPECT_FLOAT_EQ(merge(a, b).at(0, 0, 0, 0), 0.75f);
}

// One million queries and keys must have exact counts and take only megabytes.
TEST(Combine, SinkAndWindowOverAMillionPositionsStaySmallAndExact) {
  const Index n = 1 << 20, sink = 128, window = 1024;
  const MaskShape shape{1, 32, n, n};
  const Mask mask = restrict_causal(merge(
      Mask::intervals(shape.one_row(),
                      [&](RowId) {
                        return Interval{0, static_cast<std::int32_t>(sink)};
                      }),
      Mask::intervals(shape.one_head(), [&](RowId row) {
        return Interval{static_cast<std::int32_t>(row.query - window + 1), static_cast<std::int32_t>(row.query + 1)};
      })));
  EXPECT_LT(mask.bytes(), Index{26} << 20);
  // Row q keeps q + 1 keys while the window touches the sink, and sink + window keys after that.
  const Index joined = sink + window;
  EXPECT_EQ(mask.nnz(), 32 * (joined * (joined + 1) / 2 + (n - joined) * joined));
  for (const Index query : {Index{0}, Index{127}, Index{1151}, Index{1152}, n - 1}) {
    std::vector<reticle::Run> runs;
    mask.row({0, 31, query}, runs);
    if (query < joined) {
      EXPECT_EQ(runs, (std::vector<reticle::Run>{{0, static_cast<std::int32_t>(query + 1), 1}}));
    } else {
      EXPECT_EQ(runs, (std::vector<reticle::Run>{
                          {0, 128, 1},
                          {static_cast<std::int32_t>(query - window + 1), static_cast<std::int32_t>(query + 1), 1}}));
    }
  }
}

}  // namespace
}  // namespace reticle
