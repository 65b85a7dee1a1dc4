// Which layers and heads a masker serves.
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/reshape.hpp>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

Mask mask_in_layer(const std::string& maskers, AttentionInputs inputs, int layer) {
  inputs.layer = layer;
  return mask_of(maskers, inputs);
}

TEST(Subsets, AMaskerServesItsLayersAndOthersAreDense) {
  const Scored s(4, std::vector<float>(8));
  const std::string masker = R"({"type": "sink", "sink_size": 2, "layers": [1, "4-5", "9-"]})";
  for (const int layer : {1, 4, 5, 9, 100}) EXPECT_EQ(row_text(mask_in_layer(masker, s.inputs, layer), 0), "11......");
  for (const int layer : {0, 2, 3, 6, 8}) EXPECT_EQ(mask_in_layer(masker, s.inputs, layer).kind(), MaskKind::full);
}

TEST(Subsets, AMaskerServesItsHeadsAndOthersAreDense) {
  const OwnedInputs owned({2, 4, 2, 3, 8, 4, 4}, 1);
  const Mask mask = mask_of(
      R"({"type": "sink", "sink_size": 2, "heads": ["1-2"]}, {"type": "sink", "sink_size": 3, "heads": [2, 3]})",
      owned.inputs);
  EXPECT_EQ(row_text(mask, 0, 0), "11111111");
  EXPECT_EQ(row_text(mask, 0, 1), "11......");
  EXPECT_EQ(row_text(mask, 0, 2), "111.....");
  EXPECT_EQ(row_text(mask, 0, 3), "111.....");
}

TEST(Subsets, SamplesOfAHeadDoNotDependOnWhichOthersAreServed) {
  const OwnedInputs owned({1, 4, 2, 3, 80, 4, 4}, 2);
  const Mask all = mask_of(R"({"type": "random_sampling", "sampling_rate": 0.2})", owned.inputs);
  const Mask some = mask_of(R"({"type": "random_sampling", "sampling_rate": 0.2, "heads": [3]})", owned.inputs);
  EXPECT_EQ(slice(some, Dim::heads, 3, 4), slice(all, Dim::heads, 3, 4));
}

TEST(Subsets, ArePrintedAndDescribed) {
  const std::string text = pipeline_of(R"({"type": "sink", "layers": [0, "2-3", "7-"], "heads": [5]})").to_json();
  EXPECT_EQ(SparseAttention::from_json(text).to_json(), text);
  EXPECT_NE(text.find("\"2-3\""), std::string::npos);
  EXPECT_NE(text.find("\"7-\""), std::string::npos);
  EXPECT_NE(schema("sink").find("layers that it serves"), std::string::npos);
}

TEST(Subsets, RefuseWhatIsNoNumberOrRange) {
  for (const char* subset : {"[]", "3", "[-1]", "[1.5]", R"(["3-2"])", R"(["-2"])", R"(["x"])", R"(["1-2x"])",
                             R"(["3"])", "[99999999999999999999]", R"(["1-99999999999999999999"])"}) {
    const std::string message = refusal(R"({"type": "sink", "layers": )" + std::string(subset) + "}");
    EXPECT_NE(message.find("/maskers/0/layers"), std::string::npos) << subset << ": " << message;
    EXPECT_NE(message.find("expected"), std::string::npos) << message;
  }
}

TEST(PipelineConfig, StagesNeedOneSeedAndMergeRule) {
  const SparseAttention seeded = SparseAttention::from_json(R"({"maskers": [], "seed": 3})");
  EXPECT_THROW(SparseAttention::by_stage(pipeline_of(""), seeded), ConfigError);
  const SparseAttention both =
      SparseAttention::by_stage(pipeline_of(R"({"type": "sink"})"), pipeline_of(R"({"type": "local"})"));
  EXPECT_EQ(both.maskers(Stage::prefill), std::vector<std::string>{"sink"});
  EXPECT_EQ(both.maskers(Stage::generation), std::vector<std::string>{"local"});
  EXPECT_EQ(SparseAttention::from_json(both.to_json()).to_json(), both.to_json());
}

}  // namespace
}  // namespace reticle::testing
