#include <vector>

#include <gtest/gtest.h>

#include "support/generation.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(H2O, KeepsRecentKeysAndHeavyHitters) {
  // Key 1 receives the most attention in the prompt, then key 0.
  const Scored s(8, {2, 8, 0, 0, 0, 0, 0, 0});
  const Mask mask = generate(generating(R"({"type": "h2o", "heavy_size": 1, "recent_size": 2})"), s.inputs, 5, 1);
  EXPECT_EQ(row_text(mask, 0), ".1.111..");
  EXPECT_EQ(row_text(mask, 1), ".1..111.");
  EXPECT_EQ(row_text(mask, 2), ".1...111");
}

TEST(H2O, WithoutHeavyHittersItIsAWindow) {
  const Scored s(8, {9, 9, 0, 0, 0, 0, 0, 0});
  const Mask mask = generate(generating(R"({"type": "h2o", "heavy_size": 0, "recent_size": 2})"), s.inputs, 5);
  EXPECT_EQ(row_text(mask, 0), "...111..") << "two before, and its own";
  EXPECT_EQ(row_text(mask, 1), "....111.");
  EXPECT_EQ(row_text(mask, 2), ".....111");
}

TEST(H2O, HeadsOfAKvHeadKeepTheSameKeys) {
  // In each KV head one key of the prompt receives the most attention: the first in head 0, the third in head 1.
  const std::vector<float> queries(24, 1.0f), keys{8, 0, 0, 0, 0, 0, /**/ 0, 0, 8, 0, 0, 0};
  AttentionInputs inputs;
  inputs.queries = TensorView(queries.data(), DType::f32, {1, 4, 6, 1});
  inputs.keys = inputs.values = TensorView(keys.data(), DType::f32, {1, 2, 6, 1});
  const Mask mask = generate(generating(R"({"type": "h2o", "heavy_size": 1, "recent_size": 1})"), inputs, 5);
  for (const Index head : {0, 1}) EXPECT_EQ(row_text(mask, 0, head), "1...11");
  for (const Index head : {2, 3}) EXPECT_EQ(row_text(mask, 0, head), "..1.11");
}

TEST(H2O, FractionsAreOfThePrompt) {
  const OwnedInputs owned({1, 1, 1, 15, 15, 8, 8}, 1);
  const Mask mask = generate(generating(R"({"type": "h2o", "heavy_size": 0.2, "recent_size": 0.3})"), owned.inputs, 10);
  EXPECT_EQ(mask.nnz(), 5 * (2 + 3 + 1)) << "2 and 3 of 10, though there are 15 keys in the end";
}

TEST(H2O, LeavesForGoodWhatItEvicted) {
  const Scored s(7, {2, 8, 0, 0, 0, 0, 0});
  const SparseAttention sparse = generating(R"({"type": "h2o", "heavy_size": 1, "recent_size": 2})");
  EXPECT_EQ(row_text(lasting(sparse, s.inputs, 7, 7), 0), ".1...11") << "the whole prompt decides";
  EXPECT_EQ(row_text(lasting(sparse, s.inputs, 5, 7), 0), ".1...11");
  EXPECT_EQ(row_text(lasting(sparse, s.inputs, 5, 6), 0), ".1..111") << "what the step at 6 evicts may be taken back";
}

TEST(H2O, RefusesToKeepNothing) {
  EXPECT_EQ(refusal(R"({"type": "h2o", "heavy_size": 0, "recent_size": 0})"),
            "/maskers/0/heavy_size: or recent_size must be > 0, got 0");
}

}  // namespace
}  // namespace reticle::testing
