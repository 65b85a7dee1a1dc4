#include <algorithm>
#include <iterator>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/row_kernels.hpp>
#include <reticle/core/mask/run.hpp>

#include "support/targets.hpp"

namespace reticle::testing {
namespace {

struct Row {
  std::vector<std::int32_t> columns;
  std::vector<float> p;
};

Row random_row(std::size_t count, std::int32_t below, std::mt19937& random) {
  std::vector<std::int32_t> all(static_cast<std::size_t>(below));
  for (std::int32_t i = 0; i < below; ++i) all[static_cast<std::size_t>(i)] = i;
  Row row;
  std::sample(all.begin(), all.end(), std::back_inserter(row.columns), count, random);
  for (std::size_t i = 0; i < row.columns.size(); ++i) row.p.push_back(static_cast<float>(1 + random() % 7) / 7);
  return row;
}

/// The runs of the union, computed from the definition of the algebra.
template <class Op>
std::vector<Run> union_of(const Row& a, const Row& b, bool weighted) {
  const auto runs_of = [&](const Row& row) {
    std::vector<Run> runs;
    for (std::size_t i = 0; i < row.columns.size(); ++i)
      runs.push_back({row.columns[i], row.columns[i] + 1, weighted ? row.p[i] : 1.0f});
    return runs;
  };
  std::vector<Run> result;
  combine_rows<Op>(runs_of(a), runs_of(b), [&](Run run) { result.push_back(run); });
  return result;
}

void expect_equal(const std::vector<Run>& expected, RowCounts counts, const std::vector<std::int32_t>& columns,
                  const std::vector<float>& p) {
  ASSERT_EQ(counts.runs, static_cast<Index>(expected.size()));
  std::size_t at = 0;
  for (const Run& run : expected) {
    for (std::int32_t column = run.begin; column < run.end; ++column, ++at) {
      ASSERT_EQ(columns[at], column);
      if (!p.empty()) {
        ASSERT_EQ(p[at], run.p);
      }
    }
  }
  ASSERT_EQ(counts.entries, static_cast<Index>(at));
}

TEST(MergeColumns, IsTheUnionForEveryCountAndTarget) {
  for_each_target([] {
    std::mt19937 random(1);
    for (const unsigned left : {0u, 1u, 2u, 3u, 7u, 8u, 15u, 16u, 17u, 31u, 33u, 64u, 90u}) {
      for (const unsigned right : {0u, 1u, 4u, 16u, 17u, 40u, 90u}) {
        for (const std::int32_t below : {100, 4000}) {
          const Row a = random_row(left, below, random), b = random_row(right, below, random);
          std::vector<std::int32_t> columns(left + right + kSlack);
          const RowCounts counts =
              merge_columns(a.columns.data(), Index{left}, b.columns.data(), Index{right}, columns.data());
          expect_equal(union_of<row_op::Add>(a, b, false), counts, columns, {});
        }
      }
    }
  });
}

TEST(MergeWeightedColumns, IsTheUnionByEachRule) {
  for_each_target([] {
    std::mt19937 random(2);
    for (const unsigned left : {0u, 1u, 5u, 8u, 9u, 16u, 50u, 90u}) {
      for (const unsigned right : {0u, 1u, 4u, 8u, 17u, 90u}) {
        for (const bool both : {false, true}) {
          const Row a = random_row(left, 100, random);
          Row b = random_row(right, 100, random);
          if (!both) std::fill(b.p.begin(), b.p.end(), 1.0f);
          const auto check = [&]<class Op>(SetOp rule, Op) {
            std::vector<std::int32_t> columns(left + right + kSlack);
            std::vector<float> p(columns.size());
            const Index entries =
                merge_weighted_columns(rule, a.columns.data(), a.p.data(), Index{left}, b.columns.data(),
                                       both ? b.p.data() : nullptr, Index{right}, columns.data(), p.data());
            const RowCounts counts{entries, count_runs(columns.data(), p.data(), entries)};
            expect_equal(union_of<Op>(a, b, true), counts, columns, p);
          };
          check(SetOp::add, row_op::Add());
          check(SetOp::max, row_op::Max());
          check(SetOp::independent, row_op::Independent());
        }
      }
    }
  });
}

TEST(CombineWords, CombinesAndCountsForEveryLengthAndTarget) {
  for_each_target([] {
    std::mt19937_64 random(3);
    for (Index count = 0; count < 40; ++count) {
      std::vector<std::uint64_t> a, b, out(static_cast<std::size_t>(count));
      for (Index i = 0; i < count; ++i) {
        a.push_back(i % 5 == 0 ? ~std::uint64_t{0} : random());
        b.push_back(random());
        b.back() &= random();
      }
      for (const SetOp op : {SetOp::max, SetOp::intersect, SetOp::subtract}) {
        const RowCounts counts = combine_words(op, a.data(), b.data(), out.data(), count);
        RowCounts expected;
        bool before = false;
        for (Index bit = 0; bit < count * 64; ++bit) {
          const auto at = [&](const std::vector<std::uint64_t>& words) {
            return (words[static_cast<std::size_t>(bit / 64)] >> (bit % 64) & 1) != 0;
          };
          const bool in_a = at(a), in_b = at(b);
          const bool is = op == SetOp::max ? in_a || in_b : op == SetOp::intersect ? in_a && in_b : in_a && !in_b;
          ASSERT_EQ(at(out), is);
          expected.entries += is ? 1 : 0;
          expected.runs += is && !before ? 1 : 0;
          before = is;
        }
        EXPECT_EQ(counts.entries, expected.entries);
        EXPECT_EQ(counts.runs, expected.runs);
        std::vector<std::uint64_t> in_place = a;
        const RowCounts again = combine_words(op, in_place.data(), b.data(), in_place.data(), count);
        EXPECT_EQ(in_place, out);
        EXPECT_EQ(again.runs, expected.runs);
      }
    }
  });
}

TEST(SetBits, AddsEachColumnsBitForEveryDensityAndTarget) {
  for_each_target([] {
    std::mt19937 random(4);
    for (const std::int32_t below : {320, 20000}) {
      for (const unsigned per_cent : {0u, 1u, 5u, 30u, 100u}) {
        const Row row = random_row(static_cast<std::size_t>(below) * per_cent / 100, below, random);
        const auto count = static_cast<Index>(row.columns.size());
        const std::vector<std::uint64_t> before(static_cast<std::size_t>((below + 63) / 64), 0x10);
        std::vector<std::uint64_t> expected = before, words = before, further = before;
        for (const std::int32_t column : row.columns)
          expected[static_cast<std::size_t>(column / 64)] |= std::uint64_t{1} << (column % 64);
        set_bits(row.columns.data(), count, 0, words.data());
        ASSERT_EQ(words, expected) << per_cent << " % of " << below;
        std::vector<std::int32_t> moved = row.columns;
        for (std::int32_t& column : moved) column += 6400;
        set_bits(moved.data(), count, 6400, further.data());
        ASSERT_EQ(further, expected) << per_cent << " % of " << below << ", from 6400";
      }
    }
  });
}

TEST(UniteColumnsAsDense, IsTheUnionByEachRule) {
  for_each_target([] {
    std::mt19937 random(7);
    for (const std::int32_t below : {1, 100, 10000}) {
      for (const bool both : {false, true}) {
        const Row a = random_row(static_cast<std::size_t>(below) / 2, below, random);
        Row b = random_row(static_cast<std::size_t>(below), below, random);
        if (!both) std::fill(b.p.begin(), b.p.end(), 1.0f);
        const auto check = [&]<class Op>(SetOp rule, Op) {
          std::vector<float> p(static_cast<std::size_t>(below), -1.0f);
          bool weighted = false;
          const RowCounts counts = unite_columns_as_dense(
              rule, a.columns.data(), a.p.data(), static_cast<Index>(a.columns.size()), b.columns.data(),
              both ? b.p.data() : nullptr, static_cast<Index>(b.columns.size()), p.data(), below, weighted);
          std::vector<std::int32_t> columns;
          std::vector<float> listed;
          for (std::int32_t k = 0; k < below; ++k) {
            if (const float here = p[static_cast<std::size_t>(k)]; here != 0) {
              columns.push_back(k);
              listed.push_back(here);
            }
          }
          expect_equal(union_of<Op>(a, b, true), counts, columns, listed);
          EXPECT_EQ(weighted, std::ranges::any_of(listed, [](float x) { return x < 1; }));
        };
        check(SetOp::add, row_op::Add());
        check(SetOp::max, row_op::Max());
        check(SetOp::independent, row_op::Independent());
      }
    }
  });
}

TEST(UniteColumnsAsBits, IsTheUnionForEveryDensityAndTarget) {
  for_each_target([] {
    std::mt19937 random(5);
    for (const std::int32_t below : {1, 64, 100, 5000}) {
      for (const unsigned left : {0u, 1u, 10u, 30u, 70u, 100u}) {
        for (const unsigned right : {0u, 2u, 30u, 100u}) {
          const auto of = [&](unsigned per_cent) {
            return random_row(static_cast<std::size_t>(below) * per_cent / 100, below, random);
          };
          const Row a = of(left), b = of(right);
          std::vector<std::uint64_t> words(static_cast<std::size_t>(below) / 64 + 2, ~std::uint64_t{0});
          const auto count = static_cast<Index>(words.size());
          const RowCounts counts =
              unite_columns_as_bits(a.columns.data(), static_cast<Index>(a.columns.size()), b.columns.data(),
                                    static_cast<Index>(b.columns.size()), words.data(), count);
          std::vector<std::int32_t> columns(static_cast<std::size_t>(below + kSlack));
          ASSERT_EQ(columns_of_bits(words.data(), count, 0, columns.data()), counts.entries);
          expect_equal(union_of<row_op::Add>(a, b, false), counts, columns, {});
        }
      }
    }
  });
}

TEST(TransposeBits, MovesBitIOfRowRToBitROfWordI) {
  for_each_target([] {
    std::mt19937_64 random(8);
    for (const Index rows : {1, 4, 8, 9, 33, 64}) {
      constexpr Index kStride = 3;
      std::vector<std::uint64_t> words(static_cast<std::size_t>(rows * kStride)), out(64);
      for (std::uint64_t& word : words) word = random();
      transpose_bits(words.data(), rows, kStride, out.data());
      for (Index i = 0; i < 64; ++i) {
        std::uint64_t expected = 0;
        for (Index r = 0; r < rows; ++r) expected |= (words[static_cast<std::size_t>(r * kStride)] >> i & 1) << r;
        ASSERT_EQ(out[static_cast<std::size_t>(i)], expected) << rows << " rows, bit " << i;
      }
    }
  });
}

TEST(CountDense, CountsEntriesRunsAndWeights) {
  std::mt19937 random(6);
  const float values[] = {0, 0, 0.5f, 1, 1};
  for_each_target([&] {
    for (const std::size_t count : {0u, 1u, 5u, 16u, 17u, 100u}) {
      std::vector<float> p(count);
      for (float& value : p) value = values[random() % 5];
      RowCounts expected;
      bool expected_weighted = false, weighted = false;
      for (std::size_t k = 0; k < count; ++k) {
        expected.entries += p[k] > 0 ? 1 : 0;
        expected.runs += p[k] > 0 && (k == 0 || p[k] != p[k - 1]) ? 1 : 0;
        expected_weighted |= p[k] == 0.5f;
      }
      const RowCounts counts = count_dense(p.data(), static_cast<Index>(count), weighted);
      EXPECT_EQ(counts.entries, expected.entries);
      EXPECT_EQ(counts.runs, expected.runs);
      EXPECT_EQ(weighted, expected_weighted);
    }
  });
}

TEST(ColumnsOfBits, ListsSetBitsAndRangesOfThem) {
  std::mt19937_64 random(7);
  for_each_target([&] {
    std::vector<std::uint64_t> words{0, random(), ~std::uint64_t{0}, random() & random() & random(), 0};
    set_bit_range(words.data(), 250, 259);
    std::vector<std::int32_t> expected, columns(320 + kSlack);
    for (std::int32_t bit = 0; bit < 320; ++bit) {
      if ((words[static_cast<std::size_t>(bit / 64)] >> (bit % 64) & 1) != 0) expected.push_back(640 + bit);
    }
    EXPECT_TRUE(std::ranges::includes(expected, std::vector{640 + 250, 640 + 258}));
    const Index count = columns_of_bits(words.data(), 5, 640, columns.data());
    EXPECT_EQ(count, count_bits(words.data(), 5));
    columns.resize(static_cast<std::size_t>(count));
    EXPECT_EQ(columns, expected);
  });
}

TEST(HeldByAtLeast, CountsTheRowsOfEveryColumn) {
  std::mt19937_64 random(5);
  for_each_target([&] {
    for (const Index rows : {1, 2, 5, 63, 64}) {
      for (const Index width : {1, 3, 8, 17}) {
        for (const Index least : {1, 2, 7, 8, 33, 64}) {
          std::vector<std::uint64_t> words(static_cast<std::size_t>(rows * width));
          for (std::uint64_t& word : words) word = random() | random();
          const auto size = static_cast<std::size_t>(width);
          std::vector<std::uint64_t> enough(size), all(size), expected_enough(size, 0), expected_all(size, 0);
          const Index held = columns_in_at_least(least, words.data(), rows, width, enough.data(), all.data());
          Index expected = 0;
          for (std::size_t w = 0; w < size; ++w) {
            for (int bit = 0; bit < 64; ++bit) {
              Index count = 0;
              for (Index r = 0; r < rows; ++r)
                count += static_cast<Index>(words[static_cast<std::size_t>(r) * size + w] >> bit & 1);
              if (count >= least) expected_enough[w] |= std::uint64_t{1} << bit;
              if (count == rows) expected_all[w] |= std::uint64_t{1} << bit;
              expected += count >= least ? 1 : 0;
            }
          }
          EXPECT_EQ(held, expected);
          EXPECT_EQ(enough, expected_enough);
          EXPECT_EQ(all, expected_all);
        }
      }
    }
  });
}

}  // namespace
}  // namespace reticle::testing
