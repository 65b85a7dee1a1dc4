#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/select_pages.hpp>

#include "support/maskers.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

Mask selected(const Rule& rule, const AttentionInputs& inputs) {
  PageBounds bounds;
  return select_pages(rule, inputs, bounds, Context(1));
}

Rule pages(Index count, Index page_size) { return {.kind = Rule::Kind::pages, .count = count, .page_size = page_size}; }

/// In pages of two keys, the largest keys are 3, 9, 5 and 1.
const std::vector<float> kKeys{3, 2, 0, 9, 5, 4, 1};

TEST(SelectPages, AreThoseOfTheHighestBoundsWhole) {
  const Scored scored(1, kKeys);
  EXPECT_EQ(row_text(selected(pages(0, 2), scored.inputs), 0), ".......");
  EXPECT_EQ(row_text(selected(pages(1, 2), scored.inputs), 0), "..11...");
  EXPECT_EQ(row_text(selected(pages(2, 2), scored.inputs), 0), "..1111.");
  EXPECT_EQ(row_text(selected(pages(9, 2), scored.inputs), 0), "1111111");
  EXPECT_EQ(row_text(selected(pages(1, 3), scored.inputs), 0), "...111.") << "pages of three";
}

TEST(SelectPages, FollowTheSignOfTheQuery) {
  const Scored scored({-1, 1}, kKeys);
  const Mask mask = selected(pages(1, 2), scored.inputs);
  EXPECT_EQ(row_text(mask, 0), "..11...") << "key 2 is the least";
  EXPECT_EQ(row_text(mask, 1), "..11...") << "key 3 is the largest";
  const Scored others({-1, 1}, {3, 2, 1, 9, 5, 4, 0});
  EXPECT_EQ(row_text(selected(pages(1, 2), others.inputs), 0), "......1");
}

TEST(SelectPages, EndAtTheQuerysOwnPositionWhereAttentionIsCausal) {
  Scored scored(7, kKeys);
  scored.inputs.causal = true;
  const Mask mask = selected(pages(1, 2), scored.inputs);
  EXPECT_EQ(row_text(mask, 0), "1......");
  EXPECT_EQ(row_text(mask, 1), "11.....");
  EXPECT_EQ(row_text(mask, 2), "..1....") << "the bound of its page is of key 3, which it does not see";
  EXPECT_EQ(row_text(mask, 6), "..11...");
}

TEST(SelectPages, LeaveOutWhatTheAttentionMaskForbids) {
  WrittenInputs written({1, 1, 1, 1}, {1}, {1, 1, 7, 1}, kKeys);
  written.forbid({3, 4, 5});
  EXPECT_EQ(row_text(selected(pages(1, 2), written.inputs), 0), "11.....") << "key 3 does not raise its page";
  EXPECT_EQ(row_text(selected(pages(9, 2), written.inputs), 0), "111...1") << "a page without a key is no candidate";
}

TEST(SelectPages, AlwaysHoldTheQuerysOwnPageWhereItIsAskedFor) {
  Scored scored(7, kKeys);
  scored.inputs.causal = true;
  Rule rule = pages(1, 2);
  rule.own_page = true;
  const Mask mask = selected(rule, scored.inputs);
  EXPECT_EQ(row_text(mask, 0), "1......");
  EXPECT_EQ(row_text(mask, 3), "1111...");
  EXPECT_EQ(row_text(mask, 6), "..11..1");
}

TEST(SelectPages, OfAGroupAreThoseOfTheSumOfItsHeads) {
  // On its own, the first head selects page 0 and the second page 2; together they select page 1.
  const WrittenInputs written({1, 2, 1, 2}, {1, 0, 0, 1}, {1, 1, 3, 2}, {5, 0, 4, 4, 0, 5});
  Rule rule = pages(1, 1);
  const Mask alone = selected(rule, written.inputs);
  EXPECT_EQ(row_text(alone, 0, 0), "1..");
  EXPECT_EQ(row_text(alone, 0, 1), "..1");
  rule.by_group = true;
  const Mask together = selected(rule, written.inputs);
  EXPECT_EQ(row_text(together, 0, 0), ".1.");
  EXPECT_EQ(row_text(together, 0, 1), ".1.");
}

}  // namespace
}  // namespace reticle::testing
