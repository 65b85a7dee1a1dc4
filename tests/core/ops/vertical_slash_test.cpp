#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/vertical_slash.hpp>

namespace reticle::testing {
namespace {

TEST(Cover, CountsTheHighestScoresThatPassAShare) {
  const std::vector<float> scores{0.1f, 0.5f, 0.25f, 0.125f};
  EXPECT_EQ(cover(scores, 0), 1);
  EXPECT_EQ(cover(scores, 0.5), 2) << "0.5 alone does not exceed it";
  EXPECT_EQ(cover(scores, 0.6), 2);
  EXPECT_EQ(cover(scores, 5), 4);
  EXPECT_EQ(cover({}, 1), 0);
}

}  // namespace
}  // namespace reticle::testing
