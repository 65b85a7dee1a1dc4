#include <gtest/gtest.h>

#include <reticle/core/base/error.hpp>
#include <reticle/core/ops/statistics.hpp>

namespace reticle::testing {
namespace {

TEST(NormalQuantile, InvertsTheDistribution) {
  EXPECT_NEAR(normal_quantile(0.975), 1.959963984540054, 1e-12);
  EXPECT_NEAR(normal_quantile(0.1), -1.2815515655446008, 1e-12);
  EXPECT_EQ(normal_quantile(0.5), 0);
  EXPECT_THROW(normal_quantile(0), ValueError);
  EXPECT_THROW(normal_quantile(1), ValueError);
}

}  // namespace
}  // namespace reticle::testing
