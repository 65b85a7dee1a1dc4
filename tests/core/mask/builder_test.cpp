#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/builder.hpp>

#include "support/message_of.hpp"
#include "support/naive_mask.hpp"

namespace reticle::testing {
namespace {

TEST(MaskBuilder, IntervalsAreClippedToTheKeys) {
  const Mask mask = Mask::intervals({1, 1, 3, 10}, [](RowId row) {
    return row.query == 0 ? Interval{-5, 2} : row.query == 1 ? Interval{8, 99} : Interval{7, 3};
  });
  EXPECT_EQ(row_counts(mask), (std::vector<Index>{2, 2, 0}));
  EXPECT_EQ(mask.at(0, 0, 1, 9), 1.0f);
}

TEST(MaskBuilder, RunsOutOfOrderFromAnAuthorAreRefused) {
  EXPECT_EQ(message_of<ShapeError>([] {
              Mask::from_runs({1, 1, 1, 9}, [](RowId, FunctionRef<void(reticle::Run)> emit) {
                emit({4, 6, 1});
                emit({1, 2, 1});
              });
            }),
            "mask (1, 1, 1, 9): row 0 emits [1, 2) with p 1.000000 after column 6; expected ascending disjoint runs "
            "with p in (0, 1]");
}

TEST(MaskBuilder, RowsThatChangeBetweenTheirTwoReadingsAreRefused) {
  const MaskShape shape{1, 1, 4, 100};
  for (const bool more : {true, false}) {  // more entries in the second reading than in the first, or fewer
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

TEST(MaskBuilder, RunsThatTouchBecomeOneAndThoseOfNoProbabilityAreLeftOut) {
  const Mask mask = Mask::from_runs({1, 1, 1, 20}, [](RowId, FunctionRef<void(reticle::Run)> emit) {
    for (const reticle::Run& run : {reticle::Run{0, 2, 1}, reticle::Run{2, 5, 1}, reticle::Run{5, 6, 0.5f},
                                    reticle::Run{8, 9, 0}, reticle::Run{9, 9, 1}})
      emit(run);
  });
  std::vector<reticle::Run> runs;
  mask.row({0, 0, 0}, runs);
  EXPECT_EQ(runs, (std::vector<reticle::Run>{{0, 5, 1}, {5, 6, 0.5f}}));
  EXPECT_EQ(mask.nnz(), 6);
  EXPECT_TRUE(mask.weighted());
}

TEST(MaskBuilder, ASharedRowIsAskedForOnceInEachOfItsTwoReadings) {
  int calls = 0;
  const Mask mask = Mask::from_runs(
      MaskShape{2, 3, 50, 40}.one_row(),
      [&](RowId, FunctionRef<void(reticle::Run)> emit) {
        ++calls;
        emit({0, 7, 1});
      },
      Context(1));
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(mask.nnz(), 2 * 3 * 50 * 7);
}

TEST(MaskBuilder, SelectionsThatNoMaskMayHoldAreRefused) {
  const MaskShape shape{1, 1, 2, 10};
  const auto refusal = [&](const std::vector<std::int32_t>& columns, const std::vector<float>& p = {}) {
    return message_of<ShapeError>([&] {
      Mask::from_selections(
          shape,
          [&](RowId row, Selection& selection) {
            if (row.query == 0) return;
            selection.indices = columns;
            selection.p = p;
          },
          Context(1));
    });
  };
  EXPECT_EQ(refusal({0, 1, 2, 3, 4, 5}), "nothing was thrown");
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

TEST(MaskBuilder, SelectionsComeOutAsTheirCountsCallFor) {
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

TEST(MaskBuilder, SelectionsAreAssembledFromManyThreads) {
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

TEST(MaskBuilder, SelectionsServedTogetherAreOfNeighbouringQueriesOfOneHead) {
  const MaskShape shape{2, 3, 10, 64};
  for (const Index group : {1, 3, 4, 16}) {
    const Mask mask = assemble_selections(
        shape, group,
        [&](RowId first, std::span<Selection> selections) {
          const auto count = static_cast<Index>(selections.size());
          EXPECT_GT(count, 0);
          EXPECT_LE(count, group);
          EXPECT_LE(first.query + count, shape.queries);
          for (Index i = 0; i < count; ++i) {
            Selection& selection = selections[static_cast<std::size_t>(i)];
            EXPECT_TRUE(selection.indices.empty()) << "what the group before it chose is gone";
            selection.indices.push_back(
                static_cast<std::int32_t>(first.batch * 30 + first.head * 10 + first.query + i));
          }
        },
        Context(2));
    NaiveMask expected(shape);
    for (Index row = 0; row < 60; ++row) expected.at(row, row) = 1;
    expect_equal(mask, expected, "groups of " + std::to_string(group));
  }
}

TEST(MaskBuilder, OfOneQueryEachSelectionsServedTogetherAreOfNeighbouringHeads) {
  const MaskShape shape{2, 4, 1, 8};
  const Mask mask = assemble_selections(
      shape, 4,
      [](RowId first, std::span<Selection> selections) {
        EXPECT_EQ(first.head, 0);
        ASSERT_EQ(selections.size(), 4u);
        for (std::size_t head = 0; head < 4; ++head)
          selections[head].indices.push_back(static_cast<std::int32_t>(first.batch * 4) +
                                             static_cast<std::int32_t>(head));
      },
      Context(1));
  NaiveMask expected(shape);
  for (Index row = 0; row < 8; ++row) expected.at(row, row) = 1;
  expect_equal(mask, expected);
}

}  // namespace
}  // namespace reticle::testing
