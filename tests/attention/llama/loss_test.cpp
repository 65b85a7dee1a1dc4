#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/llama/loss.hpp>
#include <reticle/core/tensor/tensor.hpp>

#include "support/message_of.hpp"

namespace reticle::testing {
namespace {

TEST(CrossEntropy, IsTheNegativeLogOfTheTokensProbability) {
  const std::vector<float> logits{std::log(0.5f), std::log(0.25f), std::log(0.25f)};
  EXPECT_NEAR(cross_entropy(logits, 0), std::log(2.0), 1e-6);
  EXPECT_NEAR(cross_entropy(logits, 2), std::log(4.0), 1e-6);
  const std::vector<float> large{1000, 1000};
  EXPECT_NEAR(cross_entropy(large, 1), std::log(2.0), 1e-12) << "sums of exponentials do not overflow";
}

TEST(CrossEntropy, RefusesATokenWithoutALogit) {
  const std::vector<float> logits{1, 2, 3, 4};
  EXPECT_EQ(message_of<ValueError>([&] { cross_entropy(logits, 4); }),
            "cross_entropy: token 4 has no logit; there are 4 logits");
  EXPECT_EQ(message_of<ValueError>([&] { cross_entropy(logits, -1); }),
            "cross_entropy: token -1 has no logit; there are 4 logits");
}

TEST(LossOfLast, IsTheMeanCrossEntropyOfTheLastTokens) {
  // Logits of 4 tokens; each row predicts the token after it. Probabilities of rows 1 and 2: (1/4, 3/4) and (1/2, 1/2).
  Tensor logits(DType::f32, {4, 2});
  const std::vector<float> values{9, -9, 0, std::log(3.0f), 1000, 1000, -9, 9};
  std::copy(values.begin(), values.end(), logits.span<float>().begin());
  const std::vector<std::int32_t> tokens{0, 1, 0, 1};
  EXPECT_NEAR(loss_of_last(logits, tokens, 1), std::log(2.0), 1e-7);
  EXPECT_NEAR(loss_of_last(logits, tokens, 2), (std::log(4.0) + std::log(2.0)) / 2, 1e-7);
}

TEST(LossOfLast, RefusesWhatHasNoPrediction) {
  const Tensor logits(DType::f32, {3, 4});
  EXPECT_THROW(loss_of_last(logits, std::vector<std::int32_t>{1, 2, 3}, 3), ShapeError);
  EXPECT_THROW(loss_of_last(logits, std::vector<std::int32_t>{1, 2}, 1), ShapeError);
  EXPECT_THROW(loss_of_last(logits, std::vector<std::int32_t>{1, 2, 9}, 1), ValueError);
  EXPECT_EQ(message_of<ShapeError>([&] {
              loss_of_last(logits, std::vector<std::int32_t>{1, 2, 3}, 3);
            }),
            "loss: the last 3 of 3 tokens by logits F32 (3, 4); expected F32 logits of every token, and at least one "
            "token before those that count");
  EXPECT_EQ(message_of<ValueError>([&] {
              loss_of_last(logits, std::vector<std::int32_t>{1, 2, 9}, 1);
            }),
            "loss: token 2 is 9; there are 4 logits");
}

}  // namespace
}  // namespace reticle::testing
