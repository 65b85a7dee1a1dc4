#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/apply.hpp>

#include "support/message_of.hpp"
#include "support/naive_mask.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

TEST(Apply, WeighsByPAndItsInverse) {
  const Mask mask = Mask::dense({1, 1, 1, 3}, std::vector<float>{0.5f, 0, 1});
  const std::vector<float> x{2, 3, 4};
  EXPECT_EQ(reticle::apply(mask, x), (Array<float>{1, 0, 4}));
  EXPECT_EQ(apply_inverse(mask, x), (Array<float>{4, 0, 4}));
  EXPECT_THROW(reticle::apply(mask, std::vector<float>{1}), ShapeError);
}

TEST(Apply, FollowsEveryRepresentationAndSharing) {
  const MaskShape shape{2, 3, 4, 70};
  std::mt19937 random(21);
  std::vector<float> x(static_cast<std::size_t>(shape.positions()));
  for (float& value : x) value = static_cast<float>(random() % 1000) / 8 - 50;
  for (const NamedMask& m : random_masks(shape, random)) {
    const NaiveMask naive(m.mask);
    const Array<float> product = reticle::apply(m.mask, x), quotient = apply_inverse(m.mask, x);
    ASSERT_EQ(product.size(), x.size());
    ASSERT_EQ(quotient.size(), x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(product[i], naive.p[i] > 0 ? x[i] * naive.p[i] : 0.0f) << m.name << ' ' << i;
      EXPECT_EQ(quotient[i], naive.p[i] > 0 ? x[i] / naive.p[i] : 0.0f) << m.name << ' ' << i;
    }
  }
}

TEST(Apply, WhatIsNotAttendedToIsZeroWhateverItHolds) {
  const Mask mask = Mask::dense({1, 1, 1, 3}, std::vector<float>{0, 1, 0});
  const std::vector<float> x{NAN, 2, INFINITY};
  EXPECT_EQ(reticle::apply(mask, x), (Array<float>{0, 2, 0}));
  EXPECT_EQ(apply_inverse(mask, x), (Array<float>{0, 2, 0}));
}

TEST(Apply, ElementsOfAnotherNumberAreRefused) {
  const Mask mask = Mask::full({1, 2, 3, 4});
  const std::vector<float> x(23);
  for (const auto function : {&reticle::apply, &apply_inverse})
    EXPECT_EQ(message_of<ShapeError>([&] { function(mask, x, {}); }),
              "apply: x has 23 elements; mask (1, 2, 3, 4) needs 24");
  EXPECT_TRUE(reticle::apply(Mask(), {}).empty());
}

}  // namespace
}  // namespace reticle::testing
