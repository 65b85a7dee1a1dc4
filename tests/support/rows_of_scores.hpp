// Rows of scores to select from, and their order by a plain sort.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace reticle::testing {

/// Selectable positions, best first: higher score, then lower index.
inline std::vector<std::int32_t> ranked(const std::vector<float>& scores) {
  std::vector<std::int32_t> order;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > -std::numeric_limits<float>::infinity()) order.push_back(static_cast<std::int32_t>(i));
  }
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  return order;
}

/// The first `count` of an order, ascending: what a selector gives.
inline std::vector<std::int32_t> first_ascending(std::vector<std::int32_t> order, std::size_t count) {
  order.resize(std::min(order.size(), count));
  std::sort(order.begin(), order.end());
  return order;
}

/// Short, long, tied, subnormal, huge and mostly forbidden rows of scores.
inline std::vector<std::vector<float>> rows_of_scores() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
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
    // The few highest scores stand 256 apart: a sample of every 256th sees nothing else.
    for (std::size_t i = 0; i < n; ++i) row[i] = i % 256 == 0 ? 1.0f : normal(random) - 9;
    rows.push_back(row);
  }
  return rows;
}

}  // namespace reticle::testing
