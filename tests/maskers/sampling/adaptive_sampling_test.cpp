#include <cmath>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/ops/statistics.hpp>
#include <reticle/core/tensor/safetensors.hpp>

#include "support/attention.hpp"

namespace reticle::testing {
namespace {

/// Share of rows of the bundled tensors, over seeds, whose denominator is off by more than epsilon.
double share_beyond(double epsilon, const std::string& adaptive) {
  const SafeTensors file(RETICLE_SOURCE_DIR "/examples/data/attention_4096.safetensors");
  const SparseAttention sparse = SparseAttention::from_json(
      R"({"causal": true, "maskers": [{"type": "sink", "sink_size": 16}, {"type": "local", "window_size": 64},
          {"type": "oracle_top_k", "heavy_size": 0.02}, )" +
      adaptive + "]}");
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
  return R"({"type": "adaptive_sampling", "base_rate_sampling": )" + std::to_string(base) + R"(, "epsilon": )" +
         std::to_string(epsilon) + R"(, "delta": )" + std::to_string(delta) + "}";
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
  Tensor queries(DType::f32, {1, 1, 1, 1});
  Tensor keys(DType::f32, {1, 1, 1000, 1});
  queries.span<float>()[0] = 1;
  const auto kept = [&](float spread) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, spread);
    for (float& key : keys.span<float>()) key = normal(random);
    AttentionInputs inputs;
    inputs.queries = queries.view();
    inputs.keys = inputs.values = keys.view();
    SequenceState state;
    return SparseAttention::from_json("{\"maskers\": [" + adaptive(0.05, 0.1, 0.1) + "]}").mask(inputs, state).nnz();
  };
  const Index none = kept(0), little = kept(0.5f), much = kept(2);
  EXPECT_EQ(none, 50) << "just the base sample";
  EXPECT_LT(none, little);
  EXPECT_LT(little, much);
  EXPECT_LT(much, 1000);
}

TEST(AdaptiveSampling, ABaseOfZeroSamplesNothing) {
  const OwnedInputs owned({}, 1);
  SequenceState state;
  const auto sparse =
      SparseAttention::from_json(R"({"maskers": [{"type": "adaptive_sampling", "base_rate_sampling": 0}]})");
  EXPECT_EQ(sparse.mask(owned.inputs, state).nnz(), 0);
}

TEST(AdaptiveSampling, RefusesBadParameters) {
  const auto refusal = [](const std::string& parameters) {
    try {
      SparseAttention::from_json(R"({"maskers": [{"type": "adaptive_sampling", )" + parameters + "}]}");
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(refusal(R"("base_rate_sampling": 1.0)"),
            "/maskers/0/base_rate_sampling: must be a count or a fraction in [0, 1), got 1.0");
  EXPECT_EQ(refusal(R"("epsilon": 0)"), "/maskers/0/epsilon: must be in (0, 1), got 0");
  EXPECT_EQ(refusal(R"("delta": 1)"), "/maskers/0/delta: must be in (0, 1), got 1");
}

TEST(NormalQuantile, InvertsTheDistribution) {
  EXPECT_NEAR(normal_quantile(0.975), 1.959963984540054, 1e-12);
  EXPECT_NEAR(normal_quantile(0.1), -1.2815515655446008, 1e-12);
  EXPECT_EQ(normal_quantile(0.5), 0);
  EXPECT_THROW(normal_quantile(0), ValueError);
  EXPECT_THROW(normal_quantile(1), ValueError);
}

}  // namespace
}  // namespace reticle::testing
