#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/lsh.hpp>

#include "support/targets.hpp"

namespace reticle::testing {
namespace {

TEST(Lsh, CollisionsAreThoseOfEachTableComparedAloneOnEveryTarget) {
  std::mt19937 random(3);
  for (const Index bits : {1, 8, 9, 16, 17, 33, 64}) {
    for (const Index tables : {1, 2, 15, 16, 33, 150}) {
      for (const Index least : {1, 2}) {
        const LshRecipe recipe{.tables = tables, .bits = bits, .min_collisions = least};
        const Index bytes = recipe.code_bytes(), stride = tables * bytes, keys = 70;
        // Only two values, so that codes of every width sometimes collide.
        std::vector<std::uint8_t> query(static_cast<std::size_t>(stride)),
            codes(static_cast<std::size_t>(keys * stride));
        for (std::uint8_t& code : query) code = random() % 2 == 0 ? 7 : 9;
        for (std::uint8_t& code : codes) code = random() % 2 == 0 ? 7 : 9;
        std::vector<std::int32_t> expected;
        for (Index key = 0; key < keys; ++key) {
          Index shared = 0;
          for (Index table = 0; table < tables; ++table) {
            const auto of_query = query.begin() + table * bytes, of_key = codes.begin() + key * stride + table * bytes;
            shared += std::equal(of_query, of_query + bytes, of_key) ? 1 : 0;
          }
          if (shared >= least) expected.push_back(static_cast<std::int32_t>(key));
        }
        for_each_target([&] {
          std::vector<std::int32_t> found;
          collisions(query.data(), codes.data(), keys, recipe, found);
          EXPECT_EQ(found, expected) << bits << " bits, " << tables << " tables, at least " << least;
        });
      }
    }
  }
}

/// The probability of at least `least` collisions, from the binomial distribution over the tables.
double probability(double cosine, Index bits, Index tables, Index least) {
  const double share = std::pow(1 - std::acos(cosine) / std::numbers::pi, static_cast<double>(bits));
  double fewer = std::pow(1 - share, static_cast<double>(tables));
  if (least == 2) fewer += static_cast<double>(tables) * share * std::pow(1 - share, static_cast<double>(tables - 1));
  return 1 - fewer;
}

TEST(Lsh, ProbabilitiesAreThoseOfIndependentTables) {
  for (const double cosine : {-0.9, -0.3, 0.0, 0.5, 0.99}) {
    for (const Index bits : {1, 4, 10}) {
      for (const Index tables : {1, 2, 75}) {
        for (const Index least : {1, 2})
          EXPECT_NEAR(collision_probability(cosine, bits, tables, least), probability(cosine, bits, tables, least),
                      1e-12)
              << cosine << ' ' << bits << ' ' << tables << ' ' << least;
      }
    }
  }
}

TEST(Lsh, ProbabilitiesOfOppositeAndEqualVectorsAreExact) {
  for (const Index least : {1, 2}) {
    EXPECT_EQ(collision_probability(-1, 4, 75, least), 0);
    EXPECT_EQ(collision_probability(-1.0001, 4, 75, least), 0) << "rounded beyond -1";
    EXPECT_EQ(collision_probability(1, 4, 75, least), 1);
    EXPECT_EQ(collision_probability(1.0001, 4, 75, least), 1) << "rounded beyond 1";
  }
  EXPECT_EQ(collision_probability(1, 4, 1, 2), 0) << "one table cannot be shared twice";
}

TEST(Lsh, ProjectionsAreDrawnBySeedAndLayer) {
  LshRecipe recipe{.tables = 3, .bits = 5, .lift = true};
  const std::vector<float> drawn = recipe.projections(8, 2);
  EXPECT_EQ(drawn.size(), 3u * 5 * 9);
  EXPECT_EQ(recipe.projections(8, 2), drawn);
  EXPECT_NE(recipe.projections(8, 3), drawn);
  recipe.seed = 1;
  EXPECT_NE(recipe.projections(8, 2), drawn);
  recipe.lift = false;
  EXPECT_EQ(recipe.projections(8, 2).size(), 3u * 5 * 8);
}

}  // namespace
}  // namespace reticle::testing
