#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/base/error.hpp>
#include <reticle/core/ops/select.hpp>

#include "support/message_of.hpp"
#include "support/rows_of_scores.hpp"

namespace reticle::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(TopP, IsTheSmallestPrefixWhoseMassExceedsP) {
  for (const std::vector<float>& row : rows_of_scores()) {
    const std::vector<std::int32_t> order = ranked(row);
    if (order.empty()) continue;
    const float max = row[static_cast<std::size_t>(order[0])];
    std::vector<double> mass;
    for (const std::int32_t i : order) {
      const float x = row[static_cast<std::size_t>(i)];
      mass.push_back(x == max ? 1.0 : static_cast<double>(std::exp(x - max)));
    }
    const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
    for (const double p : {0.0, 0.1, 0.5, 0.9, 0.999}) {
      std::vector<std::int32_t> selected;
      top_p(row, p, selected);
      ASSERT_FALSE(selected.empty());
      EXPECT_EQ(selected, first_ascending(order, selected.size())) << "a prefix of the ranking";
      const double before =
          std::accumulate(mass.begin(), mass.begin() + static_cast<std::ptrdiff_t>(selected.size()) - 1, 0.0);
      const double with = before + mass[selected.size() - 1];
      EXPECT_LE(before, p * total + 1e-9 * total) << "no smaller set would do";
      EXPECT_GE(with, p * total - 1e-9 * total);
    }
    std::vector<std::int32_t> all;
    top_p(row, 1.0, all);
    EXPECT_EQ(all, first_ascending(order, order.size()));
  }
}

TEST(TopP, NegativeOrNaNShareSelectsNothing) {
  std::vector<std::int32_t> selected;
  top_p(std::vector<float>{1, 2}, -0.5, selected);
  top_p(std::vector<float>{1, 2}, std::numeric_limits<double>::quiet_NaN(), selected);
  EXPECT_TRUE(selected.empty());
}

TEST(Threshold, KeepsScoresAtOrAboveIt) {
  std::vector<std::int32_t> selected;
  above_threshold(std::vector<float>{1, kNaN, 3, 2, -kInfinity}, 2, selected);
  EXPECT_EQ(selected, (std::vector<std::int32_t>{2, 3}));
  selected.clear();
  above_threshold(std::vector<float>{1, kNaN, -kInfinity}, -kInfinity, selected);
  EXPECT_EQ(selected, (std::vector<std::int32_t>{0}));
}

TEST(Sampling, WithoutReplacementGivesDistinctAscendingPositionsOfTheAskedNumber) {
  for (const Index n : {0, 1, 2, 63, 64, 65, 1000}) {
    for (const Index m : {Index{0}, Index{1}, n / 3, n / 2, n / 2 + 1, n - 1, n, n + 5}) {
      Philox random(3, 0, 0, 0, static_cast<std::uint32_t>(n * 1000 + m));
      std::vector<std::int32_t> selected;
      sample_without_replacement(n, m, random, selected);
      EXPECT_EQ(static_cast<Index>(selected.size()), std::clamp<Index>(m, 0, n));
      EXPECT_TRUE(std::is_sorted(selected.begin(), selected.end()));
      EXPECT_EQ(std::adjacent_find(selected.begin(), selected.end()), selected.end());
      if (!selected.empty()) {
        EXPECT_GE(selected.front(), 0);
        EXPECT_LT(selected.back(), n);
      }
    }
  }
}

