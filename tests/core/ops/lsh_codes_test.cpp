#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/lsh_codes.hpp>

#include "support/attention.hpp"
#include "support/message_of.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

Selection sample(const LshCodes& codes, const AttentionInputs& inputs, RowId row = {}) {
  Selection selection;
  codes.sample(inputs, Mask::empty(inputs.shape()), row, selection);
  return selection;
}

/// A recipe without centring and lifting, for projections onto the axes: a table of one bit per axis.
LshRecipe axes() { return {.tables = 2, .bits = 1, .center = false, .center_query = false, .lift = false}; }

/// One query over four keys, one in each quadrant.
class Quadrants : public ::testing::Test {
 protected:
  Quadrants() {
    extras_ = {{"projection", projection_.view()}};
    written_.inputs.extras = extras_;
  }

  WrittenInputs written_{{1, 1, 1, 2}, {3, 4}, {1, 1, 4, 2}, {1, 1, -1, 2, -3, -3, 2, -1}};
  Tensor projection_ = tensor_of({2, 2}, {1, 0, 0, 1});
  std::vector<NamedTensor> extras_;
};

using Columns = std::vector<std::int32_t>;

TEST_F(Quadrants, CollideWhereEnoughTablesAreShared) {
  LshCodes one, two;
  LshRecipe recipe = axes();
  one.update(written_.inputs, recipe, Context(1));
  EXPECT_EQ(sample(one, written_.inputs).indices, (Columns{0, 1, 3}));
  recipe.min_collisions = 2;
  two.update(written_.inputs, recipe, Context(1));
  EXPECT_EQ(sample(two, written_.inputs).indices, Columns{0});
}

TEST_F(Quadrants, ComeWithTheProbabilityOfTheirAngle) {
  LshCodes codes;
  codes.update(written_.inputs, axes(), Context(1));
  const Selection selection = sample(codes, written_.inputs);
  ASSERT_EQ(selection.p.size(), 3u);
  const double lengths[] = {std::sqrt(2.0), std::sqrt(5.0), std::sqrt(5.0)}, products[] = {7, 5, 2};
  for (std::size_t i = 0; i < 3; ++i) {
    const double bit = 1 - std::acos(products[i] / (5 * lengths[i])) / std::numbers::pi;
    EXPECT_NEAR(selection.p[i], 1 - (1 - bit) * (1 - bit), 1e-6) << i;
  }
}

TEST_F(Quadrants, ThatWereChosenOrAreForbiddenAreLeftOut) {
  LshCodes codes;
  codes.update(written_.inputs, axes(), Context(1));
  written_.forbid({1});
  Selection selection;
  codes.sample(written_.inputs, Mask::csr({1, 1, 1, 4}, Array<Index>{0, 1}, Array<std::int32_t>{0}), {}, selection);
  EXPECT_EQ(selection.indices, Columns{3});
}

TEST_F(Quadrants, AreSeenFromTheMeanWhereItIsSubtracted) {
  // The mean is (-0.25, -0.25). Centred keys are (1.25, 1.25), (-0.75, 2.25), (-2.75, -2.75) and (2.25, -0.75); the
  // centred query is (-0.25, 4.25).
  written_.queries.span<float>()[0] = -0.5f;
  LshRecipe recipe = axes();
  recipe.center = recipe.center_query = true;
  LshCodes codes;
  codes.update(written_.inputs, recipe, Context(1));
  EXPECT_EQ(sample(codes, written_.inputs).indices, (Columns{0, 1, 2}));
  // Without the first and the last key the mean is (-2, -0.5), and the centred query is (1.5, 4.5).
  recipe.mean_skips_first = recipe.mean_skips_last = 1;
  LshCodes skipping;
  skipping.update(written_.inputs, recipe, Context(1));
  EXPECT_EQ(sample(skipping, written_.inputs).indices, (Columns{0, 1, 3}));
}

