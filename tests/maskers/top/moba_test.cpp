#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(Moba, KeepsTheOwnBlockAndTheBestBeforeIt) {
  const Scored s(8, {1, 1, 5, 5, 3, 3, 9, 9});
  const Mask mask = mask_of(R"({"type": "moba", "block_size": 2, "top_k": 2})", s.inputs);
  EXPECT_EQ(row_text(mask, 7), "..11..11");
  EXPECT_EQ(row_text(mask, 6), "..11..1.") << "nothing after the query";
  EXPECT_EQ(row_text(mask, 3), "1111....");
  EXPECT_EQ(row_text(mask_of(R"({"type": "moba", "block_size": 2, "top_k": 1})", s.inputs), 5), "....11..");
}

TEST(Moba, HeadsOfAGroupChooseForThemselves) {
  const std::vector<float> queries{1, -1}, keys{1, 1, 5, 5, -4, -4, 0};  // the query's block is a single key
  AttentionInputs inputs;
  inputs.queries = TensorView(queries.data(), DType::f32, {1, 2, 1, 1});
  inputs.keys = inputs.values = TensorView(keys.data(), DType::f32, {1, 1, 7, 1});
  const Mask mask = mask_of(R"({"type": "moba", "block_size": 2, "top_k": 2})", inputs);
  EXPECT_EQ(row_text(mask, 0, 0), "..11..1");
  EXPECT_EQ(row_text(mask, 0, 1), "....111");
}

TEST(Moba, ASequenceShorterThanABlockIsSeenWhole) {
  const Scored s(2, {1, 2, 3});
  const Mask mask = mask_of(R"({"type": "moba", "block_size": 4, "top_k": 1})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "11.");
  EXPECT_EQ(row_text(mask, 1), "111");
}

TEST(Moba, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "moba", "top_k": 0})"), "/maskers/0/top_k: must be in [1, 2^31), got 0");
  EXPECT_EQ(refusal(R"({"type": "moba", "block_size": 0})"), "/maskers/0/block_size: must be in [1, 2^31), got 0");
}

}  // namespace
}  // namespace reticle::testing