TEST(Sampling, EveryPositionAndPairIsIncludedEquallyOften) {
  constexpr int kTrials = 20000;
  for (const Index m : {3, 7}) {  // below and above half
    std::vector<int> single(10), pair(100);
    for (std::uint32_t trial = 0; trial < kTrials; ++trial) {
      Philox random(trial, 0, 0, 0, 0);
      std::vector<std::int32_t> selected;
      sample_without_replacement(10, m, random, selected);
      for (const std::int32_t i : selected) {
        ++single[static_cast<std::size_t>(i)];
        for (const std::int32_t j : selected) ++pair[static_cast<std::size_t>(i * 10 + j)];
      }
    }
    const auto expect_rate = [&](int count, double rate) {
      EXPECT_NEAR(count, kTrials * rate, 4.5 * std::sqrt(kTrials * rate * (1 - rate)));
    };
    const auto md = static_cast<double>(m);
    for (const int count : single) expect_rate(count, md / 10);
    for (int i = 0; i < 10; ++i) {
      for (int j = 0; j < 10; ++j) {
        if (i != j) expect_rate(pair[static_cast<std::size_t>(i * 10 + j)], md * (md - 1) / 90);
      }
    }
  }
}

TEST(Sampling, WithReplacementCollapsesRepeats) {
  double distinct = 0;
  constexpr int kTrials = 4000;
  for (std::uint32_t trial = 0; trial < kTrials; ++trial) {
    Philox random(trial, 0, 0, 0, 0);
    std::vector<std::int32_t> selected;
    sample_with_replacement(20, 10, random, selected);
    EXPECT_TRUE(std::is_sorted(selected.begin(), selected.end()));
    distinct += static_cast<double>(selected.size());
  }
  EXPECT_NEAR(distinct / kTrials, 20 * (1 - std::pow(0.95, 10)), 0.1);
}

TEST(Gaps, AreTheComplementOfTheRuns) {
  const std::vector<reticle::Run> runs{{0, 2, 1}, {5, 6, 0.5f}, {9, 20, 1}};
  const Gaps gaps(runs, 12);
  EXPECT_EQ(gaps.size(), 3 + 3);
  std::vector<std::int32_t> ranks{0, 2, 3, 5};
  gaps.to_positions(ranks);
  EXPECT_EQ(ranks, (std::vector<std::int32_t>{2, 4, 6, 8}));
  EXPECT_EQ(Gaps({}, 7).size(), 7);
  EXPECT_EQ(Gaps(runs, 1).size(), 0);
  EXPECT_EQ(Gaps({}, 0).size(), 0);
}

TEST(Gaps, KeepThePositionsThatNoRunCovers) {
  const Gaps gaps(std::vector<reticle::Run>{{0, 2, 1}, {5, 6, 0.5f}}, 8);
  std::vector<std::int32_t> positions{0, 1, 2, 4, 5, 6, 7, 8, 20};
  gaps.keep_positions(positions);
  EXPECT_EQ(positions, (std::vector<std::int32_t>{2, 4, 6, 7}));
  positions.clear();
  gaps.keep_positions(positions);
  EXPECT_TRUE(positions.empty());
}

TEST(SampleSize, IsTheNearestNumberAndAtLeastOneOfAny) {
  EXPECT_EQ(sample_size(0.25, 10), 3) << "2.5 rounds up";
  EXPECT_EQ(sample_size(0.24, 10), 2);
  EXPECT_EQ(sample_size(0.001, 10), 1);
  EXPECT_EQ(sample_size(1, 10), 10);
  EXPECT_EQ(sample_size(0.5, 0), 0);
}

TEST(Sampling, OfMorePositionsThanCanBeAddressedIsRefused) {
  Philox random(1, 0, 0, 0, 0);
  std::vector<std::int32_t> selected;
  const std::string message = "sampling: 2147483648 positions; at most 2^31 - 1 can be addressed";
  EXPECT_EQ(message_of<ShapeError>([&] { sample_without_replacement(Index{1} << 31, 1, random, selected); }), message);
  EXPECT_EQ(message_of<ShapeError>([&] { sample_with_replacement(Index{1} << 31, 1, random, selected); }), message);
}

TEST(Exclude, MakesPositionsUnselectable) {
  std::vector<float> scores{5, 4, 3, 2};
  exclude(std::vector<reticle::Run>{{0, 1, 1}, {2, 9, 1}}, scores);
  std::vector<std::int32_t> selected;
  top_k(scores, 4, selected);
  EXPECT_EQ(selected, (std::vector<std::int32_t>{1}));
}

}  // namespace
}  // namespace reticle::testing
