#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/mask.hpp>

#include "support/message_of.hpp"

namespace reticle {
namespace {

using testing::message_of;

template <class T>
Buffer<T> buffer(std::initializer_list<T> values) {
  return Array<T>(values);
}

TEST(Mask, EmptyAttendsToNothingAndFullToEverything) {
  const MaskShape shape{2, 3, 4, 5};
  EXPECT_EQ(Mask::empty(shape).nnz(), 0);
  EXPECT_EQ(Mask::full(shape).nnz(), 2 * 3 * 4 * 5);
  EXPECT_EQ(Mask::full(shape).density(), 1.0);
  EXPECT_EQ(Mask::full(shape).bytes(), 0);
}

TEST(Mask, ShapesWithoutPositionsAreEmptyAndHarmless) {
  for (const MaskShape& shape :
       {MaskShape{0, 2, 3, 4}, MaskShape{1, 0, 3, 4}, MaskShape{1, 2, 0, 4}, MaskShape{1, 2, 3, 0}}) {
    const Mask mask = Mask::full(shape);
    EXPECT_EQ(mask.nnz(), 0);
    EXPECT_EQ(mask.density(), 0.0);
    EXPECT_EQ(mask, Mask::empty(shape));
    EXPECT_TRUE(to_dense(mask).empty());
    EXPECT_EQ(merge(mask, Mask::empty(shape)).nnz(), 0);
    EXPECT_EQ(head_counts(mask).size(), static_cast<std::size_t>(shape.batch * shape.heads));
  }
  EXPECT_EQ(Mask().nnz(), 0);
}

TEST(Mask, CsrRowsAreReadBack) {
  const Mask mask = Mask::csr({1, 1, 3, 6}, buffer<Index>({0, 2, 2, 5}), buffer<std::int32_t>({1, 4, 0, 1, 5}),
                              buffer<float>({1, 0.5, 1, 1, 0.25}));
  std::vector<reticle::Run> runs;
  mask.row({0, 0, 2}, runs);
  EXPECT_EQ(runs, (std::vector<reticle::Run>{{0, 2, 1}, {5, 6, 0.25}}));
  EXPECT_EQ(mask.at(0, 0, 0, 4), 0.5f);
  EXPECT_EQ(mask.at(0, 0, 1, 4), 0.0f);
  EXPECT_TRUE(mask.weighted());
  EXPECT_EQ(row_counts(mask), (std::vector<Index>{2, 0, 3}));
}

TEST(Mask, ProbabilitiesThatAreAllOneAreNotKept) {
  const Mask mask = Mask::csr({1, 1, 1, 3}, buffer<Index>({0, 2}), buffer<std::int32_t>({0, 2}), buffer<float>({1, 1}));
  EXPECT_FALSE(mask.weighted());
  EXPECT_EQ(mask.bytes(), 2 * 8 + 2 * 4);
}

TEST(Mask, SharedDimensionsAreCountedAtFullExtent) {
  const MaskShape shape = MaskShape{2, 8, 100, 50}.one_row();
  const Mask mask = Mask::intervals(shape, [](RowId) { return Interval{0, 4}; });
  EXPECT_EQ(mask.nnz(), 2 * 8 * 100 * 4);
  EXPECT_EQ(mask.shape().stored_rows(), 1);
  EXPECT_EQ(head_counts(mask), std::vector<Index>(16, 400));
}

TEST(Mask, CountsBeyond32BitsAreExact) {
  const MaskShape shape = MaskShape{4, 32, 1 << 20, 1 << 20}.one_row();
  EXPECT_EQ(Mask::full(shape).nnz(), Index{1} << 47);
  EXPECT_EQ(Mask::intervals(shape, [](RowId) { return Interval{0, 3}; }).nnz(), Index{3} << 27);
}

TEST(Mask, RowIndicesMayBePaddedUnsortedAndRepeated) {
  const Index columns[] = {3, -1, 0, 3, -1, -1, -1, -1};
  const float p[] = {0.5f, 1, 0.25f, 0.75f, 1, 1, 1, 1};
  const Mask mask = Mask::from_row_indices({1, 1, 2, 5}, 4, columns, p);
  EXPECT_EQ(mask.at(0, 0, 0, 3), 0.75f) << "of equal columns the last wins";
  EXPECT_EQ(mask.at(0, 0, 0, 0), 0.25f);
  EXPECT_EQ(row_counts(mask), (std::vector<Index>{2, 0}));
}

TEST(Mask, BadStorageIsRefusedWithTheReason) {
  const MaskShape shape{1, 1, 2, 4};
  using I = std::int32_t;
  EXPECT_EQ(message_of<ShapeError>([&] {
              Mask::csr(shape, buffer<Index>({0, 1}), buffer<I>({0}));
            }),
            "mask (1, 1, 2, 4): row_ptr has 2 entries; expected 3 (stored rows + 1)");
  EXPECT_EQ(message_of<ShapeError>([&] {
              Mask::csr(shape, buffer<Index>({0, 2, 1}), buffer<I>({0}));
            }),
            "mask (1, 1, 2, 4): row_ptr descends");
  EXPECT_EQ(message_of<ShapeError>([&] {
              Mask::csr(shape, buffer<Index>({0, 1, 3}), buffer<I>({0}));
            }),
            "mask (1, 1, 2, 4): row_ptr goes from 0 to 3; expected 0 to 1");
  EXPECT_EQ(message_of<ShapeError>([&] {
              Mask::csr(shape, buffer<Index>({0, 2, 2}), buffer<I>({2, 1}));
            }),
            "mask (1, 1, 2, 4): row 0 has column 1 after 2; expected strictly ascending columns below 4");
  EXPECT_EQ(message_of<ShapeError>([&] {
              Mask::csr(shape, buffer<Index>({0, 1, 1}), buffer<I>({4}));
            }),
            "mask (1, 1, 2, 4): row 0 has column 4 after -1; expected strictly ascending columns below 4");
  EXPECT_EQ(message_of<ShapeError>([&] {
              Mask::csr(shape, buffer<Index>({0, 1, 1}), buffer<I>({1}), buffer<float>({0}));
            }),
            "mask (1, 1, 2, 4): p is 0; expected a p in [2^-126, 1]");
  EXPECT_EQ(message_of<ShapeError>([&] {
              Mask::csr(shape, buffer<Index>({0, 1, 1}), buffer<I>({1}), buffer<float>({NAN}));
            }),
            "mask (1, 1, 2, 4): p is nan; expected a p in [2^-126, 1]");
  EXPECT_EQ(
      message_of<ShapeError>([&] {
        Mask::runs(shape, buffer<Index>({0, 2, 2}), buffer<Interval>({{0, 2}, {1, 3}}));
      }),
      "mask (1, 1, 2, 4): row 0 has run [1, 3) after column 2; expected non-empty, ascending, disjoint runs within 4 "
      "keys");
  EXPECT_EQ(message_of<ShapeError>([&] {
              Mask::bits(shape, buffer<std::uint64_t>({1, 16}));
            }),
            "mask (1, 1, 2, 4): bits beyond the last key are set");
  EXPECT_EQ(message_of<ShapeError>([&] { Mask::dense(shape, std::vector<float>(7)); }),
            "mask (1, 1, 2, 4): has 7 dense values; expected 8 (stored rows x keys)");
  EXPECT_EQ(message_of<ShapeError>([&] { Mask::dense(shape, std::vector<float>(8, 1.5f)); }),
            "mask (1, 1, 2, 4): p is 1.5; expected 0 or a p in [2^-126, 1]");
  EXPECT_EQ(message_of<ShapeError>([&] {
              Mask::empty({1, 1, 1, Index{1} << 31});
            }),
            "mask (1, 1, 1, 2147483648): at most 2^31 - 1 keys and queries can be addressed");
  EXPECT_EQ(message_of<ShapeError>([&] {
              Mask::empty({Index{1} << 31, Index{1} << 31, 4, 1});
            }),
            "mask (2147483648, 2147483648, 4, 1): more than 2^63 - 1 elements");
  EXPECT_EQ(message_of<ShapeError>([&] { Mask::empty({-1, 1, 1, 1}); }), "mask (-1, 1, 1, 1): extent -1 is negative");
  const Index columns[] = {4};
  EXPECT_EQ(message_of<ShapeError>([&] {
              Mask::from_row_indices({1, 1, 1, 4}, 1, columns);
            }),
            "mask (1, 1, 1, 4): column 4 is out of range; expected 0 to 3, or -1 for padding");
}

TEST(Mask, QuestionsAboutRowsThatDoNotExistAreRefused) {
  const Mask mask = Mask::full({1, 1, 2, 4});
  EXPECT_EQ(message_of<ShapeError>([&] { mask.at(0, 0, 2, 0); }), "mask (1, 1, 2, 4): has no row (0, 0, 2)");
  EXPECT_EQ(message_of<ShapeError>([&] { mask.at(0, 0, 0, 4); }), "mask (1, 1, 2, 4): has no key 4");
}

TEST(Mask, MasksOfOtherShapeOrContentAreUnequal) {
  const Mask a = Mask::intervals({1, 2, 2, 8}, [](RowId row) {
    return Interval{0, static_cast<std::int32_t>(row.head + 1)};
  });
  const Mask b = Mask::intervals({1, 2, 2, 8}, [](RowId row) {
    return Interval{0, static_cast<std::int32_t>(2 - row.head)};
  });
  EXPECT_FALSE(a == b);
  EXPECT_NE(hash(a), hash(b));
  EXPECT_FALSE(Mask::empty({1, 1, 2, 8}) == Mask::empty({1, 1, 8, 2}));
}

TEST(Mask, DescribesItself) {
  EXPECT_EQ(describe(Mask::full({1, 4, 512, 4096})), "Mask (1, 4, 512, 4096), full, density 100 %, 0.0 kB");
}

TEST(Mask, WithoutPositionsIsNotWeightedWhateverItsSharedRowHolds) {
  const MaskShape shape = MaskShape{1, 2, 0, 4}.one_row();
  const Mask weighted = Mask::dense(shape, std::vector<float>{0.5f, 1, 0, 0.25f});
  EXPECT_FALSE(weighted.weighted());
  EXPECT_EQ(weighted, Mask::empty({1, 2, 0, 4}));
}

}  // namespace
}  // namespace reticle
