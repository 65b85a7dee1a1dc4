#include <algorithm>
#include <cmath>
#include <optional>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/layers/heads.hpp>
#include <reticle/attention/nsa/native_sparse_attention.hpp>

#include "support/models.hpp"
#include "support/nsa.hpp"

namespace reticle::testing {
namespace {

/// A module with random weights.
struct Module {
  Tensor q, k, v, o, gate, pe, compress_key, compress_value;
  NsaShape shape;
  std::optional<NativeSparseAttention> attention;

  explicit Module(const NsaConfig& config, std::uint32_t seed = 1) : shape{config, 24, 4, 2, 8} {
    std::mt19937 random(seed);
    const auto make = [&](std::initializer_list<Index> extents) {
      return random_tensor(DType::f32, extents, random, 0.3f);
    };
    q = make({32, 24});
    k = make({16, 24});
    v = make({16, 24});
    o = make({24, 32});
    gate = make({12, 24});
    pe = make({2, config.kernel_size, 8});
    NsaWeights weights{q, k, v, o, gate, pe, std::nullopt, std::nullopt};
    if (config.compress_type != Compression::avgpool) {
      const bool pooled = config.compress_type == Compression::weightedpool;
      const auto compression = [&] {
        return pooled ? make({2, config.kernel_size}) : make({2, config.kernel_size * 8, 8});
      };
      compress_key = compression();
      compress_value = compression();
      weights.compress_key = compress_key.view();
      weights.compress_value = compress_value.view();
    }
    attention.emplace(shape, Rope(8, 10000, std::nullopt), weights);
  }
};

Tensor random_x(Index tokens, std::uint32_t seed) {
  std::mt19937 random(seed);
  return random_tensor(DType::f32, {tokens, 24}, random);
}

class NsaModule : public ::testing::TestWithParam<Compression> {};

TEST_P(NsaModule, DecodingThroughTheCacheEqualsFullRecomputationAtEveryLength) {
  NsaConfig config = kSmallNsa;
  config.compress_type = GetParam();
  const Module module(config);
  constexpr Index kTokens = 100;  // several windows, blocks and compressed windows
  const Tensor x = random_x(kTokens, 6);
  const NsaTape whole = module.attention->forward(x, std::vector<Index>{0, kTokens});
  for (const Index prompt : {1, 7, 8, 30}) {
    KvCache cache({1, 2, 8, 8, kTokens, DType::f32});
    NsaCache compressed(config, 2, 8);
    const NsaSequence sequence{&cache, 0, &compressed};
    for (Index at = 0; at < kTokens;) {
      const Index count = at == 0 ? prompt : 1;
      cache.extend(std::vector<std::int32_t>(static_cast<std::size_t>(count)));
      const Tensor y =
          module.attention->extend(x.view().slice(0, at, at + count), std::vector<Index>{0, count}, {&sequence, 1});
      expect_near(y.span<float>(), rows_of(whole.output.span<float>(), at, at + count, 24), 1e-5);
      at += count;
      ASSERT_EQ(compressed.compressed_length(), config.compressed_length(at));
    }
  }
}

TEST_P(NsaModule, GradientsAgreeWithFiniteDifferences) {
  NsaConfig config = kSmallNsa;
  config.compress_type = GetParam();
  Module module(config, 7);
  Tensor x = random_x(45, 8);
  const Tensor dy = random_x(45, 9);
  const std::vector<Index> cu{0, 28, 33, 45};
  const auto rebuilt_loss = [&] {
    const NsaWeights weights{
        module.q,
        module.k,
        module.v,
        module.o,
        module.gate,
        module.pe,
        config.compress_type == Compression::avgpool ? std::nullopt : std::optional(module.compress_key.view()),
        config.compress_type == Compression::avgpool ? std::nullopt : std::optional(module.compress_value.view())};
    const NativeSparseAttention attention(module.shape, Rope(8, 10000, std::nullopt), weights);
    const NsaTape tape = attention.forward(x, cu);
    double sum = 0;
    for (std::size_t i = 0; i < dy.span<float>().size(); ++i)
      sum += static_cast<double>(tape.output.span<float>()[i]) * static_cast<double>(dy.span<float>()[i]);
    return sum;
  };
  const NsaGradients gradients = module.attention->backward(module.attention->forward(x, cu), dy);
  // Values and their projections do not move what is selected; everything else is checked by golden vectors.
  const auto expect_slopes = [&](Tensor& tensor, const Tensor& gradient, const char* name) {
    const auto values = tensor.span<float>();
    ASSERT_EQ(values.size(), gradient.span<float>().size());
    for (std::size_t i = 0; i < values.size(); i += std::max<std::size_t>(1, values.size() / 7)) {
      const float at = values[i];
      values[i] = at + 0.02f;
      const double above = rebuilt_loss();
      values[i] = at - 0.02f;
      const double below = rebuilt_loss();
      values[i] = at;
      EXPECT_NEAR(gradient.span<float>()[i], (above - below) / 0.04, 0.02 + 0.02 * std::abs((above - below) / 0.04))
          << name << i;
    }
  };
  expect_slopes(module.v, gradients.weights.at("proj_v.weight"), "proj_v");
  expect_slopes(module.o, gradients.weights.at("proj_o.weight"), "proj_o");
  expect_slopes(module.gate, gradients.weights.at("gate.0.weight"), "gate");
  if (config.compress_type != Compression::avgpool)
    expect_slopes(module.compress_value, gradients.weights.at("compress_value"), "compress_value");
}

INSTANTIATE_TEST_SUITE_P(Compressions, NsaModule,
                         ::testing::Values(Compression::avgpool, Compression::weightedpool, Compression::linear));

TEST(NativeSparseAttention, WithEveryBlockAndWindowItsBranchesAreDenseAttention) {
  NsaConfig config = kSmallNsa;
  config.topk = 100;
  config.window_size = 1000;
  std::mt19937 random(10);
  const Tensor q = random_tensor(DType::f32, {60, 4, 8}, random), k = random_tensor(DType::f32, {60, 2, 8}, random),
               v = random_tensor(DType::f32, {60, 2, 8}, random), c = random_tensor(DType::f32, {14, 2, 8}, random);
  const NsaBranches branches = nsa_branches(q, heads_first(k), heads_first(v), c, c, 0, config);
  AttentionInputs inputs{heads_first(q), heads_first(k), heads_first(v)};
  inputs.scaling = 1 / std::sqrt(8.0f);
  inputs.causal = true;
  const AttentionResult dense = attention(inputs, Mask::full(inputs.shape()));
  Tensor expected = zeros_like(q);
  add_tokens_first(dense.output, expected.span<float>().data(), 32);
  expect_near(branches.selected.span<float>(), expected.span<float>(), 1e-5);
  expect_near(branches.window.span<float>(), expected.span<float>(), 1e-5);
}

}  // namespace
}  // namespace reticle::testing
