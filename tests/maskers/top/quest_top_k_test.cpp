#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/page_bounds.hpp>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(QuestTopK, KeepsThePagesOfTheHighestBounds) {
  const std::vector<float> keys{1, 1, 5, -9, 2, 2, -3, 4, 3};  // pages of 2; largest: 1, 5, 2, 4, 3
  const auto kept = [&](float query, const std::string& parameters) {
    return row_text(mask_of(masker("quest_top_k", parameters), Scored(std::vector<float>{query}, keys).inputs), 0);
  };
  EXPECT_EQ(kept(1, R"("heavy_size": 4, "page_size": 2, "min_pages": 1)"), "..11..11.");
  EXPECT_EQ(kept(1, R"("heavy_size": 4, "page_size": 2)"), "..11..111") << "at least three";
  EXPECT_EQ(kept(1, R"("heavy_size": 2, "page_size": 2, "min_pages": 1, "keep_current_page": true)"), "..11....1");
  EXPECT_EQ(kept(-1, R"("heavy_size": 2, "page_size": 2, "min_pages": 1)"), "..11.....")
      << "largest of -k: -1, 9, -2, 3, -3";
}

TEST(QuestTopK, ADecodeStepReadsOnlyNewKeysAndEqualsAFreshStart) {
  const OwnedInputs owned({1, 4, 2, 30, 200, 16, 16}, 7);
  for (const char* bits : {"16", "4"}) {
    expect_steps_equal_fresh_starts(
        masker("quest_top_k", std::string(R"("heavy_size": 40, "page_size": 8, "label_bits": )") + bits), owned.inputs);
  }
  PageBounds bounds;
  bounds.update(first_keys(owned.inputs, 150), 8, 16);
  const Index before = bounds.keys_read();
  bounds.update(first_keys(owned.inputs, 151), 8, 16);
  EXPECT_EQ(bounds.keys_read() - before, 2) << "one key of each KV head";
}

TEST(QuestTopK, GroupsShareTheirPagesWhenAsked) {
  const OwnedInputs owned({1, 8, 2, 3, 120, 16, 16}, 8);
  const Mask shared =
      mask_of(R"({"type": "quest_top_k", "heavy_size": 32, "page_size": 8, "share_within_group": true})", owned.inputs);
  const Mask apart = mask_of(R"({"type": "quest_top_k", "heavy_size": 32, "page_size": 8})", owned.inputs);
  for (Index head = 0; head < 8; ++head) EXPECT_EQ(row_text(shared, 2, head), row_text(shared, 2, head / 4 * 4));
  EXPECT_NE(row_text(apart, 2, 0), row_text(apart, 2, 1));
}

TEST(QuestTopK, AnotherSequenceNeedsAnotherState) {
  const OwnedInputs owned({1, 4, 2, 1, 50, 16, 16}, 9), shorter({1, 4, 2, 1, 40, 16, 16}, 9);
  SequenceState state;
  pipeline_of(R"({"type": "quest_top_k", "page_size": 8})").mask(owned.inputs, state);
  // The calls below share one pipeline, because another pipeline has another masker, with separate state.
  const SparseAttention sparse = pipeline_of(R"({"type": "quest_top_k"})");
  sparse.mask(owned.inputs, state);
  EXPECT_THROW(sparse.mask(shorter.inputs, state), ShapeError);
  state.reset();
  EXPECT_NO_THROW(sparse.mask(shorter.inputs, state));
}

TEST(QuestTopK, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "quest_top_k", "page_size": 0})"), "/maskers/0/page_size: must be > 0, got 0");
  EXPECT_EQ(refusal(R"({"type": "quest_top_k", "label_bits": 0})"), "/maskers/0/label_bits: must be in [1, 16], got 0");
  EXPECT_EQ(refusal(R"({"type": "quest_top_k", "label_bits": 17})"),
            "/maskers/0/label_bits: must be in [1, 16], got 17");
  EXPECT_EQ(refusal(R"({"type": "quest_top_k", "heavy_size": 0})"), "/maskers/0/heavy_size: must be > 0, got 0");
  EXPECT_EQ(refusal(R"({"type": "quest_top_k", "min_pages": 0})"), "/maskers/0/min_pages: must be > 0, got 0");
}

}  // namespace
}  // namespace reticle::testing
