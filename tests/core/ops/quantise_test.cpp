#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/quantise.hpp>

namespace reticle {
namespace {

std::vector<float> quantised(std::vector<float> values, Index bits) {
  fake_quantise(values, bits);
  return values;
}

TEST(Quantise, RoundsToTheLevelsBetweenTheLeastAndTheLargest) {
  EXPECT_EQ(quantised({0, 0.9f, 1.1f, 2.6f, 3}, 2), (std::vector<float>{0, 1, 1, 3, 3}));
  EXPECT_EQ(quantised({-8, -5.1f, -4.9f, -2}, 1), (std::vector<float>{-8, -8, -2, -2}));
}

TEST(Quantise, AHalfGoesToTheEvenLevel) {
  EXPECT_EQ(quantised({0, 0.5f, 1.5f, 2.5f, 3}, 2), (std::vector<float>{0, 0, 2, 2, 3}));
}

TEST(Quantise, KeepsTheLeastAndTheLargestAtEveryWidth) {
  for (Index bits = 1; bits <= 16; ++bits) {
    const std::vector<float> values = quantised({3, -1, 0.4f, 2.2f, 7}, bits);
    EXPECT_EQ(values[1], -1) << bits;
    EXPECT_NEAR(values[4], 7, 1e-6) << bits;
    const float step = 8.0f / static_cast<float>((1 << bits) - 1);
    EXPECT_NEAR(values[2], 0.4f, step / 2 + 1e-6f) << bits;
    EXPECT_NEAR(values[3], 2.2f, step / 2 + 1e-6f) << bits;
  }
}

TEST(Quantise, ValuesThatAreAlikeStayAndNothingIsNothing) {
  EXPECT_EQ(quantised({2.5f, 2.5f, 2.5f}, 3), (std::vector<float>{2.5f, 2.5f, 2.5f}));
  EXPECT_EQ(quantised({-7}, 1), std::vector<float>{-7});
  EXPECT_TRUE(quantised({}, 8).empty());
}

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
}  // namespace reticle
