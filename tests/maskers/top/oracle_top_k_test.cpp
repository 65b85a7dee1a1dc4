#include <algorithm>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/generation.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(OracleTopK, CountsOnlyNewPositions) {
  const Scored s(1, {5, 9, 1, 9, 3, 9});
  EXPECT_EQ(row_text(mask_of(R"({"type": "oracle_top_k", "heavy_size": 2})", s.inputs), 0), ".1.1..")
      << "ties: lower index";
  EXPECT_EQ(
      row_text(mask_of(R"({"type": "sink", "sink_size": 2}, {"type": "oracle_top_k", "heavy_size": 2})", s.inputs), 0),
      "11.1.1");
  EXPECT_EQ(row_text(mask_of(R"({"type": "oracle_top_k", "heavy_size": 100})", s.inputs), 0), "111111");
}

TEST(OracleTopK, ChoosesAmongTheKeysThatCausalityAndTheMaskAllow) {
  Scored s(2, {1, 2, 9, 8});  // queries at positions 2 and 3
  Tensor bias(DType::f32, {1, 1, 1, 4});
  const float values[] = {0, 0, -std::numeric_limits<float>::infinity(), 0};
  std::copy(std::begin(values), std::end(values), bias.span<float>().begin());
  s.inputs.attention_mask = bias.view();
  const Mask mask = mask_of(R"({"type": "oracle_top_k", "heavy_size": 2})", s.inputs, true);
  EXPECT_EQ(row_text(mask, 0), "11..");
  EXPECT_EQ(row_text(mask, 1), ".1.1");
}

TEST(OracleTopK, AFractionIsOfTheKeys) {
  const Scored s(1, {5, 9, 1, 9, 3});
  EXPECT_EQ(row_text(mask_of(R"({"type": "oracle_top_k", "heavy_size": 0.5})", s.inputs), 0), ".1.1.") << "int(2.5)";
}

TEST(OracleTopK, OfAFractionNeedsTheWholePromptAndMayComeBackToAnyKey) {
  const std::string two = R"({"type": "oracle_top_k", "heavy_size": 2})";
  const std::string half = R"({"type": "oracle_top_k", "heavy_size": 0.5})";
  EXPECT_TRUE(pipeline_of(two).maskers_of_whole_prompts(Stage::prefill).empty());
  EXPECT_EQ(pipeline_of(half).maskers_of_whole_prompts(Stage::prefill), std::vector<std::string>{"oracle_top_k"});
  EXPECT_FALSE(leaves_keys_for_good(two));
}

TEST(OracleTopK, RefusesToKeepNothing) {
  EXPECT_EQ(refusal(R"({"type": "oracle_top_k", "heavy_size": 0})"), "/maskers/0/heavy_size: must be > 0, got 0");
}

}  // namespace
}  // namespace reticle::testing
