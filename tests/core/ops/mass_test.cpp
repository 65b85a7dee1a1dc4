#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/mass.hpp>

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

}  // namespace
}  // namespace reticle::testing
