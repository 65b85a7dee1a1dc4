#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/page_bounds.hpp>

#include "support/attention.hpp"
#include "support/message_of.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

std::vector<float> scores_of(const PageBounds& bounds, const std::vector<float>& query, Index batch = 0,
                             Index kv_head = 0) {
  std::vector<float> scores(static_cast<std::size_t>(bounds.pages()));
  bounds.score(query, batch, kv_head, scores);
  return scores;
}

/// Five keys of two numbers, in pages of two.
WrittenInputs five_keys() { return {{1, 1, 1, 2}, {0, 0}, {1, 1, 5, 2}, {1, -2, 3, 4, -1, 0, -5, 2, 6, 7}}; }

TEST(PageBounds, TakeTheBetterEndOfEveryDimension) {
  const WrittenInputs written = five_keys();
  PageBounds bounds;
  bounds.update(written.inputs, 2, 16);
  EXPECT_EQ(bounds.pages(), 3);
  // Pages are [1, 3] x [-2, 4], [-5, -1] x [0, 2], and (6, 7) alone.
  EXPECT_EQ(scores_of(bounds, {1, 1}), (std::vector<float>{7, 1, 13}));
  EXPECT_EQ(scores_of(bounds, {-1, 2}), (std::vector<float>{-1 + 8, 5 + 4, -6 + 14}));
  EXPECT_EQ(scores_of(bounds, {-1, -1}), (std::vector<float>{-1 + 2, 5, -13}));
  EXPECT_EQ(scores_of(bounds, {0, 0}), (std::vector<float>{0, 0, 0}));
}

TEST(PageBounds, AreNeverBelowAScoreOfTheirPage) {
  const OwnedInputs owned({2, 4, 2, 3, 37, 19, 19}, 3);
  PageBounds bounds;
  bounds.update(owned.inputs, 8, 16);
  ASSERT_EQ(bounds.pages(), 5);
  for (Index batch = 0; batch < 2; ++batch) {
    for (Index head = 0; head < 4; ++head) {
      std::vector<float> query(19);
      load_row(head_matrix(owned.inputs.queries, batch, head), 2, 1, query);
      const std::vector<float> found = scores_of(bounds, query, batch, head / 2);
      for (Index key = 0; key < 37; ++key) {
        double product = 0;
        for (Index i = 0; i < 19; ++i)
          product +=
              element(owned.inputs.queries, batch, head, 2, i) * element(owned.inputs.keys, batch, head / 2, key, i);
        EXPECT_GE(static_cast<double>(found[static_cast<std::size_t>(key / 8)]), product - 1e-4);
      }
    }
  }
}

TEST(PageBounds, ReadOnlyNewKeysAndFollowTruncation) {
  const OwnedInputs owned({1, 1, 1, 10, 21, 8, 8}, 5);
  const std::vector<float> query{1, -1, 2, -2, 0.5f, 0, -0.25f, 3};
  PageBounds whole, stepwise;
  whole.update(owned.inputs, 4, 16);
  EXPECT_EQ(whole.keys_read(), 21);
  for (Index step = 0; step < 10; ++step) stepwise.update(owned.inputs.rows(step, step + 1), 4, 16);
  EXPECT_EQ(stepwise.keys_read(), 21);
  EXPECT_EQ(scores_of(stepwise, query), scores_of(whole, query));
  stepwise.truncate(14);
  EXPECT_EQ(stepwise.pages(), 3) << "the page of keys 12 and 13 is read again";
  stepwise.update(owned.inputs, 4, 16);
  EXPECT_EQ(stepwise.keys_read(), 21 + 21 - 12);
  EXPECT_EQ(scores_of(stepwise, query), scores_of(whole, query));
}

TEST(PageBounds, OfSelectedSequencesAreTheirs) {
  const OwnedInputs owned({2, 2, 2, 1, 9, 8, 8}, 7);
  const std::vector<float> query{1, -1, 2, -2, 0.5f, 0, -0.25f, 3};
  PageBounds bounds;
  bounds.update(owned.inputs, 4, 16);
  const std::vector<float> first = scores_of(bounds, query, 0, 1), second = scores_of(bounds, query, 1, 1);
  bounds.select(std::vector<Index>{1, 1, 0});
  EXPECT_EQ(scores_of(bounds, query, 0, 1), second);
  EXPECT_EQ(scores_of(bounds, query, 1, 1), second);
  EXPECT_EQ(scores_of(bounds, query, 2, 1), first);
}

TEST(PageBounds, PassOverKeysThatTheAttentionMaskForbidsToAll) {
  WrittenInputs written = five_keys();
  written.forbid({1, 4});
  PageBounds bounds;
  bounds.update(written.inputs, 2, 16);
  const std::vector<float> scores = scores_of(bounds, {1, 1});
  EXPECT_EQ(scores[0], -1) << "of key 0 alone";
  EXPECT_EQ(scores[1], 1);
  EXPECT_LT(scores[2], -1e30f) << "a page of no key lies below every other";
  EXPECT_EQ(scores_of(bounds, {0, 0}), (std::vector<float>{0, 0, 0}));
}

TEST(PageBounds, OfFewBitsAreRoundedVectorByVector) {
  // One key in each of two pages: [0, 1, 2.6, 3] at 2 bits is [0, 1, 3, 3].
  const WrittenInputs written({1, 1, 1, 4}, std::vector<float>(4), {1, 1, 2, 4}, {0, 1, 2.6f, 3, 8, 8, 8, 8});
  PageBounds bounds;
  bounds.update(written.inputs, 1, 2);
  EXPECT_EQ(scores_of(bounds, {1, 1, 1, 1}), (std::vector<float>{7, 32}));
  EXPECT_EQ(scores_of(bounds, {0, 0, -1, 0}), (std::vector<float>{-3, -8}));
}

TEST(PageBounds, OfAnotherPageSizeOrSequenceAreRefused) {
  const WrittenInputs written = five_keys();
  PageBounds bounds;
  bounds.update(written.inputs, 2, 16);
  EXPECT_EQ(message_of<ShapeError>([&] { bounds.update(written.inputs, 4, 16); }),
            "pages of 4 keys: the layer's state holds pages of 2; reset it for another size");
  AttentionInputs shorter = written.inputs;
  shorter.keys = shorter.values = shorter.keys.slice(2, 0, 4);
  EXPECT_THROW(bounds.update(shorter, 2, 16), ShapeError);
}

}  // namespace
}  // namespace reticle::testing
