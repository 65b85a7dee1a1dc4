#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>

#include "support/generation.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(AShape, KeepsTheFirstKeysAndAWindow) {
  const Scored s(6, std::vector<float>(8));  // positions 2 to 7
  const Mask mask = mask_of(R"({"type": "a_shape", "n_init": 2, "n_local": 3})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "111.....");
  EXPECT_EQ(row_text(mask, 3), "11.111..");
  EXPECT_EQ(row_text(mask, 5), "11...111");
  EXPECT_EQ(mask, restrict_causal(
                      mask_of(R"({"type": "sink", "sink_size": 2}, {"type": "local", "window_size": 3})", s.inputs)));
}

TEST(AShape, WithoutFirstKeysItIsAWindow) {
  const Scored s(2, std::vector<float>(5));
  const Mask mask = mask_of(R"({"type": "a_shape", "n_init": 0, "n_local": 2})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "..11.");
  EXPECT_EQ(row_text(mask, 1), "...11");
}

TEST(AShape, FractionsAreOfTheKeys) {
  const Scored s(1, std::vector<float>(8));
  EXPECT_EQ(row_text(mask_of(R"({"type": "a_shape", "n_init": 0.25, "n_local": 0.5})", s.inputs), 0), "11..1111");
}

TEST(AShape, QueriesBeforeTheFirstKeySeeNothing) {
  const Scored s(3, std::vector<float>(2));  // positions -1, 0 and 1
  const Mask mask = mask_of(R"({"type": "a_shape", "n_init": 2, "n_local": 1})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "..");
  EXPECT_EQ(row_text(mask, 1), "1.");
  EXPECT_EQ(row_text(mask, 2), "11");
}

TEST(AShape, LeavesKeysBetweenTheFirstAndTheWindowForGood) {
  const Scored s(6, std::vector<float>(6));
  const auto row = [&](const std::string& parameters, Index first) {
    return row_text(lasting(generating(masker("a_shape", parameters)), s.inputs, 6, first), 0);
  };
  EXPECT_EQ(row(R"("n_init": 1, "n_local": 3)", 6), "1...11");
  EXPECT_EQ(row(R"("n_init": 1, "n_local": 3)", 5), "1..111");
  EXPECT_EQ(row(R"("n_init": 4, "n_local": 3)", 6), "111111");
  EXPECT_FALSE(leaves_keys_for_good(R"({"type": "a_shape", "n_init": 0.5})")) << "the first half grows";
}

TEST(AShape, RefusesAnEmptyWindow) {
  EXPECT_EQ(refusal(R"({"type": "a_shape", "n_local": 0})"), "/maskers/0/n_local: must be > 0, got 0");
}

}  // namespace
}  // namespace reticle::testing
