#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/generation.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(SnapKv, KeepsTheWindowTheFirstKeysAndThePeaks) {
  std::vector<float> keys(10, 0.0f);
  keys[3] = 9;
  const Scored s(12, [&] {
    std::vector<float> all = keys;
    all.resize(12);
    return all;
  }());
  const auto row = [&](const std::string& parameters) {
    return row_text(generate(generating(R"({"type": "snap_kv", )" + parameters + "}"), s.inputs, 10, 2), 1);
  };
  EXPECT_EQ(row(R"("token_capacity": 3, "approximation_window": 2, "kernel_size": 1)"), "...1....1111");
  EXPECT_EQ(row(R"("token_capacity": 5, "approximation_window": 2, "kernel_size": 3)"), "..111...1111");
  EXPECT_EQ(row(R"("token_capacity": 3, "approximation_window": 2, "kernel_size": 1, "local_window": 1,
                  "prefix_tokens": 1)"),
            "1..1.....111");
  EXPECT_EQ(row(R"("token_capacity": 100)"), "111111111111") << "a short prompt is left alone";
}

TEST(SnapKv, HeadsOfAKvHeadSumTheirAttentionWhenAsked) {
  // Head 0 gives 0.6 to key 1 and 0.4 to key 3, head 1 gives 0.6 to key 2 and 0.4 to key 3: together 0.8.
  const OpposedHeads heads;
  const auto mask = [&](const std::string& share) {
    return generate(generating(masker("snap_kv", R"("token_capacity": 2, "approximation_window": 1, "kernel_size": 1,
                                                    "share_within_group": )" +
                                                     share)),
                    heads.inputs, 6);
  };
  const Mask apart = mask("false"), together = mask("true");
  EXPECT_EQ(row_text(apart, 0, 0), ".1...11");
  EXPECT_EQ(row_text(apart, 0, 1), "..1..11");
  for (const Index head : {0, 1}) EXPECT_EQ(row_text(together, 0, head), "...1.11");
}

TEST(SnapKv, TheWindowsOwnKeysRaiseTheirNeighboursUnlessTold) {
  // The last query of the prompt attends only to key 7, its own; pooling over 3 keys gives key 6 the same score.
  const Scored s(9, {0, 0, 0, 0, 0, 0, 0, 20, 0});
  const auto row = [&](const std::string& pool_window) {
    return row_text(generate(generating(masker("snap_kv", R"("token_capacity": 2, "approximation_window": 1,
                                                             "kernel_size": 3, "pool_window": )" +
                                                              pool_window)),
                             s.inputs, 8),
                    0);
  };
  EXPECT_EQ(row("true"), "......111");
  EXPECT_EQ(row("false"), ".1.....11") << "ties: the lower index, but key 0 has one neighbour only";
}

TEST(SnapKv, OnlyTheLastQueriesDecide) {
  // The first nine queries attend to key 2; the prompt's last query, which has the opposite sign, to key 5.
  const Scored s({1, 1, 1, 1, 1, 1, 1, 1, 1, -1, 1}, {0, 0, 9, 0, 0, -9, 0, 0, 0, 0, 0});
  const auto row = [&](int window) {
    return row_text(generate(generating(masker("snap_kv", R"("token_capacity": 1, "kernel_size": 1, "local_window": 0,
                                                             "approximation_window": )" +
                                                              std::to_string(window))),
                             s.inputs, 10),
                    0);
  };
  EXPECT_EQ(row(1), ".....1....1");
  EXPECT_EQ(row(10), "..1.......1");
  EXPECT_EQ(row(100), "..1.......1") << "all, when there are fewer";
}

TEST(SnapKv, LeavesTheRestOfThePromptForGood) {
  const Scored s(12, {0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0});
  const SparseAttention sparse =
      generating(R"({"type": "snap_kv", "token_capacity": 3, "approximation_window": 2, "kernel_size": 1})");
  EXPECT_EQ(sparse.observed_queries(), 2);
  EXPECT_EQ(row_text(lasting(sparse, s.inputs, 10, 12), 0), "...1....1111");
}

TEST(SnapKv, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "snap_kv", "kernel_size": 4})"), "/maskers/0/kernel_size: must be odd, got 4");
  EXPECT_EQ(refusal(R"({"type": "snap_kv", "token_capacity": 8})"),
            "/maskers/0/token_capacity: must be at least local_window + prefix_tokens, got 8");
  EXPECT_EQ(refusal(R"({"type": "snap_kv", "approximation_window": 9223372036854775807})"),
            "/maskers/0/approximation_window: 9223372036854775807 is not an integer in [-2147483648, 2147483647]");
}

}  // namespace
}  // namespace reticle::testing
