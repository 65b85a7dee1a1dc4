#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/tensor/safetensors.hpp>

#include "support/files.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

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
}

TEST(LokiTopK, ComponentsThatDoNotFitAreRefusedByName) {
  const OwnedInputs owned({1, 2, 1, 5, 40, 2, 2}, 2), wide({1, 2, 1, 1, 4, 4, 4}, 2);
  const TemporaryFolder folder;
  const std::vector<float> turned{0.6f, 0.8f, -0.8f, 0.6f};
  save_safetensors(folder / "pca", {{"layers.0.pca", TensorView(turned.data(), DType::f32, {1, 2, 2})}});
  const std::string path = (folder / "pca").string(), loki = masker("loki_top_k", R"("pca_file": ")" + path + "\"");
  AttentionInputs other = owned.inputs;
  other.layer = 1;
  EXPECT_EQ(refusal<FormatError>(loki, other), path + ": has no tensor \"layers.1.pca\"");
  EXPECT_EQ(refusal<ShapeError>(loki, wide.inputs), path + ": layers.0.pca is F32 (1, 2, 2); expected F32 (1, 4, 4)");
  EXPECT_EQ(refusal(R"({"type": "loki_top_k", "pca_file": "/nonexistent"})"),
            "/maskers/0/pca_file: must be a file, got \"/nonexistent\"");
}

}  // namespace
}  // namespace reticle::testing
