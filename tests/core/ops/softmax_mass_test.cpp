#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/softmax_mass.hpp>

#include "support/targets.hpp"

namespace reticle::testing {
namespace {

TEST(Masses, AreThoseOfTheScaleForEveryScoreAndTarget) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float highest : {3.5f, 0.0f, -80.0f, 3e38f, kInfinity}) {
    std::mt19937 random(1);
    std::exponential_distribution<float> below(0.1f);
    std::vector<float> scores{highest, -kInfinity, std::numeric_limits<float>::quiet_NaN(), -3e38f};
    for (int i = 0; i < 45; ++i) scores.push_back(std::min(highest, 3e38f) - below(random));
    const MassScale scale(order_key(highest), static_cast<Index>(scores.size()));
    std::vector<std::uint64_t> expected;
    for (const float score : scores) expected.push_back(order_key(score) == 0 ? 0 : scale.of(order_key(score)));
    for_each_target([&] {
      std::vector<std::uint64_t> found(scores.size());
      masses(scale, scores, found.data());
      EXPECT_EQ(found, expected) << "highest " << highest;
    });
  }
}

TEST(MassScale, WeighsAsExpDoesOfTheDistanceToTheHighest) {
  for (const float highest : {-50.0f, 0.0f, 7.25f}) {
    const MassScale scale(order_key(highest), 1000);
    EXPECT_EQ(scale.weight(order_key(highest)), 1);
    for (const float below : {0.001f, 0.5f, 1.0f, 3.0f, 10.0f, 30.0f}) {
      const double exact = std::exp(static_cast<double>(highest - below) - static_cast<double>(highest));
      EXPECT_NEAR(scale.weight(order_key(highest - below)), exact, 3e-7 * exact + 1e-15) << highest << ' ' << below;
    }
    EXPECT_EQ(scale.of(order_key(highest - 100)), 0u);
  }
}

TEST(MassScale, TheSumOfAsManyHighestScoresFitsInto63Bits) {
  for (const Index count : {Index{1}, Index{2}, Index{3}, Index{1} << 20, (Index{1} << 31) - 1}) {
    const MassScale scale(order_key(1.5f), count);
    const std::uint64_t largest_sum = std::numeric_limits<std::int64_t>::max();
    EXPECT_LE(scale.one(), largest_sum / static_cast<std::uint64_t>(count)) << count;
    EXPECT_GT(scale.one(), largest_sum / static_cast<std::uint64_t>(count) / 4) << "finer units would overflow";
  }
}

TEST(ShareOfMass, IsWhatASumMustExceed) {
  EXPECT_EQ(share_of(0, 100), 0u);
  EXPECT_EQ(share_of(0.5, 101), 50u);
  EXPECT_EQ(share_of(1, 100), 100u);
}

}  // namespace
}  // namespace reticle::testing
