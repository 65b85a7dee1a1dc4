#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/reshape.hpp>

#include "support/naive_mask.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

class Reshape : public ::testing::TestWithParam<int> {
 protected:
  std::mt19937 random{static_cast<std::uint32_t>(GetParam())};
  MaskShape shape{2, 3, 5, 70};
  std::vector<NamedMask> masks = random_masks(shape, random);
};

TEST_P(Reshape, SlicesEachDimension) {
  for (const NamedMask& m : masks) {
    const NaiveMask whole(m.mask);
    for (const Dim dim : {Dim::batch, Dim::heads, Dim::queries, Dim::keys}) {
      const Index extents[] = {shape.batch, shape.heads, shape.queries, shape.keys};
      const Index extent = extents[static_cast<std::size_t>(dim)];
      const Index begin = static_cast<Index>(random() % static_cast<std::uint32_t>(extent));
      const Index end = begin + static_cast<Index>(random() % static_cast<std::uint32_t>(extent - begin + 1));
      const Mask part = slice(m.mask, dim, begin, end);
      NaiveMask expected(part.shape());
      for (Index row = 0; row < expected.shape.rows(); ++row) {
        RowId id = expected.shape.row_of_logical(row);
        if (dim == Dim::batch) id.batch += begin;
        if (dim == Dim::heads) id.head += begin;
        if (dim == Dim::queries) id.query += begin;
        for (Index key = 0; key < expected.shape.keys; ++key)
          expected.at(row, key) = whole.at(whole.shape.stored_row(id), key + (dim == Dim::keys ? begin : 0));
      }
      expect_equal(part, expected, m.name);
    }
  }
}

TEST_P(Reshape, AppendedKeysAreAttendedByNone) {
  for (const NamedMask& m : masks) {
    const Mask longer = append_keys(m.mask, 9);
    EXPECT_EQ(longer.nnz(), m.mask.nnz()) << m.name;
    EXPECT_EQ(slice(longer, Dim::keys, 0, shape.keys), m.mask) << m.name;
    EXPECT_EQ(slice(longer, Dim::keys, shape.keys, shape.keys + 9).nnz(), 0) << m.name;
    EXPECT_EQ(append_keys(m.mask, 0), m.mask);
  }
}

TEST_P(Reshape, AppendedQueriesFollow) {
  const std::vector<NamedMask> others = random_masks(shape, random);
  for (std::size_t i = 0; i < masks.size(); ++i) {
    const Mask& above = masks[i].mask;
    const Mask& below = others[(i * 5 + 3) % others.size()].mask;
    const Mask both = append_queries(above, below);
    EXPECT_EQ(slice(both, Dim::queries, 0, shape.queries), above) << masks[i].name;
    EXPECT_EQ(slice(both, Dim::queries, shape.queries, 2 * shape.queries), below) << masks[i].name;
  }
}

TEST_P(Reshape, TransposeSwapsQueriesAndKeys) {
  for (const NamedMask& m : masks) {
    const NaiveMask whole(m.mask);
    const Mask transposed = transpose(m.mask);
    NaiveMask expected(transposed.shape());
    for (Index row = 0; row < whole.shape.rows(); ++row) {
      RowId id = whole.shape.row_of_logical(row);
      for (Index key = 0; key < shape.keys; ++key)
        expected.at(expected.shape.stored_row({id.batch, id.head, key}), id.query) = whole.at(row, key);
    }
    expect_equal(transposed, expected, m.name);
    EXPECT_EQ(transpose(transposed), m.mask) << m.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, Reshape, ::testing::Range(0, 4));

TEST(Broadcast, WidensExtentsOfOneWithoutStorage) {
  const Mask one = Mask::csr({1, 1, 3, 4}, Array<Index>{0, 1, 2, 3}, Array<std::int32_t>{0, 1, 2});
  const Mask wide = broadcast_to(one, {5, 7, 3, 4});
  EXPECT_EQ(wide.bytes(), one.bytes());
  EXPECT_EQ(wide.nnz(), 5 * 7 * 3);
  EXPECT_EQ(wide.at(4, 6, 2, 2), 1.0f);
  EXPECT_THROW(broadcast_to(one, {1, 1, 4, 4}), ShapeError);
  EXPECT_THROW(broadcast_to(one, {1, 1, 3, 5}), ShapeError);
}

TEST(Transpose, OfALongWindowTakesTimeAndMemoryOfItsRuns) {
  const Index length = 1 << 17;
  const Mask window = Mask::intervals(MaskShape{1, 8, length, length}.one_head(), [](RowId row) {
    return Interval{static_cast<std::int32_t>(row.query - 1023), static_cast<std::int32_t>(row.query + 1)};
  });
  const Mask transposed = transpose(window);
  EXPECT_EQ(transposed.nnz(), window.nnz());
  EXPECT_LE(transposed.bytes(), 16 * length + 8);
  std::vector<reticle::Run> runs;
  transposed.row({0, 7, 5000}, runs);
  EXPECT_EQ(runs, (std::vector<reticle::Run>{{5000, 6024, 1}}));
}

TEST(Slice, OutOfRangeIsRefused) {
  const Mask mask = Mask::full({1, 2, 3, 4});
  EXPECT_THROW(slice(mask, Dim::keys, 0, 5), ShapeError);
  EXPECT_THROW(slice(mask, Dim::heads, 2, 1), ShapeError);
  EXPECT_THROW(slice(mask, Dim::batch, -1, 1), ShapeError);
  EXPECT_EQ(slice(mask, Dim::keys, 2, 2).nnz(), 0);
  EXPECT_THROW(append_keys(mask, -1), ShapeError);
  EXPECT_THROW(append_keys(mask, std::numeric_limits<Index>::max()), ShapeError);
  EXPECT_THROW(append_queries(mask, Mask::full({1, 2, 3, 5})), ShapeError);
}

}  // namespace
}  // namespace reticle::testing
