// top_k and top_p over scorers by name, Loki, and the lightning indexer.
#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/tensor/safetensors.hpp>

#include "support/files.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(TopK, ExactIsTheOracle) {
  const OwnedInputs owned({2, 4, 2, 9, 50, 16, 16}, 1, DType::bf16);
  EXPECT_EQ(mask_of(R"({"type": "top_k", "heavy_size": 7})", owned.inputs, true),
            mask_of(R"({"type": "oracle_top_k", "heavy_size": 7})", owned.inputs, true));
  EXPECT_EQ(mask_of(R"({"type": "top_p", "top_p": 0.6})", owned.inputs, true),
            mask_of(R"({"type": "oracle_top_p", "top_p": 0.6})", owned.inputs, true));
}

TEST(TopK, EachScorerRanksByItsRule) {
  const auto row = [](const Scored& s, const std::string& parameters) {
    return row_text(mask_of(R"({"type": "top_k", )" + parameters + "}", s.inputs), 0);
  };
  const Scored s(1, {4, -5, 1, 2, 3, 0});
  EXPECT_EQ(row(s, R"("heavy_size": 2)"), "1...1.");
  EXPECT_EQ(row(s, R"("heavy_size": 2, "scorer": "key_norm")"), "..1..1") << "the smallest keys";
  EXPECT_EQ(row(s, R"("heavy_size": 2, "scorer": "page_bounds", "page_size": 2)"), "11....") << "their page holds 4";
  EXPECT_EQ(row(s, R"("heavy_size": 2, "scorer": "page_means", "page_size": 2)"), "..11..")
      << "means -0.5, 1.5, 1.5; the first of equals";
}

TEST(TopK, AnIncompletePageIsScoredByItsOwnKeys) {
  const Scored s(1, {1, 1, 1, 1, 9, 0});
  const Mask mask = mask_of(R"({"type": "top_k", "heavy_size": 2, "scorer": "page_means", "page_size": 4})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "1...1.");
}

TEST(TopK, ValueAwareCountsTheSizeOfValues) {
  Scored s(1, {1, 1, 1, 1});
  Tensor values(DType::f32, {1, 1, 4, 1});
  const std::vector<float> sizes{1, -8, 0, 2};
  std::copy(sizes.begin(), sizes.end(), values.span<float>().begin());
  s.inputs.values = values.view();
  EXPECT_EQ(row_text(mask_of(R"({"type": "top_k", "heavy_size": 2, "scorer": "value_aware"})", s.inputs), 0), ".1.1");
  EXPECT_EQ(row_text(mask_of(R"({"type": "top_k", "heavy_size": 4, "scorer": "value_aware"})", s.inputs), 0), "11.1")
      << "a value of 0 adds nothing";
}

TEST(TopP, FewerKeysWhereTheScoresArePeaked) {
  const Scored peaked(1, {9, 0, 0, 0}), flat(1, {0, 0, 0, 0});
  const std::string masker = R"({"type": "top_p", "top_p": 0.6})";
  EXPECT_EQ(row_text(mask_of(masker, peaked.inputs), 0), "1...");
  EXPECT_EQ(row_text(mask_of(masker, flat.inputs), 0), "111.");
}

TEST(LokiTopK, AllComponentsAreExactAndTheFirstAreTheirOwnRanking) {
  const OwnedInputs owned({1, 2, 1, 5, 40, 2, 2}, 2);
  const TemporaryFolder folder;
  const std::vector<float> turned{0.6f, 0.8f, -0.8f, 0.6f};  // orthonormal rows
  save_safetensors(folder / "pca", {{"layers.0.pca", TensorView(turned.data(), DType::f32, {1, 2, 2})}});
  const auto mask = [&](const char* rank) {
    return mask_of(R"({"type": "loki_top_k", "heavy_size": 6, "rank": )" + std::string(rank) + R"(, "pca_file": ")" +
                       (folder / "pca").string() + "\"}",
                   owned.inputs);
  };
  EXPECT_EQ(mask("2"), mask_of(R"({"type": "oracle_top_k", "heavy_size": 6})", owned.inputs));
  EXPECT_EQ(mask("1.0"), mask("2"));
  const Mask first = mask("1");
  for (Index query = 0; query < 5; ++query) {
    const auto along = [&](const Tensor& tensor, Index row) {
      return 0.6f * tensor.span<float>()[static_cast<std::size_t>(2 * row)] +
             0.8f * tensor.span<float>()[static_cast<std::size_t>(2 * row + 1)];
    };
    float least_kept = 1e9f, most_left = -1e9f;
    for (Index key = 0; key < 40; ++key) {
      const float score = along(owned.queries, query) * along(owned.keys, key);
      (first.at(0, 0, query, key) > 0 ? least_kept : most_left) =
          first.at(0, 0, query, key) > 0 ? std::min(least_kept, score) : std::max(most_left, score);
    }
    EXPECT_GE(least_kept, most_left);
  }
  AttentionInputs other = owned.inputs;
  other.layer = 1;
  SequenceState state;
  EXPECT_THROW(
      pipeline_of(R"({"type": "loki_top_k", "pca_file": ")" + (folder / "pca").string() + "\"}").mask(other, state),
      FormatError);
}

TEST(DsaTopK, RanksByTheIndexerForAllHeads) {
  const OwnedInputs owned({1, 4, 2, 2, 6, 8, 8}, 3);
  // Two indexer heads of width 1; the second counts half, negative products not at all.
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

TEST(Scorers, RefuseBadParameters) {
  EXPECT_NE(refusal(R"({"type": "top_k", "scorer": "exakt"})").find("exact"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "top_k", "heavy_size": 0})").find("/heavy_size"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "top_p", "top_p": 1.5})").find("[0, 1]"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "top_p", "page_size": 0})").find("/page_size"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "dsa_top_k", "top_k": 0})").find("/top_k"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "loki_top_k", "pca_file": "/nonexistent"})").find("must be a file"), std::string::npos);
}

}  // namespace
}  // namespace reticle::testing
