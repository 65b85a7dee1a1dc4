#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/observed_attention.hpp>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(Importance, PoolsOverNeighboursAndDividesByTheWholeKernel) {
  // One query, probabilities 0, 0, 1, 0, 0.
  const Scored s(1, {0, 0, 200, 0, 0});
  const auto importance = [&](Importance rule) { return importance_of_keys(s.inputs, 0, 0, 1, rule); };
  EXPECT_EQ(importance({.window = 1, .kernel_size = 1}), (std::vector<float>{0, 0, 1, 0, 0}));
  const std::vector<float> avg = importance({.window = 1, .kernel_size = 3});
  EXPECT_NEAR(avg[1], 1.0f / 3, 1e-6);
  EXPECT_NEAR(avg[0], 0, 1e-6);
  EXPECT_EQ(importance({.window = 1, .kernel_size = 5, .pooling = Pooling::max}), (std::vector<float>{1, 1, 1, 1, 1}));
  const Scored last(1, {0, 0, 0, 0, 200});
  EXPECT_EQ(importance_of_keys(last.inputs, 0, 0, 1, {.window = 1, .kernel_size = 3, .pool_window = false})[3], 0)
      << "the window's own key does not leak";
}

}  // namespace
}  // namespace reticle::testing
