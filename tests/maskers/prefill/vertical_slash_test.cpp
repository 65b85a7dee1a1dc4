#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(VerticalSlash, KeepsColumnsAndDiagonalsOfTheLastQueries) {
  // The last query attends to keys 1 and 5. The vertical is key 1; the slash is the distance 7 - 5 = 2.
  std::vector<float> keys(8, 0.0f);
  keys[1] = 9;
  keys[5] = 8;
  const Scored s(8, keys);
  const Mask mask = mask_of(
      R"({"type": "vertical_slash", "vertical_size": 1, "slash_size": 1, "approximation_window": 1,
          "attention_sinks": 0, "window_size": 0})",
      s.inputs);
  EXPECT_EQ(row_text(mask, 7), ".1......") << "distance 6 leads to key 1, too";
  EXPECT_EQ(row_text(mask, 6), "11......") << "the slash follows the query";
  EXPECT_EQ(row_text(mask, 5), ".1......");
  const Mask two = mask_of(
      R"({"type": "vertical_slash", "vertical_size": 1, "slash_size": 2, "approximation_window": 1,
          "attention_sinks": 0, "window_size": 0})",
      s.inputs);
  EXPECT_EQ(row_text(two, 7), ".1...1..");
  EXPECT_EQ(row_text(two, 2), "11......");
}

TEST(VerticalSlash, ForcedOnesCountInTheBudget) {
  std::vector<float> keys(8, 0.0f);
  keys[3] = 9;
  const Scored s(8, keys);
  const auto row = [&](int verticals, int sinks, int slashes, int window) {
    return row_text(mask_of(R"({"type": "vertical_slash", "approximation_window": 2, "vertical_size": )" +
                                std::to_string(verticals) + R"(, "attention_sinks": )" + std::to_string(sinks) +
                                R"(, "slash_size": )" + std::to_string(slashes) + R"(, "window_size": )" +
                                std::to_string(window) + "}",
                            s.inputs),
                    7);
  };
  EXPECT_EQ(row(2, 2, 2, 2), "11....11") << "the sinks and the window alone";
  EXPECT_EQ(row(3, 2, 2, 2), "11.1..11");
  EXPECT_EQ(row(1, 2, 1, 2), "1......1") << "a budget below the forced keeps the first of them";
}

TEST(VerticalSlash, WidenedSlashesCoverTheExactOnes) {
  const OwnedInputs owned({1, 2, 1, 200, 200, 16, 16}, 1);
  for (const char* block : {"2", "16", "64"}) {
    const std::string sizes = R"({"type": "vertical_slash", "vertical_size": 20, "slash_size": 30, "attention_sinks": 2,
                                  "window_size": 10, "block_size": )";
    const Mask exact = mask_of(sizes + "1}", owned.inputs), widened = mask_of(sizes + block + "}", owned.inputs);
    EXPECT_EQ((exact - widened).nnz(), 0) << block;
    EXPECT_GT(widened.nnz(), exact.nnz());
    EXPECT_EQ(widened, restrict_causal(widened));
  }
}

TEST(VerticalSlash, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "vertical_slash", "approximation_window": 0})"),
            "/maskers/0/approximation_window: must be in [1, 2^31), got 0");
  EXPECT_EQ(refusal(R"({"type": "vertical_slash", "vertical_size": 0, "slash_size": 0})"),
            "/maskers/0/vertical_size: or slash_size must be > 0, got 0");
  EXPECT_EQ(refusal(R"({"type": "vertical_slash", "attention_sinks": -1})"),
            "/maskers/0/attention_sinks: must be in [0, 2^31), got -1");
}

}  // namespace
}  // namespace reticle::testing
