// attend_and_score is internal: it is tested through what calls it, on each instruction set.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/nsa/compressed_attention.hpp>

#include "support/attention.hpp"
#include "support/nsa.hpp"
#include "support/targets.hpp"

namespace reticle::testing {
namespace {

/// Attention and block scores in plain double loops.
TEST(ScoreKernel, AgreesWithPlainLoopsOnEveryTarget) {
  for_each_target([] {
    std::mt19937 random(2);
    constexpr Index kTokens = 70, kHeads = 6, kKvHeads = 2, kWidth = 5;
    const Index compressed = kSmallNsa.compressed_length(kTokens);
    const Tensor q = random_tensor(DType::f32, {kTokens, kHeads, kWidth}, random),
                 k = random_tensor(DType::f32, {compressed, kKvHeads, kWidth}, random),
                 v = random_tensor(DType::f32, {compressed, kKvHeads, 7}, random);
    const CompressedAttention result = compressed_attention(q, k, v, 0, 0.5f, kSmallNsa);
    const Tensor scores = block_scores(q, k, 0, 0.5f, kSmallNsa);
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

TEST(ScoreKernel, ATokenCountsOncePerStrideThatItSharesWithTheBlock) {
  // Keys of zeros: query 19 sees tokens 0 to 3 by a quarter each, which lie in strides i and i + 1; a block is two.
  for_each_target([] {
    for (const Index heads : {1, 3, 17, 64}) {
      Tensor q(DType::f32, {1, heads, 2}), k(DType::f32, {4, 1, 2});
      for (Tensor* tensor : {&q, &k}) std::fill(tensor->span<float>().begin(), tensor->span<float>().end(), 0.0f);
      const Tensor scores = block_scores(q, k, 19, 1, kSmallNsa);
      ASSERT_EQ(scores.view().describe(), "F32 (1, 1, 3)");
      const auto of_all = static_cast<float>(heads);
      EXPECT_NEAR(scores.span<float>()[0], 0.75f * of_all, 1e-5f * of_all) << heads;
      EXPECT_NEAR(scores.span<float>()[1], 1.0f * of_all, 1e-5f * of_all) << heads;
      EXPECT_NEAR(scores.span<float>()[2], 0.25f * of_all, 1e-5f * of_all) << heads;
    }
  });
}

TEST(ScoreKernel, QueriesThatSeeNoTokenGiveZeroAndMinusInfinity) {
  for_each_target([] {
    std::mt19937 random(1);
    const Tensor q = random_tensor(DType::f32, {7, 2, 5}, random), k = random_tensor(DType::f32, {3, 1, 5}, random);
    const CompressedAttention result = compressed_attention(q, k, k, 0, 1, kSmallNsa);
    for (const float value : result.output.span<float>()) EXPECT_EQ(value, 0);
    for (const float value : result.lse.span<float>()) EXPECT_EQ(value, -std::numeric_limits<float>::infinity());
    const Tensor scores = block_scores(q, k, 0, 1, kSmallNsa);
    for (const float value : scores.span<float>()) EXPECT_EQ(value, 0);
  });
}

}  // namespace
}  // namespace reticle::testing
