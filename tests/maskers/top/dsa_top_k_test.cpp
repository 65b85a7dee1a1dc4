#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(DsaTopK, RanksByTheIndexerForAllHeads) {
  const OwnedInputs owned({1, 4, 2, 2, 6, 8, 8}, 3);
  // Two indexer heads of width 1. The second has weight 0.5; negative products count as 0.
  const std::vector<float> queries{1, 1, -1, 1}, keys{3, -9, 1, 0, 2, -2}, weights{1, 1, 0.5f, 0.5f};
  const NamedTensor extras[] = {{"indexer_queries", TensorView(queries.data(), DType::f32, {1, 2, 2, 1})},
                                {"indexer_keys", TensorView(keys.data(), DType::f32, {1, 1, 6, 1})},
                                {"indexer_weights", TensorView(weights.data(), DType::f32, {1, 2, 2, 1})}};
  AttentionInputs inputs = owned.inputs;
  inputs.extras = extras;
  const Mask mask = mask_of(R"({"type": "dsa_top_k", "top_k": 2})", inputs, true);
  for (Index head = 0; head < 4; ++head) {
    EXPECT_EQ(row_text(mask, 0, head), "11....") << "3, and 0.5 * 9";
    EXPECT_EQ(row_text(mask, 1, head), "1...1.");
  }
  const Mask after_sink =
      mask_of(R"({"type": "sink", "sink_size": 1}, {"type": "dsa_top_k", "top_k": 2})", inputs, true);
  EXPECT_EQ(row_text(after_sink, 1), "1.1.1.") << "new keys only";
  inputs.extras = std::span(extras).first(2);
  EXPECT_THROW(mask_of(R"({"type": "dsa_top_k"})", inputs), ShapeError);
}

TEST(DsaTopK, PassesOverTheKeysThatAllHeadsChose) {
  // The indexer ranks the keys in their order. Both heads have selected key 0 already, and head 0 also key 1.
  const OwnedInputs owned({1, 2, 1, 1, 4, 8, 8}, 1);
  const std::vector<float> query{1}, keys{4, 3, 2, 1}, weight{1};
  const NamedTensor extras[] = {{"indexer_queries", TensorView(query.data(), DType::f32, {1, 1, 1, 1})},
                                {"indexer_keys", TensorView(keys.data(), DType::f32, {1, 1, 4, 1})},
                                {"indexer_weights", TensorView(weight.data(), DType::f32, {1, 1, 1, 1})}};
  AttentionInputs inputs = owned.inputs;
  inputs.extras = extras;
  const Mask previous = Mask::dense(inputs.shape(), std::vector<float>{1, 1, 0, 0, /**/ 1, 0, 0, 0});
  const Mask mask = mask_of(R"({"type": "dsa_top_k", "top_k": 1})", inputs, false, previous);
  EXPECT_EQ(row_text(mask, 0, 0), "11..");
  EXPECT_EQ(row_text(mask, 0, 1), "11..");
}

TEST(DsaTopK, RefusesBadParametersAndIndexersThatDoNotFit) {
  EXPECT_EQ(refusal(R"({"type": "dsa_top_k", "top_k": 0})"), "/maskers/0/top_k: must be > 0, got 0");
  const OwnedInputs owned({1, 2, 1, 2, 4, 8, 8}, 1);
  const std::vector<float> zeros(8);
  const NamedTensor extras[] = {{"indexer_queries", TensorView(zeros.data(), DType::f32, {1, 2, 2, 1})},
                                {"indexer_keys", TensorView(zeros.data(), DType::f32, {1, 1, 3, 1})},
                                {"indexer_weights", TensorView(zeros.data(), DType::f32, {1, 2, 2, 1})}};
  AttentionInputs inputs = owned.inputs;
  inputs.extras = extras;
  EXPECT_EQ(refusal<ShapeError>(R"({"type": "dsa_top_k"})", inputs),
            "dsa_top_k: indexer_queries F32 (1, 2, 2, 1), indexer_keys F32 (1, 1, 3, 1), indexer_weights F32 "
            "(1, 2, 2, 1) do not fit queries F32 (1, 2, 2, 8) and keys F32 (1, 1, 4, 8)");
  inputs.extras = {};
  EXPECT_EQ(refusal<ShapeError>(R"({"type": "dsa_top_k"})", inputs),
            "dsa_top_k: the extra tensor indexer_queries is missing; expected indexer_queries (b, indexer heads, sq, "
            "d), indexer_keys (b, 1, sk, d) and indexer_weights (b, indexer heads, sq, 1)");
}

}  // namespace
}  // namespace reticle::testing
