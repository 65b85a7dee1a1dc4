#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/layers/heads.hpp>
#include <reticle/attention/nsa/native_sparse_attention.hpp>

#include "support/models.hpp"
#include "support/targets.hpp"

namespace reticle::testing {
namespace {

constexpr NsaConfig kSmall{.kernel_size = 8, .kernel_stride = 4, .block_size = 8, .topk = 4, .window_size = 10};

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

TEST(NsaConfig, SaysWhichRuleABadValueBreaks) {
  const auto message = [](NsaConfig config) {
    try {
      config.validate();
      return std::string();
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.kernel_stride = 15}), "kernel_stride: 15; expected a divisor of kernel_size, 32");
  EXPECT_EQ(message({.block_size = 40}), "block_size: 40; expected a multiple of kernel_stride, 16");
  EXPECT_EQ(message({.topk = 2}), "topk: 2; expected at least init_blocks + local_blocks, 3");
  EXPECT_EQ(message({.local_blocks = 0}), "local_blocks: 0; expected a number in [1, 2^24]");
  EXPECT_EQ(message({.window_size = -1}), "window_size: -1; expected a number in [0, 2^24]");
}

TEST(Compress, SequencesShorterThanAWindowGiveNothing) {
  const Tensor x(DType::f32, {10, 2, 8});
  NsaConfig config = kSmall;
  config.compress_type = Compression::avgpool;
  const Packed y = compress(x, std::vector<Index>{0, 3, 3, 10}, {}, config);
  EXPECT_EQ(y.data.view().size(0), 0);
  EXPECT_EQ(y.cu_seqlens, (std::vector<Index>{0, 0, 0, 0}));
}

TEST(Compress, RefusesWeightsThatDoNotFit) {
  const Tensor x(DType::f32, {16, 2, 8}), pool(DType::f32, {2, 8}), wrong(DType::f32, {2, 9}),
      half(DType::f16, {16, 2, 8});
  const std::vector<Index> cu{0, 16};
  NsaConfig average = kSmall;
  average.compress_type = Compression::avgpool;
  EXPECT_THROW(compress(x, cu, {pool.view(), std::nullopt}, average), ShapeError);
  EXPECT_THROW(compress(x, cu, {}, kSmall), ShapeError);
  EXPECT_THROW(compress(x, cu, {wrong.view(), std::nullopt}, kSmall), ShapeError);
  EXPECT_THROW(compress(x, cu, {pool.view(), pool.view()}, kSmall), ShapeError);
  EXPECT_THROW(compress(half, cu, {pool.view(), std::nullopt}, kSmall), ShapeError);
  EXPECT_THROW(compress(x, std::vector<Index>{0, 17}, {pool.view(), std::nullopt}, kSmall), ShapeError);
}

/// Attention and block scores in plain double loops.
TEST(CompressedAttention, AgreesWithPlainLoopsOnEveryTarget) {
  for_each_target([] {
    std::mt19937 random(2);
    constexpr Index kTokens = 70, kHeads = 6, kKvHeads = 2, kWidth = 5;
    const Index compressed = kSmall.compressed_length(kTokens);
    const Tensor q = random_tensor(DType::f32, {kTokens, kHeads, kWidth}, random),
                 k = random_tensor(DType::f32, {compressed, kKvHeads, kWidth}, random),
                 v = random_tensor(DType::f32, {compressed, kKvHeads, 7}, random);
    const CompressedAttention result = compressed_attention(q, k, v, 0, 0.5f, kSmall);
    const Tensor scores = block_scores(q, k, 0, 0.5f, kSmall);
    for (Index t = 0; t < kTokens; ++t) {
      for (Index kv_head = 0; kv_head < kKvHeads; ++kv_head) {
        std::vector<double> expected(static_cast<std::size_t>(scores.view().size(2)), 0);
        for (Index head = kv_head * 3; head < kv_head * 3 + 3; ++head) {
          std::vector<double> weights;
          double sum = 0;
          for (Index i = 0; i < compressed && i * 4 + 7 <= t; ++i) {
            double score = 0;
            for (Index j = 0; j < kWidth; ++j)
              score += 0.5 * static_cast<double>(*q.view().at<float>(t, head, j)) *
                       static_cast<double>(*k.view().at<float>(i, kv_head, j));
            weights.push_back(std::exp(score));
            sum += weights.back();
          }
          double output = 0;
          for (std::size_t i = 0; i < weights.size(); ++i) {
            output += weights[i] / sum * static_cast<double>(*v.view().at<float>(static_cast<Index>(i), kv_head, 3));
            // A token of two chunks counts once for each that lies in the block of two.
            for (const std::size_t chunk : {i, i + 1}) {
              if (chunk / 2 < expected.size()) expected[chunk / 2] += weights[i] / sum;
            }
          }
          ASSERT_NEAR(*result.output.view().at<float>(t, head, 3), output, 1e-5);
          const float lse = *result.lse.view().at<float>(head, t);
          if (weights.empty()) {
            ASSERT_EQ(lse, -std::numeric_limits<float>::infinity());
          } else {
            ASSERT_NEAR(lse, std::log(sum), 1e-5);
          }
        }
        for (std::size_t block = 0; block < expected.size(); ++block)
          ASSERT_NEAR(*scores.view().at<float>(kv_head, t, static_cast<Index>(block)), expected[block], 1e-5);
      }
    }
  });
}

TEST(CompressedAttention, SelectsForcedBlocksAndNeverOnesToCome) {
  std::mt19937 random(3);
  NsaConfig config = kSmall;
  config.init_blocks = 2;
  config.topk = 5;
  const Index tokens = 120;
  const Tensor q = random_tensor(DType::f32, {tokens, 4, 8}, random),
               k = random_tensor(DType::f32, {config.compressed_length(tokens), 2, 8}, random);
  const SelectedBlocks blocks = compressed_attention(q, k, k, 0, 30, config).blocks;  // weights that underflow to 0
  ASSERT_EQ(blocks.width, 5);
  for (Index kv_head = 0; kv_head < 2; ++kv_head) {
    for (Index t = 0; t < tokens; ++t) {
      const Index own = t / config.block_size;
      std::vector<std::int32_t> chosen;
      for (const std::int32_t block : blocks.of(kv_head, t)) {
        if (block >= 0) chosen.push_back(block);
      }
      ASSERT_EQ(chosen.size(), static_cast<std::size_t>(std::min<Index>(5, own + 1))) << "every slot is used";
      ASSERT_TRUE(std::is_sorted(chosen.begin(), chosen.end()));
      for (const Index forced : {Index{0}, std::min<Index>(1, own), own, std::max<Index>(0, own - 1)})
        ASSERT_NE(std::find(chosen.begin(), chosen.end(), forced), chosen.end()) << t;
    }
  }
}

TEST(CompressedAttention, MoreHeadsThanATileHasRowsAreSummedAllTheSame) {
  std::mt19937 random(4);
  const Tensor q = random_tensor(DType::f32, {20, 80, 8}, random), k = random_tensor(DType::f32, {4, 1, 8}, random);
  const Tensor scores = block_scores(q, k, 0, 1, kSmall);
  // Of one query, the probabilities of 80 heads; each token counts twice, once per chunk.
  double sum = 0;
  for (Index block = 0; block < scores.view().size(2); ++block)
    sum += static_cast<double>(*scores.view().at<float>(0, 15, block));
  EXPECT_NEAR(sum, 160, 1e-3);
}

TEST(CompressedAttention, DoesNotDependOnTheNumberOfThreads) {
  std::mt19937 random(5);
  const Tensor q = random_tensor(DType::f32, {200, 8, 8}, random), k = random_tensor(DType::f32, {48, 2, 8}, random);
  const CompressedAttention one = compressed_attention(q, k, k, 0, 1, kSmall, Context(1)),
                            three = compressed_attention(q, k, k, 0, 1, kSmall, Context(3));
  expect_near(one.output.span<float>(), three.output.span<float>(), 0);
  EXPECT_EQ(one.blocks.indices, three.blocks.indices);
}

TEST(CompressedAttention, NotANumberIsAnError) {
  Tensor q(DType::f32, {20, 2, 8}), k(DType::f32, {4, 1, 8});
  std::fill(q.span<float>().begin(), q.span<float>().end(), 1.0f);
  std::fill(k.span<float>().begin(), k.span<float>().end(), std::nanf(""));
  EXPECT_THROW(compressed_attention(q, k, k, 0, 1, kSmall), ValueError);
  EXPECT_THROW(compressed_attention(q, Tensor(DType::f32, {4, 3, 8}), k, 0, 1, kSmall), ShapeError);
  EXPECT_THROW(compressed_attention(q, Tensor(DType::f16, {4, 1, 8}), k, 0, 1, kSmall), ShapeError);
}

TEST(SelectedBlocks, ListsMayComeInAnyOrderWithRepeatsAndGaps) {
  const std::vector<std::int32_t> lists{3, -1, 1, 1, -1, -1, -1, -1};
  const SelectedBlocks blocks = SelectedBlocks::from_lists(1, 2, 4, lists);
  EXPECT_EQ(blocks.indices, (Array<std::int32_t>{1, 3, -1, -1, -1, -1, -1, -1}));
  const Mask mask = selected_mask(blocks, 0, 2, 30, 28, 8);
  EXPECT_EQ(mask.nnz(), 2 * (8 + 5)) << "tokens 8 to 15 and 24 to 28; the second query selected nothing";
  EXPECT_THROW(SelectedBlocks::from_lists(1, 2, 3, lists), ShapeError);
}

TEST(WindowMask, HoldsTheWindowAndTheTokenItself) {
  const Mask mask = window_mask(2, 5, 5, 0, 2);
  EXPECT_EQ(row_counts(mask), (std::vector<Index>{1, 2, 3, 3, 3, 1, 2, 3, 3, 3}));
}

// --- the module ---

class NsaModule : public ::testing::TestWithParam<Compression> {};

TEST_P(NsaModule, DecodingThroughTheCacheEqualsFullRecomputationAtEveryLength) {
  NsaConfig config = kSmall;
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
  NsaConfig config = kSmall;
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
  NsaConfig config = kSmall;
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

TEST(NsaCache, RefusesTokensOfOtherExtents) {
  NsaCache cache(kSmall, 2, 8);
  const Tensor good(DType::f32, {3, 2, 8}), wrong(DType::f32, {3, 2, 9}), pool(DType::f32, {2, 8});
  const CompressionWeights weights{pool.view(), std::nullopt};
  const Rope rope(8, 10000, std::nullopt);
  EXPECT_THROW(cache.append(good, wrong, weights, weights, rope), ShapeError);
  EXPECT_EQ(cache.pending_length(), 0);
  cache.append(good, good, weights, weights, rope);
  EXPECT_EQ(cache.pending_length(), 3);
  cache.reset();
  EXPECT_EQ(cache.pending_length(), 0);
}

}  // namespace
}  // namespace reticle::testing
