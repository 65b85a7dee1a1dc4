#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/adaptive_sample.hpp>

#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();
constexpr double kTolerance = 3e-7;  // for a mass, which has float precision

TEST(RowWeights, AreExpOfTheDistanceToTheHighestScore) {
  const std::vector<float> scores{1, 3, kForbidden, 2, std::numeric_limits<float>::quiet_NaN()};
  const RowWeights weights(scores, Mask::empty({1, 1, 1, 5}), {0, 0, 0});
  EXPECT_EQ(weights.of(1), 1);
  EXPECT_NEAR(weights.of(0), std::exp(-2), kTolerance);
  EXPECT_NEAR(weights.of(3), std::exp(-1), kTolerance);
  EXPECT_EQ(weights.of(2), 0);
  EXPECT_EQ(weights.of(4), 0);
  EXPECT_EQ(weights.chosen_sum, 0);
}

TEST(RowWeights, OfChosenKeysAreSummedOverTheirProbabilities) {
  const std::vector<float> scores{0, -1, -2, -3, kForbidden};
  const Mask previous = Mask::dense({1, 1, 2, 5}, std::vector<float>{0, 0, 0, 1, 0, 1, 1, 0, 0.25f, 1});
  const RowWeights weights(scores, previous, {0, 0, 1});
  EXPECT_NEAR(weights.chosen_sum, 1 + std::exp(-1) + 4 * std::exp(-3), 5 * kTolerance);
  EXPECT_EQ(weights.chosen.size(), 3u);
}

TEST(RowWeights, OfARowWithoutAnAllowedKeyAreNothing) {
  const std::vector<float> scores{kForbidden, kForbidden};
  const RowWeights weights(scores, Mask::full({1, 1, 1, 2}), {0, 0, 0});
  EXPECT_EQ(weights.of(0), 0);
  EXPECT_EQ(weights.chosen_sum, 0);
}

TEST(RowWeights, HaveTheMomentsOfASample) {
  const std::vector<float> scores{0, std::log(0.5f), 5, std::log(0.25f), 0};
  // Weights are relative to the highest score, here 5: a weight is exp(score - 5).
  const RowWeights weights(scores, Mask::empty({1, 1, 1, 5}), {0, 0, 0});
  const std::vector<std::int32_t> keys{0, 1, 3};
  const auto [mean, deviation] = weights.moments(keys);
  const double unit = std::exp(-5);
  EXPECT_NEAR(mean, unit * 1.75 / 3, kTolerance);
  // Distances to the mean of 7/12: 5/12, -1/12, -4/12.
  EXPECT_NEAR(deviation, unit * std::sqrt((25 + 1 + 16) / 144.0 / 2), kTolerance);
  EXPECT_EQ(weights.moments(std::vector<std::int32_t>{2}), (std::pair<double, double>{1, 0})) << "one has no deviation";
}

TEST(BaseSample, IsACountOrAFractionAndAtLeastTwo) {
  EXPECT_EQ(base_sample_size(Size(30), 100), 30);
  EXPECT_EQ(base_sample_size(Size(0.25), 100), 25);
  EXPECT_EQ(base_sample_size(Size(0.001), 100), 2);
  EXPECT_EQ(base_sample_size(Size(1), 100), 2);
  EXPECT_EQ(base_sample_size(Size(0), 100), 2);
}

/// One query over 40 keys; keys 0 to 3 and 20 are selected already.
class AdaptiveSample : public ::testing::Test {
 protected:
  static constexpr Index kKeys = 40, kFirst = 2, kLast = 38;
  Selection drawn(const std::vector<float>& scores, double epsilon) {
    Rule rule{
        .kind = Rule::Kind::adaptive, .base = 5, .epsilon = epsilon, .quantile = 1.96, .first = kFirst, .last = kLast};
    const RowWeights weights(scores, previous_, {0, 0, 0});
    Philox random(4, 0, 0, 0, 0);
    Selection selection;
    adaptive_sample(rule, written_.inputs, weights, {0, 0, 0}, random, selection);
    return selection;
  }

  WrittenInputs written_{{1, 1, 1, 1}, {1}, {1, 1, kKeys, 1}, std::vector<float>(kKeys)};
  Mask previous_ = Mask::csr({1, 1, 1, kKeys}, Array<Index>{0, 5}, Array<std::int32_t>{0, 1, 2, 3, 20});
  static constexpr Index kCandidates = kLast - 4 - 1;  // keys 4 to 37 without key 20
};

TEST_F(AdaptiveSample, OfScoresThatAreAlikeIsTheBaseSample) {
  const Selection selection = drawn(std::vector<float>(kKeys, 0.5f), 0.05);
  ASSERT_EQ(selection.indices.size(), 5u);
  EXPECT_TRUE(std::is_sorted(selection.indices.begin(), selection.indices.end()));
  for (const std::int32_t key : selection.indices) EXPECT_TRUE(key >= 4 && key < kLast && key != 20) << key;
  EXPECT_EQ(selection.p, std::vector<float>(5, 5.0f / static_cast<float>(kCandidates)));
}

TEST_F(AdaptiveSample, ThatMayNotErrIsEveryCandidateForCertain) {
  std::vector<float> scores(kKeys);
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(i % 7);
  const Selection selection = drawn(scores, 0);
  std::vector<std::int32_t> expected;
  for (std::int32_t key = 4; key < kLast; ++key) {
    if (key != 20) expected.push_back(key);
  }
  EXPECT_EQ(selection.indices, expected);
  EXPECT_EQ(selection.p, std::vector<float>(expected.size(), 1.0f));
}

TEST_F(AdaptiveSample, GrowsAsTheToleratedErrorShrinks) {
  std::vector<float> scores(kKeys);
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(i % 7) / 4;
  std::size_t before = 0;
  for (const double epsilon : {10.0, 0.3, 0.1, 0.0}) {
    const Selection selection = drawn(scores, epsilon);
    EXPECT_GE(selection.indices.size(), before) << epsilon;
    EXPECT_EQ(selection.p.front(),
              static_cast<float>(static_cast<double>(selection.indices.size()) / static_cast<double>(kCandidates)));
    before = selection.indices.size();
  }
  EXPECT_EQ(before, static_cast<std::size_t>(kCandidates));
}

TEST_F(AdaptiveSample, OfNoCandidatesIsEmpty) {
  previous_ = Mask::full({1, 1, 1, kKeys});
  EXPECT_TRUE(drawn(std::vector<float>(kKeys, 0.5f), 0).indices.empty());
}

}  // namespace
}  // namespace reticle::testing
