#include <algorithm>
#include <cstdint>
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
        // Few values, so that codes of every width meet now and then.
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

}  // namespace
}  // namespace reticle::testing
