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

Mask weighted(const MaskShape& shape, double density, std::mt19937& random) {
  return Mask::dense(shape, random_p(shape, density, true, random));
}

float added(float p, float q) { return std::min(1.0f, p + q); }
float independent(float p, float q) { return p == 0 ? q : q == 0 ? p : 1.0f - (1.0f - p) * (1.0f - q); }

TEST(UniteDense, DenseBesideAnyFormIsTheUnionOnProbabilities) {
  std::mt19937 random(4);
  for (const Index keys : {1, 15, 16, 17, 300}) {
    const MaskShape shape{1, 2, 3, keys};
    const Mask dense = convert(weighted(shape, 0.9, random), MaskKind::dense);
    for (const NamedMask& other : random_masks(shape, random)) {
      const NaiveMask x(dense), y(other.mask);
      for (const bool first : {true, false}) {
        const auto unite = [&](MergeRule rule) {
          return first ? merge(dense, other.mask, rule) : merge(other.mask, dense, rule);
        };
        expect_equal(unite(MergeRule::add), x.combine(y, added), other.name);
        expect_equal(unite(MergeRule::max), x.combine(y, [](float p, float q) { return std::max(p, q); }), other.name);
        expect_equal(unite(MergeRule::independent), x.combine(y, independent), other.name);
      }
    }
  }
}

TEST(UniteDense, FullListsAreUnitedAsDense) {
  std::mt19937 random(5);
  const MaskShape shape{1, 1, 4, 640};
  const Mask a = convert(weighted(shape, 0.8, random), MaskKind::csr),
             b = convert(weighted(shape, 0.8, random), MaskKind::csr);
  const Mask both = merge(a, b, MergeRule::independent);
  EXPECT_EQ(both.kind(), MaskKind::dense);
  expect_equal(both, NaiveMask(a).combine(NaiveMask(b), independent));
}

TEST(UniteDense, AUnionOfAFewLongRunsIsStoredAsRuns) {
  const MaskShape shape{1, 1, 2, 640};
  const Mask half = convert(Mask::from_runs(shape,
                                            [](RowId, FunctionRef<void(reticle::Run)> emit) {
                                              emit({0, 320, 0.5f});
                                            }),
                            MaskKind::dense);
  const Mask rest = convert(Mask::from_runs(shape,
                                            [](RowId, FunctionRef<void(reticle::Run)> emit) {
                                              emit({320, 600, 0.5f});
                                            }),
                            MaskKind::dense);
  const Mask both = merge(half, rest);
  EXPECT_EQ(both.kind(), MaskKind::runs);
  EXPECT_EQ(both.bytes(), Mask::from_runs(shape, [](RowId, FunctionRef<void(reticle::Run)> emit) {
                            emit({0, 600, 0.5f});
                          }).bytes());
}

}  // namespace
}  // namespace reticle::testing
