#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/select.hpp>

#include "support/targets.hpp"

namespace reticle {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// Selectable positions, best first: higher score, then lower index.
std::vector<std::int32_t> ranked(const std::vector<float>& scores) {
  std::vector<std::int32_t> order;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > -kInfinity) order.push_back(static_cast<std::int32_t>(i));
  }
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  return order;
}

std::vector<std::int32_t> first_ascending(std::vector<std::int32_t> order, std::size_t count) {
  order.resize(std::min(order.size(), count));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<std::vector<float>> rows() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> rows{
      {}, {1}, {-kInfinity}, {kNaN, kNaN}, {0.0f, -0.0f, 0.0f}, {kInfinity, 1, kInfinity, -1}};
  for (const std::size_t n : {5u, 64u, 1000u, 5000u, 70000u}) {
    std::vector<float> row(n);
    for (float& x : row) x = normal(random);
    rows.push_back(row);
    for (float& x : row) x = std::round(x);  // ties
    rows.push_back(row);
    for (std::size_t i = 0; i < n; i += 3) row[i] = i % 2 == 0 ? -kInfinity : kNaN;
    rows.push_back(row);
    rows.emplace_back(n, 2.5f);
    std::iota(row.begin(), row.end(), -2.0f);
    rows.push_back(row);
    for (float& x : row) x *= 1e30f;
    rows.push_back(row);
    for (float& x : row) x = std::ldexp(x, -140);  // subnormal
    rows.push_back(row);
    // Whoever looks at every 256th score sees the highest only, and there are few of them.
    for (std::size_t i = 0; i < n; ++i) row[i] = i % 256 == 0 ? 1.0f : normal(random) - 9;
    rows.push_back(row);
  }
  return rows;
}

TEST(TopK, AgreesWithAFullSortOnEveryRowAndTarget) {
  reticle::testing::for_each_target([] {
    for (const std::vector<float>& row : rows()) {
      for (const Index k : {0, 1, 2, 7, 63, 500, 4999, 100000}) {
        std::vector<std::int32_t> selected;
        top_k(row, k, selected);
        EXPECT_EQ(selected, first_ascending(ranked(row), static_cast<std::size_t>(k)))
            << "n " << row.size() << ", k " << k;
      }
    }
  });
}

TEST(TopK, TiesGoToTheLowerIndexAndNaNIsNeverSelected) {
  std::vector<std::int32_t> selected;
  top_k(std::vector<float>{1, kNaN, 3, 1, 1, -kInfinity}, 3, selected);
  EXPECT_EQ(selected, (std::vector<std::int32_t>{0, 2, 3}));
  selected.clear();
  top_k(std::vector<float>{kNaN, -1, -kInfinity}, 3, selected);
  EXPECT_EQ(selected, (std::vector<std::int32_t>{1}));
}

TEST(TopP, IsTheSmallestPrefixWhoseMassExceedsP) {
  for (const std::vector<float>& row : rows()) {
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

TEST(Exclude, MakesPositionsUnselectable) {
  std::vector<float> scores{5, 4, 3, 2};
  exclude(std::vector<reticle::Run>{{0, 1, 1}, {2, 9, 1}}, scores);
  std::vector<std::int32_t> selected;
  top_k(scores, 4, selected);
  EXPECT_EQ(selected, (std::vector<std::int32_t>{1}));
}

}  // namespace
}  // namespace reticle
