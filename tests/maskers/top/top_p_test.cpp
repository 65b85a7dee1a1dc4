#include <string>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(TopP, ExactIsTheOracle) {
  const OwnedInputs owned({2, 4, 2, 9, 50, 16, 16}, 1, DType::bf16);
  EXPECT_EQ(mask_of(R"({"type": "top_p", "top_p": 0.6})", owned.inputs, true),
            mask_of(R"({"type": "oracle_top_p", "top_p": 0.6})", owned.inputs, true));
}

TEST(TopP, FewerKeysWhereTheScoresArePeaked) {
  const Scored peaked(1, {9, 0, 0, 0}), flat(1, {0, 0, 0, 0});
  const std::string masker = R"({"type": "top_p", "top_p": 0.6})";
  EXPECT_EQ(row_text(mask_of(masker, peaked.inputs), 0), "1...");
  EXPECT_EQ(row_text(mask_of(masker, flat.inputs), 0), "111.");
}

TEST(TopP, SharesAreOfTheMassOfTheScorersScores) {
  // Page means 3, 0 and 0: masses of e^3 = 20.1 for each of keys 0 and 1, and of 1 for the others, of 44.2.
  const Scored s(1, {2, 4, 1, -1, -2, 2});
  const auto row = [&](const std::string& p) {
    return row_text(mask_of(masker("top_p", R"("scorer": "page_means", "page_size": 2, "top_p": )" + p), s.inputs), 0);
  };
  EXPECT_EQ(row("0.45"), "1.....");
  EXPECT_EQ(row("0.5"), "11....");
  EXPECT_EQ(row("0.92"), "111...");
}

TEST(TopP, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "top_p", "top_p": 1.5})"), "/maskers/0/top_p: must be in [0, 1], got 1.5");
  EXPECT_EQ(refusal(R"({"type": "top_p", "page_size": 0})"), "/maskers/0/page_size: must be in [1, 2^31), got 0");
}

}  // namespace
}  // namespace reticle::testing
