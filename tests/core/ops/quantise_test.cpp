#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/quantise.hpp>

namespace reticle::testing {
namespace {

TEST(FakeQuantise, RoundsToTheLevelsBetweenLeastAndLargest) {
  std::vector<float> values{0, 1, 2, 3, 10};
  fake_quantise(values, 1);
  EXPECT_EQ(values, (std::vector<float>{0, 0, 0, 0, 10}));
  std::vector<float> equal{3, 3};
  fake_quantise(equal, 4);
  EXPECT_EQ(equal, (std::vector<float>{3, 3}));
  fake_quantise({}, 4);
}

}  // namespace
}  // namespace reticle::testing
