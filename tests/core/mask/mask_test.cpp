#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/mask.hpp>

#include "support/naive_mask.hpp"
#include "support/random_mask.hpp"

namespace reticle {
namespace {

using testing::expect_equal;
using testing::NaiveMask;

template <class T>
Buffer<T> buffer(std::initializer_list<T> values) {
  return Array<T>(values);
}

/// The message of the ShapeError that `make` throws.
template <class F>
std::string refusal(F&& make) {
  try {
    make();
  } catch (const ShapeError& error) {
    return error.what();
  }
  return "nothing was thrown";
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

TEST(Mask, IntervalsAreClippedToTheKeys) {
  const Mask mask = Mask::intervals({1, 1, 3, 10}, [](RowId row) {
    return row.query == 0 ? Interval{-5, 2} : row.query == 1 ? Interval{8, 99} : Interval{7, 3};
  });
  EXPECT_EQ(row_counts(mask), (std::vector<Index>{2, 2, 0}));
  EXPECT_EQ(mask.at(0, 0, 1, 9), 1.0f);
}

TEST(Mask, RowIndicesMayBePaddedUnsortedAndRepeated) {
  const Index columns[] = {3, -1, 0, 3, -1, -1, -1, -1};
  const float p[] = {0.5f, 1, 0.25f, 0.75f, 1, 1, 1, 1};
  const Mask mask = Mask::from_row_indices({1, 1, 2, 5}, 4, columns, p);
  EXPECT_EQ(mask.at(0, 0, 0, 3), 0.75f) << "of equal columns the last wins";
  EXPECT_EQ(mask.at(0, 0, 0, 0), 0.25f);
  EXPECT_EQ(row_counts(mask), (std::vector<Index>{2, 0}));
}

TEST(Mask, RepresentationIsTheSmallestForItsContent) {
  const auto kind = [](const std::vector<float>& p) {
    return Mask::dense({1, 1, 1, static_cast<Index>(p.size())}, p).kind();
  };
  std::vector<float> p(6400, 0.0f);
  EXPECT_EQ(kind(p), MaskKind::empty);
  std::fill(p.begin(), p.begin() + 3000, 1.0f);
  EXPECT_EQ(kind(p), MaskKind::runs) << "one long run";
  std::fill(p.begin(), p.end(), 0.0f);
  for (std::size_t i = 0; i < p.size(); i += 100) p[i] = 1;
  EXPECT_EQ(kind(p), MaskKind::csr) << "scattered, 1 %";
  for (std::size_t i = 0; i < p.size(); i += 3) p[i] = 1;
  EXPECT_EQ(kind(p), MaskKind::bits) << "scattered, 33 %";
  for (float& value : p) value *= 0.5f;
  EXPECT_EQ(kind(p), MaskKind::csr) << "weighted, 33 %";
  for (std::size_t i = 0; i < p.size(); ++i) p[i] = i % 2 == 0 ? 0.5f : 0.25f;
  EXPECT_EQ(kind(p), MaskKind::dense) << "weighted everywhere";
  std::fill(p.begin(), p.end(), 1.0f);
  EXPECT_EQ(kind(p), MaskKind::full);
}

TEST(Mask, BadStorageIsRefusedWithTheReason) {
  const MaskShape shape{1, 1, 2, 4};
  using I = std::int32_t;
  EXPECT_EQ(refusal([&] {
              Mask::csr(shape, buffer<Index>({0, 1}), buffer<I>({0}));
            }),
            "mask (1, 1, 2, 4): row_ptr has 2 entries; expected 3 (stored rows + 1)");
  EXPECT_EQ(refusal([&] {
              Mask::csr(shape, buffer<Index>({0, 2, 1}), buffer<I>({0}));
            }),
            "mask (1, 1, 2, 4): row_ptr descends");
  EXPECT_EQ(refusal([&] {
              Mask::csr(shape, buffer<Index>({0, 1, 3}), buffer<I>({0}));
            }),
            "mask (1, 1, 2, 4): row_ptr goes from 0 to 3; expected 0 to 1");
  EXPECT_EQ(refusal([&] {
              Mask::csr(shape, buffer<Index>({0, 2, 2}), buffer<I>({2, 1}));
            }),
            "mask (1, 1, 2, 4): row 0 has column 1 after 2; expected strictly ascending columns below 4");
  EXPECT_EQ(refusal([&] {
              Mask::csr(shape, buffer<Index>({0, 1, 1}), buffer<I>({4}));
            }),
            "mask (1, 1, 2, 4): row 0 has column 4 after -1; expected strictly ascending columns below 4");
  EXPECT_EQ(refusal([&] {
              Mask::csr(shape, buffer<Index>({0, 1, 1}), buffer<I>({1}), buffer<float>({0}));
            }),
            "mask (1, 1, 2, 4): p is 0; expected a p in [2^-126, 1]");
  EXPECT_EQ(refusal([&] {
              Mask::csr(shape, buffer<Index>({0, 1, 1}), buffer<I>({1}), buffer<float>({NAN}));
            }),
            "mask (1, 1, 2, 4): p is nan; expected a p in [2^-126, 1]");
  EXPECT_EQ(
      refusal([&] {
        Mask::runs(shape, buffer<Index>({0, 2, 2}), buffer<Interval>({{0, 2}, {1, 3}}));
      }),
      "mask (1, 1, 2, 4): row 0 has run [1, 3) after column 2; expected non-empty, ascending, disjoint runs within 4 "
      "keys");
  EXPECT_EQ(refusal([&] {
              Mask::bits(shape, buffer<std::uint64_t>({1, 16}));
            }),
            "mask (1, 1, 2, 4): bits beyond the last key are set");
  EXPECT_EQ(refusal([&] { Mask::dense(shape, std::vector<float>(7)); }),
            "mask (1, 1, 2, 4): has 7 dense values; expected 8 (stored rows x keys)");
  EXPECT_EQ(refusal([&] { Mask::dense(shape, std::vector<float>(8, 1.5f)); }),
            "mask (1, 1, 2, 4): p is 1.5; expected 0 or a p in [2^-126, 1]");
  EXPECT_EQ(refusal([&] {
              Mask::empty({1, 1, 1, Index{1} << 31});
            }),
            "mask (1, 1, 1, 2147483648): at most 2^31 - 1 keys and queries can be addressed");
  EXPECT_EQ(refusal([&] {
              Mask::empty({Index{1} << 31, Index{1} << 31, 4, 1});
            }),
            "mask (2147483648, 2147483648, 4, 1): more than 2^63 - 1 elements");
  EXPECT_EQ(refusal([&] { Mask::empty({-1, 1, 1, 1}); }), "mask (-1, 1, 1, 1): extent -1 is negative");
  const Index columns[] = {4};
  EXPECT_EQ(refusal([&] {
              Mask::from_row_indices({1, 1, 1, 4}, 1, columns);
            }),
            "mask (1, 1, 1, 4): column 4 is out of range; expected 0 to 3, or -1 for padding");
}

TEST(Mask, RunsOutOfOrderFromAnAuthorAreRefused) {
  EXPECT_EQ(refusal([] {
              Mask::from_runs({1, 1, 1, 9}, [](RowId, FunctionRef<void(reticle::Run)> emit) {
                emit({4, 6, 1});
                emit({1, 2, 1});
              });
            }),
            "mask (1, 1, 1, 9): row 0 emits [1, 2) with p 1.000000 after column 6; expected ascending disjoint runs "
            "with p in "
            "(0, 1]");
}

TEST(Mask, QuestionsAboutRowsThatDoNotExistAreRefused) {
  const Mask mask = Mask::full({1, 1, 2, 4});
  EXPECT_EQ(refusal([&] { mask.at(0, 0, 2, 0); }), "mask (1, 1, 2, 4): has no row (0, 0, 2)");
  EXPECT_EQ(refusal([&] { mask.at(0, 0, 0, 4); }), "mask (1, 1, 2, 4): has no key 4");
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

TEST(Mask, RowsThatChangeBetweenTheirTwoReadingsAreRefused) {
  const MaskShape shape{1, 1, 4, 100};
  for (const bool more : {true, false}) {  // into lists of columns and into runs
    for (const std::int32_t step : {2, 20}) {
      std::vector<int> readings(4, 0);
      const auto rows = [&](RowId row, FunctionRef<void(reticle::Run)> emit) {
        const bool again = readings[static_cast<std::size_t>(row.query)]++ > 0;
        const std::int32_t end = again == more ? 60 : 40;
        for (std::int32_t key = 0; key < end; key += step) emit({key, key + 1, 1});
      };
      EXPECT_THROW(Mask::from_runs(shape, rows), ValueError) << more << ' ' << step;
    }
  }
}

TEST(Mask, SelectionsThatNoMaskMayHoldAreRefused) {
  const MaskShape shape{1, 1, 2, 10};
  const auto refusal = [&](const std::vector<std::int32_t>& columns, const std::vector<float>& p = {}) {
    try {
      Mask::from_selections(
          shape,
          [&](RowId row, Selection& selection) {
            if (row.query == 0) return;
            selection.indices = columns;
            selection.p = p;
          },
          Context(1));
    } catch (const ShapeError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(refusal({0, 1, 2, 3, 4, 5}), "accepted");
  EXPECT_EQ(refusal({3, 3}),
            "mask (1, 1, 2, 10): row 1 has column 3 after 3; expected strictly ascending columns below 10");
  EXPECT_EQ(refusal({0, 1, 2, 3, 4, 10}),
            "mask (1, 1, 2, 10): row 1 has column 10 after 4; expected strictly ascending columns below 10");
  EXPECT_EQ(refusal({-1, 3}),
            "mask (1, 1, 2, 10): row 1 has column -1 after -1; expected strictly ascending columns below 10");
  EXPECT_EQ(refusal({INT32_MIN, INT32_MAX}),
            "mask (1, 1, 2, 10): row 1 has column -2147483648 after -1; expected strictly ascending columns below 10");
  EXPECT_EQ(refusal({1, 2}, {0.5f, 0}), "mask (1, 1, 2, 10): p is 0; expected a p in [2^-126, 1]");
  EXPECT_EQ(refusal({1, 2}, {0.5f}), "a selection has 2 columns and 1 p; expected as many, or no p");
}

TEST(Mask, SelectionsComeOutAsTheirCountsCallFor) {
  const MaskShape shape{1, 2, 3, 640};
  for (const int step : {1, 2, 3, 40}) {
    for (const float p : {1.0f, 0.5f}) {
      std::vector<float> dense(static_cast<std::size_t>(shape.positions()), 0.0f);
      const Mask mask = Mask::from_selections(shape, [&](RowId row, Selection& selection) {
        for (int key = static_cast<int>(row.query); key < 640; key += step) {
          selection.indices.push_back(key);
          if (p < 1) selection.p.push_back(p);
          dense[static_cast<std::size_t>(((row.head * 3) + row.query) * 640 + key)] = p;
        }
      });
      const Mask expected = Mask::dense(shape, dense);
      EXPECT_EQ(mask, expected);
      EXPECT_EQ(mask.kind(), expected.kind()) << "every " << step << ", p " << p;
    }
  }
}

TEST(Mask, SelectionsAreAssembledFromManyThreads) {
  const MaskShape shape{2, 3, 500, 90};
  const auto rows = [](RowId row, Selection& selection) {
    for (std::int32_t key = 0; key < 90; ++key) {
      if ((key * 7 + row.query * 3 + row.head) % 11 != 0) continue;
      selection.indices.push_back(key);
      if (row.query % 3 == 0) selection.p.push_back(0.5f);
    }
  };
  const Mask one = Mask::from_selections(shape, rows, Context(1));
  const Mask four = Mask::from_selections(shape, rows, Context(4));
  EXPECT_EQ(one, four);
  NaiveMask naive(shape);
  for (Index row = 0; row < shape.rows(); ++row) {
    const RowId id = shape.row_of_logical(row);
    for (Index key = 0; key < 90; ++key) {
      if ((key * 7 + id.query * 3 + id.head) % 11 == 0) naive.at(row, key) = id.query % 3 == 0 ? 0.5f : 1.0f;
    }
  }
  expect_equal(one, naive);
}

}  // namespace
}  // namespace reticle
