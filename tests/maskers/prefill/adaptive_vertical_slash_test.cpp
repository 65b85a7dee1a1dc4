#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(AdaptiveVerticalSlash, BudgetsFollowTheAttention) {
  std::vector<float> keys(40, 0.0f);
  keys[7] = 12;
  const Scored peaked(40, keys), flat(40, std::vector<float>(40));
  const std::string masker =
      R"({"type": "adaptive_vertical_slash", "alpha": 0.5, "approximation_size": 4, "min_budget": 1,
          "attention_sinks": 0, "window_size": 0})";
  const std::string row = row_text(mask_of(masker, peaked.inputs), 39);
  EXPECT_EQ(row[7], '1');
  EXPECT_LE(std::count(row.begin(), row.end(), '1'), 4);
  const std::string spread = row_text(mask_of(masker, flat.inputs), 39);
  EXPECT_GE(std::count(spread.begin(), spread.end(), '1'), 20);
}

TEST(AdaptiveVerticalSlash, KeepsTheLeastBudgetOfColumnsAndDiagonalsAtLeast) {
  // The last query, at position 11, attends to key 4: one column, and the distance 7.
  const Scored s(12, {0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0});
  const auto mask = [&](const std::string& budgets) {
    return mask_of(masker("adaptive_vertical_slash", R"("alpha": 0, "approximation_size": 1, )" + budgets), s.inputs);
  };
  const Mask one = mask(R"("min_budget": 1, "attention_sinks": 0, "window_size": 0)");
  EXPECT_EQ(row_text(one, 11), "....1.......");
  EXPECT_EQ(row_text(one, 9), "..1.1.......");
  const Mask two = mask(R"("min_budget": 2, "attention_sinks": 1, "window_size": 1)");
  EXPECT_EQ(row_text(two, 11), "1...1......1");
  EXPECT_EQ(row_text(two, 9), "1.1.1....1..");
}

TEST(AdaptiveVerticalSlash, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "adaptive_vertical_slash", "alpha": 1.5})"),
            "/maskers/0/alpha: must be in [0, 1], got 1.5");
  EXPECT_EQ(refusal(R"({"type": "adaptive_vertical_slash", "approximation_size": 0})"),
            "/maskers/0/approximation_size: must be in [1, 2^31), got 0");
  EXPECT_EQ(refusal(R"({"type": "adaptive_vertical_slash", "min_budget": 0})"),
            "/maskers/0/min_budget: must be in [1, 2^31), got 0");
}

}  // namespace
}  // namespace reticle::testing
