#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/quantised_keys.hpp>

#include "support/attention.hpp"
#include "support/message_of.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

std::vector<float> scores_of(const QuantisedKeys& keys, const AttentionInputs& inputs, RowId row = {}) {
  std::vector<float> scores(static_cast<std::size_t>(inputs.keys_length()), 77.0f);
  keys.score(inputs, row, scores.data());
  return scores;
}

/// One query over four keys of head_dim 2, and recorded codebooks of two parts with three centroids each.
class RecordedCodes : public ::testing::Test {
 protected:
  RecordedCodes() {
    for (std::size_t i = 0; i < 8; ++i) codes_.span<Index>()[i] = std::vector<Index>{0, 2, 1, 1, 2, 0, 2, 2}[i];
    recipe_.parts = 2;
    recipe_.centroids = 3;
    extras_ = {{"centroids", centroids_.view()}, {"codes", codes_.view()}};
    written_.inputs.extras = extras_;
  }
  std::string refusal() {
    return message_of<ShapeError>([&] { QuantisedKeys().update(written_.inputs, recipe_, Context(1)); });
  }

  WrittenInputs written_{{1, 1, 1, 2}, {2, -1}, {1, 1, 4, 2}, std::vector<float>(8)};
  Tensor centroids_ = tensor_of({1, 1, 2, 3, 1}, {1, 2, 3, 10, 20, 30});
  Tensor codes_{DType::i64, {1, 4, 1, 2}};
  std::vector<NamedTensor> extras_;
  PqRecipe recipe_;
};

TEST_F(RecordedCodes, ScoreKeysByTheCentroidsOfTheirParts) {
  QuantisedKeys keys;
  EXPECT_TRUE(keys.empty());
  keys.update(written_.inputs, recipe_, Context(1));
  EXPECT_FALSE(keys.empty());
  // The codes decode to the keys (1, 30), (2, 20), (3, 10), (3, 30); the query is (2, -1).
  EXPECT_EQ(scores_of(keys, written_.inputs), (std::vector<float>{-28, -16, -4, -24}));
  written_.forbid({1, 3});
  EXPECT_EQ(scores_of(keys, written_.inputs), (std::vector<float>{-28, kForbidden, -4, kForbidden}));
}

TEST_F(RecordedCodes, StandForTheKeysAfterTheOffset) {
  recipe_.init_offset = 1;
  QuantisedKeys keys;
  keys.update(written_.inputs, recipe_, Context(1));
  EXPECT_EQ(scores_of(keys, written_.inputs), (std::vector<float>{kForbidden, -28, -16, -4}));
}

TEST_F(RecordedCodes, ThatDoNotFitAreRefused) {
  codes_.span<Index>()[3] = 3;
  EXPECT_EQ(refusal(), "codes: holds 3; there are 3 centroids");
  codes_.span<Index>()[3] = -1;
  EXPECT_EQ(refusal(), "codes: holds -1; there are 3 centroids");
  codes_.span<Index>()[3] = 0;
  EXPECT_EQ(refusal(), "nothing was thrown");
  extras_[1].tensor = extras_[1].tensor.slice(1, 0, 3);
  EXPECT_EQ(refusal(),
            "centroids and codes: F32 (1, 1, 2, 3, 1) and I64 (1, 3, 1, 2); expected F32 (b, hkv, parts, count, "
            "width) and I64 (b, 4 keys, hkv, parts)");
  extras_[1].tensor = centroids_.view();
  EXPECT_THROW(QuantisedKeys().update(written_.inputs, recipe_, Context(1)), ShapeError) << "of five dimensions";
}

TEST_F(RecordedCodes, OfAnotherRecipeAreRefused) {
  QuantisedKeys keys;
  keys.update(written_.inputs, recipe_, Context(1));
  recipe_.parts = 1;
  EXPECT_EQ(message_of<ShapeError>([&] { keys.update(written_.inputs, recipe_, Context(1)); }),
            "quantised keys: the layer's state holds codes of another recipe; reset it");
}

