#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>

#include "support/naive_mask.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

std::vector<float> zeros_and_ones(Index count, double density, std::mt19937& random) {
  std::bernoulli_distribution one(density);
  std::vector<float> p(static_cast<std::size_t>(count));
  for (float& value : p) value = one(random) ? 1.0f : 0.0f;
  return p;
}

/// Widths around a word of 64 bits, and several vectors of them.
constexpr Index kWidths[] = {1, 63, 64, 65, 130, 1000};

TEST(CombineBits, EveryOperationIsTheOneOnProbabilities) {
  std::mt19937 random(1);
  for (const Index keys : kWidths) {
    const MaskShape shape{1, 2, 3, keys};
    const std::vector<float> left = zeros_and_ones(6 * keys, 0.5, random),
                             right = zeros_and_ones(6 * keys, 0.5, random);
    const Mask a = Mask::dense(shape, left), b = Mask::dense(shape, right);
    if (keys >= 64) {
      ASSERT_EQ(a.kind(), MaskKind::bits);
      ASSERT_EQ(b.kind(), MaskKind::bits);
    }
    const NaiveMask x(a), y(b);
    expect_equal(merge(a, b), x.combine(y, [](float p, float q) { return std::max(p, q); }), "merge");
    expect_equal(intersect(a, b), x.combine(y, [](float p, float q) { return std::min(p, q); }), "intersect");
    expect_equal(subtract(a, b), x.combine(y, [](float p, float q) { return q == 0 ? p : 0; }), "subtract");
  }
}

TEST(CombineBits, BitsBesideListsAndRunsBecomeBits) {
  std::mt19937 random(2);
  const MaskShape shape{1, 1, 4, 640};
  const Mask bits = Mask::dense(shape, zeros_and_ones(4 * 640, 0.5, random));
  const Mask list = convert(Mask::dense(shape, zeros_and_ones(4 * 640, 0.02, random)), MaskKind::csr);
  const Mask runs = Mask::intervals(shape, [](RowId row) {
    return Interval{static_cast<std::int32_t>(60 + row.query), static_cast<std::int32_t>(200 + row.query)};
  });
  ASSERT_EQ(bits.kind(), MaskKind::bits);
  for (const Mask& other : {list, runs}) {
    for (const Mask& both : {merge(bits, other), merge(other, bits)}) {
      EXPECT_EQ(both.kind(), MaskKind::bits);
      expect_equal(both, NaiveMask(bits).combine(NaiveMask(other), [](float p, float q) { return std::max(p, q); }));
    }
  }
}

TEST(CombineBits, AResultThatIsSmallerOtherwiseIsStoredSo) {
  const MaskShape shape{1, 1, 1, 6400};
  std::vector<float> odd(6400), even(6400);
  for (std::size_t k = 0; k < 6400; ++k) (k % 2 == 0 ? even : odd)[k] = 1;
  const Mask a = Mask::dense(shape, odd), b = Mask::dense(shape, even);
  ASSERT_EQ(a.kind(), MaskKind::bits);
  EXPECT_EQ(merge(a, b).kind(), MaskKind::full);
  EXPECT_EQ(intersect(a, b).kind(), MaskKind::empty);
  std::vector<float> first = odd;
  std::fill(first.begin() + 100, first.end(), 0.0f);
  EXPECT_EQ(intersect(a, convert(Mask::dense(shape, first), MaskKind::bits)).kind(), MaskKind::csr);
}

}  // namespace
}  // namespace reticle::testing
