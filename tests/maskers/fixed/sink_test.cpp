#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/generation.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(Sink, KeepsTheFirstKeysOfEveryRowInOneStoredRow) {
  const Scored s(3, std::vector<float>(8));
  const Mask mask = mask_of(R"({"type": "sink", "sink_size": 3})", s.inputs);
  for (Index q = 0; q < 3; ++q) EXPECT_EQ(row_text(mask, q), "111.....");
  EXPECT_EQ(mask.shape().stored_rows(), 1);
  EXPECT_EQ(row_text(mask_of(R"({"type": "sink", "sink_size": 0.29})", s.inputs), 0), "11......") << "int(0.29 * 8)";
  EXPECT_EQ(row_text(mask_of(R"({"type": "sink", "sink_size": 100})", s.inputs), 0), "11111111");
}

TEST(Sink, AFractionKeepsAtLeastOneKey) {
  const Scored s(1, std::vector<float>(8));
  EXPECT_EQ(row_text(mask_of(R"({"type": "sink", "sink_size": 0.01})", s.inputs), 0), "1.......");
  EXPECT_EQ(row_text(mask_of(R"({"type": "sink", "sink_size": 1.0})", s.inputs), 0), "11111111");
}

TEST(Sink, CausalQueriesDoNotSeeSinksAfterThem) {
  const Scored s(3, std::vector<float>(3));
  const Mask mask = mask_of(R"({"type": "sink", "sink_size": 2})", s.inputs, true);
  EXPECT_EQ(row_text(mask, 0), "1..");
  EXPECT_EQ(row_text(mask, 2), "11.");
}

TEST(Sink, OfAFixedSizeLeavesAllOtherKeysForGood) {
  const Scored s(6, std::vector<float>(6));
  EXPECT_EQ(row_text(lasting(generating(R"({"type": "sink", "sink_size": 2})"), s.inputs, 6, 6), 0), "11....");
  EXPECT_TRUE(pipeline_of(R"({"type": "sink", "sink_size": 2})").maskers_of_whole_prompts(Stage::prefill).empty());
}

TEST(Sink, OfAFractionGrowsWithTheSequence) {
  EXPECT_FALSE(leaves_keys_for_good(R"({"type": "sink", "sink_size": 0.5})"));
  EXPECT_EQ(pipeline_of(R"({"type": "sink", "sink_size": 0.5})").maskers_of_whole_prompts(Stage::prefill),
            std::vector<std::string>{"sink"})
      << "the first part of a prompt does not say how long it is";
}

TEST(Sink, RefusesAnEmptySink) {
  EXPECT_EQ(refusal(R"({"type": "sink", "sink_size": 0})"), "/maskers/0/sink_size: must be > 0, got 0");
}

}  // namespace
}  // namespace reticle::testing
