#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(TriShape, TheLastQueriesSeeEverything) {
  const Scored s(8, std::vector<float>(8));
  const Mask mask = mask_of(R"({"type": "tri_shape", "n_init": 1, "n_local": 2, "n_last": 2})", s.inputs);
  EXPECT_EQ(row_text(mask, 5), "1...11..");
  EXPECT_EQ(row_text(mask, 6), "1111111.");
  EXPECT_EQ(row_text(mask, 7), "11111111");
  const Mask all = mask_of(R"({"type": "tri_shape", "n_init": 1, "n_local": 1, "n_last": 100})", s.inputs);
  EXPECT_EQ(row_text(all, 0), "1.......");
  EXPECT_EQ(row_text(all, 2), "111.....");
}

TEST(TriShape, WithoutLastQueriesItIsAnAShape) {
  const Scored s(6, std::vector<float>(8));  // positions 2 to 7
  const Mask mask = mask_of(R"({"type": "tri_shape", "n_init": 2, "n_local": 3, "n_last": 0})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "111.....");
  EXPECT_EQ(row_text(mask, 3), "11.111..");
  EXPECT_EQ(row_text(mask, 5), "11...111");
}

TEST(TriShape, LastPositionsAreThoseOfTheSequenceAndFractionsOfItsKeys) {
  const Scored s(2, std::vector<float>(8));  // positions 6 and 7, both among the last 0.25 of 8
  const Mask mask = mask_of(R"({"type": "tri_shape", "n_init": 1, "n_local": 1, "n_last": 0.25})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "1111111.");
  EXPECT_EQ(row_text(mask, 1), "11111111");
}

TEST(TriShape, RefusesAnEmptyWindow) {
  EXPECT_EQ(refusal(R"({"type": "tri_shape", "n_local": 0})"), "/maskers/0/n_local: must be > 0, got 0");
}

}  // namespace
}  // namespace reticle::testing