TEST_F(Quadrants, OnASphereAreLiftedByWhatTheirNormLacks) {
  // The only projection with weight is onto the third dimension, the lift, which is positive except for the longest
  // key.
  projection_ = tensor_of({3, 2}, {0, 0, 0, 0, -1, 1});
  extras_[0].tensor = projection_.view();
  LshRecipe recipe = axes();
  recipe.lift = true;
  LshCodes codes;
  codes.update(written_.inputs, recipe, Context(1));
  // The query, lifted by 0, has the code (0, 0); the longest key, (-3, -3), has it too. The others share one table.
  EXPECT_EQ(sample(codes, written_.inputs).indices, (Columns{0, 1, 2, 3}));
  recipe.min_collisions = 2;
  LshCodes both;
  both.update(written_.inputs, recipe, Context(1));
  EXPECT_EQ(sample(both, written_.inputs).indices, Columns{2});
}

TEST_F(Quadrants, ProjectionsThatDoNotFitAreRefused) {
  const auto refusal = [&](const Tensor& projection) {
    extras_[0].tensor = projection.view();
    return message_of<ShapeError>([&] { LshCodes().update(written_.inputs, axes(), Context(1)); });
  };
  EXPECT_EQ(refusal(Tensor(DType::f32, {3, 2})),
            "projection: F32 (3, 2); expected F32 (2, lsh_l * lsh_k), for all heads or for each of 1");
  EXPECT_NE(refusal(Tensor(DType::f32, {2, 3})), "nothing was thrown");
  EXPECT_NE(refusal(Tensor(DType::f32, {2, 2, 2})), "nothing was thrown");
  EXPECT_NE(refusal(Tensor(DType::f64, {2, 2})), "nothing was thrown");
  EXPECT_EQ(refusal(tensor_of({1, 2, 2}, {1, 0, 0, 1})), "nothing was thrown");
}

TEST(LshCodes, OfAnotherRecipeAreRefused) {
  const OwnedInputs owned({1, 1, 1, 1, 5, 8, 8}, 3);
  LshCodes codes;
  codes.update(owned.inputs, {.tables = 4, .bits = 3}, Context(1));
  EXPECT_EQ(message_of<ShapeError>([&] { codes.update(owned.inputs, {.tables = 4, .bits = 4}, Context(1)); }),
            "hashed keys: the layer's state holds codes of another recipe; reset it");
}

void expect_same(const LshCodes& a, const LshCodes& b, const AttentionInputs& inputs, RowId row) {
  const Selection left = sample(a, inputs, row), right = sample(b, inputs, row);
  EXPECT_EQ(left.indices, right.indices);
  EXPECT_EQ(left.p, right.p);
  EXPECT_FALSE(left.indices.empty());
}

TEST(LshCodes, CutBackAreAsIfTheLaterKeysHadNotBeen) {
  const OwnedInputs owned({2, 2, 1, 8, 60, 8, 8}, 7);
  const LshRecipe recipe{.tables = 20, .bits = 4};
  // The first step brings 53 keys, and each later step one more.
  for (const Index left : {1, 3, 6}) {
    LshCodes ahead, fresh;
    for (Index step = 0; step < 8; ++step) {
      ahead.update(owned.inputs.rows(step, step + 1), recipe, Context(1));
      if (step < left) fresh.update(owned.inputs.rows(step, step + 1), recipe, Context(1));
    }
    ahead.truncate(52 + left);
    const AttentionInputs next = owned.inputs.rows(left, left + 1);
    ahead.update(next, recipe, Context(1));
    fresh.update(next, recipe, Context(1));
    expect_same(ahead, fresh, next, {1, 1, 0});
  }
}

TEST(LshCodes, OfSelectedSequencesAreTheirs) {
  const OwnedInputs owned({2, 2, 1, 1, 60, 8, 8}, 7);
  const LshRecipe recipe{.tables = 20, .bits = 4};
  LshCodes codes;
  codes.update(owned.inputs, recipe, Context(1));
  const Selection before = sample(codes, owned.inputs, {1, 1, 0});
  codes.select(std::vector<Index>{1});
  AttentionInputs second = owned.inputs;
  for (TensorView* view : {&second.queries, &second.keys, &second.values}) *view = view->slice(0, 1, 2);
  const Selection after = sample(codes, second, {0, 1, 0});
  EXPECT_EQ(after.indices, before.indices);
  EXPECT_EQ(after.p, before.p);
  EXPECT_FALSE(after.indices.empty());
}

}  // namespace
}  // namespace reticle::testing
