#include <algorithm>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/ops/hash_codes.hpp>
#include <reticle/core/tensor/safetensors.hpp>

#include "support/attention.hpp"
#include "support/files.hpp"

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
  return R"({"maskers": [{"type": "hash_attention_top_k", "heavy_size": 9, "hat_mlp_layers": 2, "hat_mlp_hidden_size": )" +
         std::to_string(hidden) + R"(, "hat_mlp_activation": "relu", "hat_bits": )" + std::to_string(said_bits) +
         R"(, "hat_weight_file": ")" + path.string() + R"("}]})";
}

TEST(HashAttentionTopK, KeepsTheKeysThatShareTheMostBits) {
  // Identity weights: bits are the signs of the vectors.
  Tensor matrix(DType::f32, {1, 2, 2}), bias(DType::f32, {1, 2});
  const float identity[] = {1, 0, 0, 1};
  std::copy(std::begin(identity), std::end(identity), matrix.span<float>().begin());
  std::fill(bias.span<float>().begin(), bias.span<float>().end(), 0.0f);
  const TemporaryFolder folder;
  save_safetensors(folder / "w", {{"hat.0.query_matrix.0", matrix},
                                  {"hat.0.query_bias.0", bias},
                                  {"hat.0.key_matrix.0", matrix},
                                  {"hat.0.key_bias.0", bias}});
  Tensor queries(DType::f32, {1, 1, 1, 2}), keys(DType::f32, {1, 1, 5, 2});
  const float q[] = {1, -1}, k[] = {1, 1, -1, -1, 2, -3, -1, 1, 5, -5};
  std::copy(std::begin(q), std::end(q), queries.span<float>().begin());
  std::copy(std::begin(k), std::end(k), keys.span<float>().begin());
  AttentionInputs inputs;
  inputs.queries = queries.view();
  inputs.keys = inputs.values = keys.view();
  const auto kept = [&](int heavy) {
    SequenceState state;
    const Mask mask =
        SparseAttention::from_json(
            R"({"maskers": [{"type": "hash_attention_top_k", "hat_bits": 2, "hat_mlp_layers": 1, "heavy_size": )" +
            std::to_string(heavy) + R"(, "hat_weight_file": ")" + (folder / "w").string() + R"("}]})")
            .mask(inputs, state);
    std::string text;
    for (Index key = 0; key < 5; ++key) text += mask.at(0, 0, 0, key) > 0 ? '1' : '.';
    return text;
  };
  EXPECT_EQ(kept(2), "..1.1");
  EXPECT_EQ(kept(3), "1.1.1") << "of those that share one bit the first";
}

TEST(HashAttentionTopK, ADecodeStepHashesOnlyNewKeysAndEqualsAFreshStart) {
  const TemporaryFolder folder;
  const OwnedInputs owned({1, 4, 2, 20, 90, 16, 16}, 3);
  const auto sparse = SparseAttention::from_json(with_weights(folder / "w", 4, 16, 24, 70, 70));
  SequenceState kept;
  for (Index step = 0; step < 20; ++step) {
    AttentionInputs inputs = owned.inputs;
    inputs.queries = inputs.queries.slice(2, step, step + 1);
    inputs.keys = inputs.keys.slice(2, 0, 71 + step);
    inputs.values = inputs.values.slice(2, 0, 71 + step);
    SequenceState fresh;
    EXPECT_EQ(sparse.mask(inputs, kept), sparse.mask(inputs, fresh)) << "step " << step;
  }
  const SafeTensors weights(folder / "w");
  const auto lookup = [&](const std::string& name) { return weights.find(name); };
  HashCodes codes;
  codes.set_weights(HashMlp(lookup, "hat.0.query", HashActivation::relu, 4, 16),
                    HashMlp(lookup, "hat.0.key", HashActivation::relu, 4, 16));
  AttentionInputs inputs = owned.inputs;
  inputs.keys = inputs.keys.slice(2, 0, 80);
  codes.update(inputs, Context(2));
  const Index before = codes.keys_hashed();
  inputs.keys = owned.inputs.keys.slice(2, 0, 81);
  codes.update(inputs, Context(2));
  EXPECT_EQ(codes.keys_hashed() - before, 4) << "one key of each query head";
}

TEST(HashAttentionTopK, GivesTheSameMaskForAnyNumberOfThreads) {
  const TemporaryFolder folder;
  const OwnedInputs owned({2, 4, 2, 30, 60, 16, 16}, 4);
  const auto sparse = SparseAttention::from_json(with_weights(folder / "w", 4, 16, 8, 64, 64));
  SequenceState one, four;
  EXPECT_EQ(sparse.mask(owned.inputs, one, Context(1)), sparse.mask(owned.inputs, four, Context(4)));
}

TEST(SeenKeys, RefuseCallsOfOtherExtents) {
  for (const Shapes& other :
       {Shapes{2, 4, 2, 1, 50, 16, 16}, Shapes{1, 2, 2, 1, 50, 16, 16}, Shapes{1, 4, 4, 1, 50, 16, 16},
        Shapes{1, 4, 2, 1, 50, 8, 8}, Shapes{1, 4, 2, 1, 39, 16, 16}}) {
    SeenKeys seen;
    const OwnedInputs first({1, 4, 2, 1, 40, 16, 16}, 1), next(other, 1);
    seen.continue_with(first.inputs);
    seen.finish(first.inputs);
    EXPECT_THROW(seen.continue_with(next.inputs), ShapeError);
    EXPECT_EQ(seen.count(), 40);
  }
}

TEST(HashAttentionTopK, WeightsThatDoNotFitAreRefusedByName) {
  const TemporaryFolder folder;
  const auto refusal = [&](const std::string& config, const AttentionInputs& inputs) {
    try {
      SequenceState state;
      SparseAttention::from_json(config).mask(inputs, state);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const OwnedInputs owned({1, 4, 2, 2, 30, 16, 16}, 5), narrow({1, 4, 2, 2, 30, 8, 8}, 5);
  const std::string path = (folder / "w").string();
  EXPECT_EQ(
      refusal(with_weights(folder / "w", 4, 16, 24, 40, 32), owned.inputs),
      path +
          ": layer 0 has 2 linear maps of width 24 to 40 bits; the config says 2 linear maps of width 24 to 32 bits");
  EXPECT_EQ(refusal(with_weights(folder / "w", 4, 16, 24, 40, 40), narrow.inputs),
            "hash weights: are of 4 query heads of 16; queries are F32 (1, 4, 2, 8)");
  AttentionInputs other_layer = owned.inputs;
  other_layer.layer = 3;
  EXPECT_EQ(refusal(with_weights(folder / "w", 4, 16, 24, 40, 40), other_layer),
            "hash weights: there is no tensor \"hat.3.query_matrix.0\"");
  EXPECT_EQ(
      refusal(R"({"maskers": [{"type": "hash_attention_top_k", "hat_weight_file": "/nonexistent"}]})", owned.inputs),
      "/maskers/0/hat_weight_file: must be a file, got \"/nonexistent\"");
}

}  // namespace
}  // namespace reticle::testing
