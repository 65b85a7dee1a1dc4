#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/generation.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(Local, EndsAtTheQuerysOwnPosition) {
  const Scored s(3, std::vector<float>(6));  // queries at positions 3, 4, 5
  const Mask mask = mask_of(R"({"type": "local", "window_size": 2})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "..11..");
  EXPECT_EQ(row_text(mask, 1), "...11.");
  EXPECT_EQ(row_text(mask, 2), "....11");
  EXPECT_EQ(row_text(mask_of(R"({"type": "local", "window_size": 100})", s.inputs), 0), "1111..")
      << "a short sequence does not become dense";
  const Mask dilated = mask_of(R"({"type": "local", "window_size": 2, "dilation": 3})", s.inputs);
  EXPECT_EQ(row_text(dilated, 0), "1..1..");
  EXPECT_EQ(row_text(dilated, 2), "..1..1");
  EXPECT_EQ(row_text(mask_of(R"({"type": "local", "window_size": 5, "dilation": 4})", s.inputs), 2), ".1...1");
}

TEST(Local, AFractionIsOfTheKeysAndAtLeastOne) {
  const Scored s(1, std::vector<float>(7));
  EXPECT_EQ(row_text(mask_of(R"({"type": "local", "window_size": 0.5})", s.inputs), 0), "....111");
  EXPECT_EQ(row_text(mask_of(R"({"type": "local", "window_size": 0.01})", s.inputs), 0), "......1");
}

TEST(Local, QueriesBeforeTheFirstKeySeeNothing) {
  const Scored s(3, std::vector<float>(2));  // positions -1, 0 and 1
  const Mask mask = mask_of(R"({"type": "local", "window_size": 2})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "..");
  EXPECT_EQ(row_text(mask, 1), "1.");
  EXPECT_EQ(row_text(mask, 2), "11");
}

TEST(Local, LeavesKeysBehindTheWindowForGood) {
  const Scored s(6, std::vector<float>(6));
  const auto row = [&](const std::string& parameters, Index first) {
    return row_text(lasting(generating(masker("local", parameters)), s.inputs, 6, first), 0);
  };
  EXPECT_EQ(row(R"("window_size": 3)", 6), "....11") << "the query at 6 sees 4, 5 and itself";
  EXPECT_EQ(row(R"("window_size": 3)", 4), "..1111");
  EXPECT_EQ(row(R"("window_size": 2, "dilation": 4)", 6), "..1111") << "the query at 7 sees 3";
  EXPECT_EQ(row(R"("window_size": 0.5)", 6), "....11") << "half of 7 keys are 3";
  EXPECT_EQ(row(R"("window_size": 100)", 6), "111111");
}

TEST(Local, OfAFractionNeedsTheWholePromptAndComesBackWhenDilated) {
  EXPECT_TRUE(pipeline_of(R"({"type": "local", "window_size": 2})").maskers_of_whole_prompts(Stage::prefill).empty());
  EXPECT_EQ(pipeline_of(R"({"type": "local", "window_size": 0.5})").maskers_of_whole_prompts(Stage::prefill),
            std::vector<std::string>{"local"});
  EXPECT_TRUE(leaves_keys_for_good(R"({"type": "local", "window_size": 2, "dilation": 4})"));
  EXPECT_FALSE(leaves_keys_for_good(R"({"type": "local", "window_size": 0.5, "dilation": 2})"))
      << "its gaps widen as the sequence grows";
}

TEST(Local, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "local", "window_size": 0.0})"), "/maskers/0/window_size: must be > 0, got 0.0");
  EXPECT_EQ(refusal(R"({"type": "local", "dilation": 0})"), "/maskers/0/dilation: must be in [1, 2^31), got 0");
}

}  // namespace
}  // namespace reticle::testing