/// With a centroid per key the codes are exact.
PqRecipe exact_recipe() {
  PqRecipe recipe;
  recipe.parts = 2;
  recipe.centroids = 64;
  recipe.iterations = 3;
  return recipe;
}

void expect_products(const AttentionInputs& inputs, const std::vector<float>& scores, RowId row, Index end) {
  for (Index key = 0; key < end; ++key) {
    double product = 0;
    for (Index i = 0; i < inputs.head_dim(); ++i)
      product += element(inputs.queries, row.batch, row.head, row.query, i) *
                 element(inputs.keys, row.batch, inputs.kv_head(row.head), key, i);
    EXPECT_NEAR(scores[static_cast<std::size_t>(key)], product, 1e-4) << key;
  }
}

TEST(QuantisedKeys, WithACentroidPerKeyScoreAsTheKeysThemselves) {
  const OwnedInputs owned({2, 4, 2, 3, 20, 8, 8}, 9);
  QuantisedKeys keys;
  keys.update(owned.inputs, exact_recipe(), Context(2));
  for (Index batch = 0; batch < 2; ++batch) {
    for (Index head = 0; head < 4; ++head)
      expect_products(owned.inputs, scores_of(keys, owned.inputs, {batch, head, 1}), {batch, head, 1}, 20);
  }
}

TEST(QuantisedKeys, EndAtTheQuerysOwnPositionWhereAttentionIsCausal) {
  OwnedInputs owned({1, 1, 1, 3, 20, 8, 8}, 9);
  owned.inputs.causal = true;
  QuantisedKeys keys;
  keys.update(owned.inputs, exact_recipe(), Context(1));
  const std::vector<float> scores = scores_of(keys, owned.inputs, {0, 0, 0});
  expect_products(owned.inputs, scores, {0, 0, 0}, 18);
  EXPECT_EQ(scores[18], kForbidden);
  EXPECT_EQ(scores[19], kForbidden);
}

TEST(QuantisedKeys, CodeNewKeysByTheCodebooksOfTheFirst) {
  // The codebook consists of the first three keys: 0, 10 and 20. Later keys are rounded to these.
  const WrittenInputs written({1, 1, 3, 1}, {1, 1, 1}, {1, 1, 5, 1}, {0, 10, 20, 12, 99});
  PqRecipe recipe;
  recipe.centroids = 3;
  QuantisedKeys keys;
  keys.update(written.inputs.rows(0, 1), recipe, Context(1));
  keys.update(written.inputs, recipe, Context(1));
  EXPECT_EQ(scores_of(keys, written.inputs), (std::vector<float>{0, 10, 20, 10, 20}));
}

TEST(QuantisedKeys, CutBackAreAsIfTheLaterKeysHadNotBeen) {
  const OwnedInputs owned({2, 2, 1, 6, 20, 8, 8}, 11);
  PqRecipe recipe = exact_recipe();
  recipe.centroids = 4;
  QuantisedKeys ahead, fresh;
  for (QuantisedKeys* keys : {&ahead, &fresh}) keys->update(owned.inputs.rows(0, 2), recipe, Context(1));
  ahead.update(owned.inputs, recipe, Context(1));
  ahead.truncate(17);
  for (QuantisedKeys* keys : {&ahead, &fresh}) keys->update(owned.inputs.rows(0, 4), recipe, Context(1));
  const AttentionInputs inputs = owned.inputs.rows(0, 4);
  EXPECT_EQ(scores_of(ahead, inputs, {1, 1, 3}), scores_of(fresh, inputs, {1, 1, 3}));
}

TEST(QuantisedKeys, OfSelectedSequencesAreTheirs) {
  const OwnedInputs owned({2, 1, 1, 1, 9, 8, 8}, 13);
  QuantisedKeys keys;
  keys.update(owned.inputs, exact_recipe(), Context(1));
  keys.select(std::vector<Index>{1});
  AttentionInputs second = owned.inputs;
  for (TensorView* view : {&second.queries, &second.keys, &second.values}) *view = view->slice(0, 1, 2);
  expect_products(second, scores_of(keys, second), {0, 0, 0}, 9);
}

}  // namespace
}  // namespace reticle::testing
