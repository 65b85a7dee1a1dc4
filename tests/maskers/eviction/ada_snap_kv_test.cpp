#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/generation.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(AdaSnapKv, HeadsShareTheBudgetOfTheLayer) {
  // Head 0 attends to keys 2, 3, 4; head 1 to key 2 only.
  Tensor queries(DType::f32, {1, 2, 9, 1}), keys(DType::f32, {1, 2, 9, 1});
  std::fill(queries.span<float>().begin(), queries.span<float>().end(), 1.0f);
  const std::vector<float> values{0, 0, 20, 20, 20, 0, 0, 0, 0, /**/ 0, 0, 20, 0, 0, 0, 0, 0, 0};
  std::copy(values.begin(), values.end(), keys.span<float>().begin());
  AttentionInputs inputs;
  inputs.queries = queries.view();
  inputs.keys = inputs.values = keys.view();
  const Mask mask =
      generate(generating(R"({"type": "ada_snap_kv", "token_capacity": 3, "approximation_window": 1, "kernel_size": 1,
                     "local_window": 1, "prefix_tokens": 0, "min_head_capacity_ratio": 0.34})"),
               inputs, 8, 1);
  EXPECT_EQ(row_text(mask, 0, 0), "..111..11") << "the floor is the window; of 4 more, head 1 needs one";
  EXPECT_EQ(row_text(mask, 0, 1), "..1....11");
}

TEST(AdaSnapKv, EveryHeadKeepsItsLeastShare) {
  // Each head's minimum share is its whole capacity, so heads cannot exchange capacity.
  const std::vector<float> queries(18, 1.0f);
  const std::vector<float> keys{0, 0, 20, 20, 20, 0, 0, 0, 0, /**/ 0, 0, 20, 0, 0, 0, 0, 0, 0};
  AttentionInputs inputs;
  inputs.queries = TensorView(queries.data(), DType::f32, {1, 2, 9, 1});
  inputs.keys = inputs.values = TensorView(keys.data(), DType::f32, {1, 2, 9, 1});
  const auto mask = [&](const std::string& more) {
    return generate(generating(masker("ada_snap_kv", R"("approximation_window": 1, "kernel_size": 1,
                                                        "min_head_capacity_ratio": 1, "local_window": 1, )" +
                                                         more)),
                    inputs, 8);
  };
  const Mask three = mask(R"("token_capacity": 3, "prefix_tokens": 0)");
  EXPECT_EQ(row_text(three, 0, 0), "..11...11");
  EXPECT_EQ(row_text(three, 0, 1), "1.1....11") << "ties: the lower index";
  const Mask prefix = mask(R"("token_capacity": 3, "prefix_tokens": 2)");
  EXPECT_EQ(row_text(prefix, 0, 0), "11.....11") << "prefix_tokens and local_window come first";
  EXPECT_EQ(row_text(mask(R"("token_capacity": 100, "prefix_tokens": 0)"), 0, 1), "111111111")
      << "a prompt below the capacity is left alone";
}

TEST(AdaSnapKv, ImportanceIsTheLargestAttentionOfTheGroupsHeads) {
  // Of a group of two, head 0 gives 0.6 to key 1 and 0.4 to key 3, head 1 gives 0.6 to key 2 and 0.4 to key 3, whose
  // mean of 0.4 would be the highest.
  const OpposedHeads heads;
  const Mask mask =
      generate(generating(masker("ada_snap_kv", R"("token_capacity": 3, "approximation_window": 1, "kernel_size": 1,
                                                   "local_window": 1, "prefix_tokens": 0)")),
               heads.inputs, 6);
  EXPECT_EQ(row_text(mask, 0, 0), ".11..11");
  EXPECT_EQ(row_text(mask, 0, 1), ".11..11") << "the heads of a KV head keep the same keys";
}

TEST(AdaSnapKv, LeavesTheRestOfThePromptForGood) {
  const Scored s(12, {0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0});
  const SparseAttention sparse = generating(masker("ada_snap_kv", R"("token_capacity": 4, "approximation_window": 2,
                                                   "kernel_size": 1, "local_window": 2, "prefix_tokens": 1)"));
  EXPECT_EQ(sparse.observed_queries(), 2);
  EXPECT_EQ(row_text(lasting(sparse, s.inputs, 10, 12), 0), "1..1....1111");
}

TEST(AdaSnapKv, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "ada_snap_kv", "min_head_capacity_ratio": 2})"),
            "/maskers/0/min_head_capacity_ratio: must be in [0, 1], got 2");
  EXPECT_EQ(refusal(R"({"type": "ada_snap_kv", "kernel_size": 4})"), "/maskers/0/kernel_size: must be odd, got 4");
  EXPECT_EQ(refusal(R"({"type": "ada_snap_kv", "token_capacity": 131})"),
            "/maskers/0/token_capacity: must be at least local_window + prefix_tokens, got 131");
  EXPECT_EQ(refusal(R"({"type": "ada_snap_kv", "approximation_window": 0})"),
            "/maskers/0/approximation_window: must be in [1, 2^31), got 0");
}

}  // namespace
}  // namespace reticle::testing
