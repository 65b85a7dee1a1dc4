#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/tensor/safetensors.hpp>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

/// The share of rows of the bundled tensors, over seeds, whose estimated denominator has a relative error above
/// epsilon.
double share_beyond(double epsilon, const std::string& sampling) {
  const SafeTensors file(RETICLE_SOURCE_DIR "/examples/data/attention_4096.safetensors");
  const SparseAttention sparse = pipeline_of(R"({"type": "sink", "sink_size": 16}, {"type": "local", "window_size": 64},
                                                {"type": "oracle_top_k", "heavy_size": 0.02}, )" +
                                                 sampling,
                                             true);
  Index beyond = 0, rows = 0;
  for (int layer = 0; layer < 4; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    AttentionInputs inputs;
    inputs.queries = file.at(prefix + "queries").slice(2, 448, 512);
    inputs.keys = file.at(prefix + "keys");
    inputs.values = file.at(prefix + "values");
    inputs.scaling = 0.125f;
    inputs.layer = layer;
    inputs.causal = true;
    const AttentionResult dense = attention(inputs, Mask::full(inputs.shape()));
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      Context context;
      context.seed = seed;
      SequenceState state;
      const SparseAttentionResult result = sparse.run(inputs, state, false, {}, context);
      const auto ours = result.attention.lse.span<float>(), truth = dense.lse.span<float>();
      for (std::size_t row = 0; row < ours.size(); ++row) {
        beyond += std::abs(std::expm1(static_cast<double>(ours[row]) - static_cast<double>(truth[row]))) > epsilon;
        ++rows;
      }
    }
  }
  return static_cast<double>(beyond) / static_cast<double>(rows);
}

std::string adaptive(double base, double epsilon, double delta) {
  return masker("adaptive_sampling", R"("base_rate_sampling": )" + std::to_string(base) + R"(, "epsilon": )" +
                                         std::to_string(epsilon) + R"(, "delta": )" + std::to_string(delta));
}

TEST(AdaptiveSampling, KeepsItsPromiseOnRealTensors) {
  for (const double epsilon : {0.05, 0.1, 0.2}) {
    for (const double delta : {0.05, 0.1, 0.2}) {
      const double share = share_beyond(epsilon, adaptive(0.05, epsilon, delta));
      EXPECT_LE(share, delta) << "epsilon " << epsilon << ", delta " << delta;
      RecordProperty("share_" + std::to_string(epsilon) + "_" + std::to_string(delta), std::to_string(share));
    }
  }
}

TEST(AdaptiveSampling, UniformSamplingOfTheSameSmallSizeWouldNot) {
  EXPECT_GT(share_beyond(0.05, R"({"type": "random_sampling", "sampling_rate": 0.01})"), 0.2);
}

TEST(AdaptiveSampling, SpendsMoreWhereTheWeightsSpreadMore) {
  const auto kept = [&](float spread) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> keys(1000);
    for (float& key : keys) key = normal(random);
    return mask_of(adaptive(0.05, 0.1, 0.1), Scored(1, keys).inputs).nnz();
  };
  const Index none = kept(0), little = kept(0.5f), much = kept(2);
  EXPECT_EQ(none, 50) << "just the base sample";
  EXPECT_LT(none, little);
  EXPECT_LT(little, much);
  EXPECT_LT(much, 1000);
}

TEST(AdaptiveSampling, ABaseOfZeroSamplesNothing) {
  const OwnedInputs owned({}, 1);
  EXPECT_EQ(mask_of(R"({"type": "adaptive_sampling", "base_rate_sampling": 0})", owned.inputs).nnz(), 0);
}

TEST(AdaptiveSampling, SamplesOnlyBetweenTheOffsets) {
  const Scored s(1, std::vector<float>(20));
  const Mask mask = mask_of(R"({"type": "adaptive_sampling", "base_rate_sampling": 6, "init_offset": 2,
                                "local_offset": 0.5})",
                            s.inputs);
  EXPECT_EQ(mask.nnz(), 6);
  for (Index key = 0; key < 20; ++key) {
    const float p = mask.at(0, 0, 0, key);
    if (p > 0) {
      EXPECT_FLOAT_EQ(p, 6.0f / 8) << "6 of the 8 between";
      EXPECT_TRUE(key >= 2 && key < 10) << key;
    }
  }
}

TEST(AdaptiveSampling, RecordedDrawsReplaceItsOwn) {
  // Equal weights need no more than the base sample: 4 draws of 20.
  Scored s(1, std::vector<float>(20));
  const std::vector<Index> base{0, 1, 2, 3}, draws{5, 9, 5, 7};
  const std::string masker = R"({"type": "adaptive_sampling", "base_rate_sampling": 4, "replacement": true})";
  const auto give = [&](std::vector<NamedTensor>& extras, std::initializer_list<Index> base_shape, Index count) {
    extras = {{"base_indices", TensorView(base.data(), DType::i64, base_shape)},
              {"draw_positions", TensorView(draws.data(), DType::i64, {count})}};
    s.inputs.extras = extras;
  };
  std::vector<NamedTensor> extras;
  give(extras, {1, 1, 1, 4}, 4);
  const Mask mask = mask_of(masker, s.inputs);
  EXPECT_EQ(row_text(mask, 0), ".....1.1.1..........");
  EXPECT_FLOAT_EQ(mask.at(0, 0, 0, 5), 4.0f / 20);
  give(extras, {1, 1, 1, 4}, 3);
  EXPECT_EQ(refusal<ShapeError>(masker, s.inputs), "draw_positions: has 3 draws; the budgets need 4");
  give(extras, {1, 1, 2, 2}, 4);
  EXPECT_EQ(
      refusal<ShapeError>(masker, s.inputs),
      "base_indices and draw_positions: I64 (1, 1, 2, 2) and I64 (4); expected I64 (b, hq, sq, base) and (draws) for "
      "(1, 1, 1, 20)");
}

TEST(AdaptiveSampling, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "adaptive_sampling", "base_rate_sampling": 1.0})"),
            "/maskers/0/base_rate_sampling: must be a count or a fraction in [0, 1), got 1.0");
  EXPECT_EQ(refusal(R"({"type": "adaptive_sampling", "epsilon": 0})"), "/maskers/0/epsilon: must be in (0, 1), got 0");
  EXPECT_EQ(refusal(R"({"type": "adaptive_sampling", "delta": 1})"), "/maskers/0/delta: must be in (0, 1), got 1");
}

}  // namespace
}  // namespace reticle::testing
