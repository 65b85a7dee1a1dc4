#include <cmath>

#include <gtest/gtest.h>

#include <reticle/core/base/error.hpp>
#include <reticle/core/ops/statistics.hpp>

#include "support/message_of.hpp"

namespace reticle::testing {
namespace {

TEST(NormalQuantile, HasTheValuesOfThePublishedTables) {
  EXPECT_EQ(normal_quantile(0.5), 0);
  EXPECT_NEAR(normal_quantile(0.975), 1.959963984540054, 1e-12);
  EXPECT_NEAR(normal_quantile(0.995), 2.575829303548901, 1e-12);
  EXPECT_NEAR(normal_quantile(0.05), -1.644853626951473, 1e-12);
  EXPECT_NEAR(normal_quantile(1e-10), -6.361340902404056, 1e-9);
}

TEST(NormalQuantile, OfNoProbabilityIsRefused) {
  EXPECT_EQ(message_of<ValueError>([] { normal_quantile(0); }),
            "normal_quantile: p is 0.000000; expected a p in (0, 1)");
  EXPECT_EQ(message_of<ValueError>([] { normal_quantile(1); }),
            "normal_quantile: p is 1.000000; expected a p in (0, 1)");
  EXPECT_THROW(normal_quantile(-0.5), ValueError);
  EXPECT_THROW(normal_quantile(std::nan("")), ValueError);
}

/// The smallest sample size b, found by trying each, with quantile * sqrt(n^2 s^2 (1/b - 1/n)) <= epsilon * (chosen + n
/// * mean).
Index tried(Index n, double mean, double deviation, double chosen, double epsilon, double quantile) {
  const auto size = static_cast<double>(n);
  for (Index b = 1; b < n; ++b) {
    const double error = quantile * size * deviation * std::sqrt(1 / static_cast<double>(b) - 1 / size);
    if (error <= epsilon * (chosen + size * mean)) return b;
  }
  return n;
}

TEST(AdaptiveBudget, IsTheLeastSampleThatIsCloseEnough) {
  for (const Index n : {1, 2, 10, 1000}) {
    for (const double deviation : {0.01, 0.3, 2.0}) {
      for (const double epsilon : {0.01, 0.05, 0.5}) {
        EXPECT_EQ(adaptive_budget(n, 0.2, deviation, 1.5, epsilon, 1.96), tried(n, 0.2, deviation, 1.5, epsilon, 1.96))
            << n << ' ' << deviation << ' ' << epsilon;
      }
    }
  }
}

TEST(AdaptiveBudget, IsNothingWhereWeightsAreAlikeOrNoErrorIsTooLarge) {
  EXPECT_EQ(adaptive_budget(100, 0.5, 0, 1, 0.05, 1.96), 0);
  EXPECT_EQ(adaptive_budget(100, 0.5, std::nan(""), 1, 0.05, 1.96), 0);
  EXPECT_EQ(adaptive_budget(100, 0.5, 0.3, 1, 0.05, 0), 0);
}

TEST(AdaptiveBudget, IsEveryCandidateWhereNoErrorIsSmallEnough) {
  EXPECT_EQ(adaptive_budget(100, 0.5, 0.3, 1, 0, 1.96), 100);
  EXPECT_EQ(adaptive_budget(100, 0, 0.3, 0, 0.05, 1.96), 100) << "of a sum of nothing";
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
