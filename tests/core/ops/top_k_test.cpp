#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/select.hpp>

#include "support/rows_of_scores.hpp"
#include "support/targets.hpp"

namespace reticle::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(TopK, AgreesWithAFullSortOnEveryRowAndTarget) {
  for_each_target([] {
    for (const std::vector<float>& row : rows_of_scores()) {
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

TEST(Highest, PassesOverNaNOnEveryTarget) {
  for_each_target([] {
    for (const std::size_t n : {1u, 3u, 15u, 16u, 17u, 64u, 100u}) {
      std::vector<float> scores(n, -5.0f);
      for (const std::size_t at : {std::size_t{0}, n / 2, n - 1}) {
        scores[at] = 2;
        if (n > 1) scores[(at + 1) % n] = kNaN;
        EXPECT_EQ(highest(scores), 2) << n << ' ' << at;
        scores.assign(n, -5.0f);
      }
    }
    EXPECT_EQ(highest(std::vector<float>{}), -kInfinity);
    EXPECT_EQ(highest(std::vector<float>{kNaN, kNaN}), -kInfinity);
    EXPECT_EQ(highest(std::vector<float>{-kInfinity, kInfinity, 1}), kInfinity);
  });
}

TEST(TopK, AppendsToWhatWasSelected) {
  std::vector<std::int32_t> selected{9};
  top_k(std::vector<float>{1, 3, 2}, 2, selected);
  EXPECT_EQ(selected, (std::vector<std::int32_t>{9, 1, 2}));
}

}  // namespace
}  // namespace reticle::testing
