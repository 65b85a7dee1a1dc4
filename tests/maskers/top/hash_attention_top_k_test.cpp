#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/hash_codes.hpp>
#include <reticle/core/tensor/safetensors.hpp>

#include "support/files.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

/// Writes random weights for layer 0 and returns the config of a masker that uses them.
std::string with_weights(const std::filesystem::path& path, Index heads, Index d, Index hidden, Index bits,
                         Index said_bits) {
  std::mt19937 random(1);
  std::vector<std::pair<std::string, Tensor>> owned;
  for (const char* side : {"query", "key"}) {
    const std::string prefix = std::string("hat.0.") + side;
    owned.emplace_back(prefix + "_matrix.0", random_tensor(DType::f32, {heads, d, hidden}, random));
    owned.emplace_back(prefix + "_bias.0", random_tensor(DType::f32, {heads, hidden}, random));
    owned.emplace_back(prefix + "_matrix.1", random_tensor(DType::f32, {heads, hidden, bits}, random));
    owned.emplace_back(prefix + "_bias.1", random_tensor(DType::f32, {heads, bits}, random));
  }
  std::vector<NamedTensor> tensors;
  for (const auto& [name, tensor] : owned) tensors.push_back({name, tensor.view()});
  save_safetensors(path, tensors);
  return masker("hash_attention_top_k",
                R"("heavy_size": 9, "hat_mlp_layers": 2, "hat_mlp_activation": "relu", "hat_mlp_hidden_size": )" +
                    std::to_string(hidden) + R"(, "hat_bits": )" + std::to_string(said_bits) +
                    R"(, "hat_weight_file": ")" + path.string() + "\"");
}

TEST(HashAttentionTopK, KeepsTheKeysThatShareTheMostBits) {
  // Identity weights: bits are the signs of the vectors.
  const std::vector<float> identity{1, 0, 0, 1}, zeros{0, 0};
  const TensorView matrix(identity.data(), DType::f32, {1, 2, 2}), bias(zeros.data(), DType::f32, {1, 2});
  const TemporaryFolder folder;
  save_safetensors(folder / "w", {{"hat.0.query_matrix.0", matrix},
                                  {"hat.0.query_bias.0", bias},
                                  {"hat.0.key_matrix.0", matrix},
                                  {"hat.0.key_bias.0", bias}});
  const std::vector<float> query{1, -1}, keys{1, 1, -1, -1, 2, -3, -1, 1, 5, -5};
  AttentionInputs inputs;
  inputs.queries = TensorView(query.data(), DType::f32, {1, 1, 1, 2});
  inputs.keys = inputs.values = TensorView(keys.data(), DType::f32, {1, 1, 5, 2});
  const auto kept = [&](int heavy) {
    return row_text(mask_of(masker("hash_attention_top_k", R"("hat_bits": 2, "hat_mlp_layers": 1, "heavy_size": )" +
                                                               std::to_string(heavy) + R"(, "hat_weight_file": ")" +
                                                               (folder / "w").string() + "\""),
                            inputs),
                    0);
  };
  EXPECT_EQ(kept(2), "..1.1");
  EXPECT_EQ(kept(3), "1.1.1") << "of those that share one bit the first";
}

TEST(HashAttentionTopK, ADecodeStepHashesOnlyNewKeysAndEqualsAFreshStart) {
  const TemporaryFolder folder;
  const OwnedInputs owned({1, 4, 2, 20, 90, 16, 16}, 3);
  expect_steps_equal_fresh_starts(with_weights(folder / "w", 4, 16, 24, 70, 70), owned.inputs);
  const SafeTensors weights(folder / "w");
  const auto lookup = [&](const std::string& name) { return weights.find(name); };
  HashCodes codes;
  codes.set_weights(HashMlp(lookup, "hat.0.query", HashActivation::relu, 4, 16),
                    HashMlp(lookup, "hat.0.key", HashActivation::relu, 4, 16));
  codes.update(first_keys(owned.inputs, 80), Context(2));
  const Index before = codes.keys_hashed();
  codes.update(first_keys(owned.inputs, 81), Context(2));
  EXPECT_EQ(codes.keys_hashed() - before, 4) << "one key of each query head";
}

TEST(HashAttentionTopK, GivesTheSameMaskForAnyNumberOfThreads) {
  const TemporaryFolder folder;
  const OwnedInputs owned({2, 4, 2, 30, 60, 16, 16}, 4);
  const SparseAttention sparse = pipeline_of(with_weights(folder / "w", 4, 16, 8, 64, 64));
  SequenceState one, four;
  EXPECT_EQ(sparse.mask(owned.inputs, one, Context(1)), sparse.mask(owned.inputs, four, Context(4)));
}

TEST(HashAttentionTopK, WeightsThatDoNotFitAreRefusedByName) {
  const TemporaryFolder folder;
  const OwnedInputs owned({1, 4, 2, 2, 30, 16, 16}, 5), narrow({1, 4, 2, 2, 30, 8, 8}, 5);
  const std::string path = (folder / "w").string();
  EXPECT_EQ(
      refusal<Error>(with_weights(folder / "w", 4, 16, 24, 40, 32), owned.inputs),
      path +
          ": layer 0 has 2 linear maps of width 24 to 40 bits; the config says 2 linear maps of width 24 to 32 bits");
  EXPECT_EQ(refusal<Error>(with_weights(folder / "w", 4, 16, 24, 40, 40), narrow.inputs),
            "hash weights: are of 4 query heads of 16; queries are F32 (1, 4, 2, 8)");
  AttentionInputs other_layer = owned.inputs;
  other_layer.layer = 3;
  EXPECT_EQ(refusal<Error>(with_weights(folder / "w", 4, 16, 24, 40, 40), other_layer),
            "hash weights: there is no tensor \"hat.3.query_matrix.0\"");
  EXPECT_EQ(refusal(R"({"type": "hash_attention_top_k", "hat_weight_file": "/nonexistent"})"),
            "/maskers/0/hat_weight_file: must be a file, got \"/nonexistent\"");
}

}  // namespace
}  // namespace reticle::testing
