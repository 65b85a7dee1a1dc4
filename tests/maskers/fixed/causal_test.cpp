#include <vector>

#include <gtest/gtest.h>

#include "support/generation.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(Causal, KeepsWhatLiesBehind) {
  const Scored s(3, std::vector<float>(4));
  const Mask mask = mask_of(R"({"type": "causal"})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "11..");
  EXPECT_EQ(row_text(mask, 2), "1111");
}

TEST(Causal, OneQuerySeesEveryKeyAndOneBeforeTheFirstKeyNone) {
  EXPECT_EQ(row_text(mask_of(R"({"type": "causal"})", Scored(1, std::vector<float>(5)).inputs), 0), "11111");
  const Mask mask = mask_of(R"({"type": "causal"})", Scored(2, std::vector<float>(1)).inputs);  // positions -1 and 0
  EXPECT_EQ(row_text(mask, 0), ".");
  EXPECT_EQ(row_text(mask, 1), "1");
}

TEST(Causal, LeavesNothingForGood) {
  const Scored s(4, std::vector<float>(4));
  EXPECT_EQ(row_text(lasting(generating(R"({"type": "causal"})"), s.inputs, 4, 4), 0), "1111");
  EXPECT_TRUE(pipeline_of(R"({"type": "causal"})").maskers_of_whole_prompts(Stage::prefill).empty());
}

TEST(Causal, RefusesParameters) {
  EXPECT_EQ(refusal(R"({"type": "causal", "window": 1})"), "/maskers/0/window: unknown key; known are none");
}

}  // namespace
}  // namespace reticle::testing
