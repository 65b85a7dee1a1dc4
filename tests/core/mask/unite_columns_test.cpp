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

/// Rows of `count` columns of `keys`, drawn without order between rows; p of eighths where weighted.
Mask list_of(const MaskShape& shape, Index count, bool weighted, std::mt19937& random) {
  std::vector<float> p(static_cast<std::size_t>(shape.stored_rows() * shape.keys), 0.0f);
  for (Index row = 0; row < shape.stored_rows(); ++row) {
    for (Index i = 0; i < count; ++i)
      p[static_cast<std::size_t>(row * shape.keys + static_cast<Index>(random() % static_cast<unsigned>(shape.keys)))] =
          weighted ? static_cast<float>(1 + random() % 7) / 8 : 1.0f;
  }
  return convert(Mask::dense(shape, p), MaskKind::csr);
}

TEST(UniteColumns, ListsOfAnyLengthAndSharingAreTheUnionOnProbabilities) {
  std::mt19937 random(6);
  const MaskShape logical{2, 2, 3, 7000};
  for (const MaskShape& left : {logical, logical.one_head(), logical.one_row()}) {
    for (const auto& [count_a, count_b] : {std::pair<Index, Index>{1, 1}, {16, 3}, {40, 40}, {1, 90}}) {
      for (const bool weighted : {false, true}) {
        const Mask a = list_of(left, count_a, weighted, random), b = list_of(logical, count_b, false, random);
        const auto added = [](float p, float q) { return std::min(1.0f, p + q); };
        for (const int threads : {1, 3}) {
          const Mask both = merge(a, b, MergeRule::add, Context(threads));
          expect_equal(both, NaiveMask(a).combine(NaiveMask(b), added));
          EXPECT_EQ(both.kind(), MaskKind::csr);
        }
      }
    }
  }
}

TEST(UniteColumns, BitsBesideAWeightedListAreReadAsColumns) {
  std::mt19937 random(7);
  const MaskShape shape{1, 1, 4, 640};
  std::vector<float> ones(4 * 640);
  for (float& value : ones) value = random() % 4 == 0 ? 1.0f : 0.0f;
  const Mask bits = Mask::dense(shape, ones), list = list_of(shape, 20, true, random);
  ASSERT_EQ(bits.kind(), MaskKind::bits);
  for (const Mask& both : {merge(bits, list, MergeRule::max), merge(list, bits, MergeRule::max)})
    expect_equal(both, NaiveMask(bits).combine(NaiveMask(list), [](float p, float q) { return std::max(p, q); }));
}

TEST(UniteColumns, AUnionThatFillsItsRowsIsStoredAsBitsOrRuns) {
  const MaskShape shape{1, 1, 2, 640};
  const auto every = [&](Index step, Index first) {
    return convert(Mask::from_selections(shape,
                                         [=](RowId, Selection& selection) {
                                           for (Index k = first; k < 640; k += step)
                                             selection.indices.push_back(static_cast<std::int32_t>(k));
                                         }),
                   MaskKind::csr);
  };
  EXPECT_EQ(merge(every(8, 0), every(8, 4)).kind(), MaskKind::bits);
  EXPECT_EQ(merge(every(2, 0), every(2, 1)).kind(), MaskKind::full);
  Mask pair = merge(every(600, 10), every(600, 11));
  EXPECT_EQ(pair.kind(), MaskKind::runs) << "columns 10 and 11, 610 and 611";
  EXPECT_EQ(pair.nnz(), 8);
}

TEST(UniteColumns, AlikeListsGiveBackTheMemoryOfTheirOverlap) {
  std::mt19937 random(8);
  const Mask a = list_of({1, 1, 64, 4096}, 60, true, random);
  const Mask both = merge(a, a, MergeRule::max, Context(2));
  EXPECT_EQ(both, a);
  EXPECT_EQ(both.bytes(), a.bytes());
}

}  // namespace
}  // namespace reticle::testing
