#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

Mask magic_pig_mask(const std::string& parameters, const AttentionInputs& inputs) {
  return mask_of(masker("magic_pig", parameters), inputs);
}

TEST(MagicPig, KeepsKeysAsOftenAsTheirPSays) {
  constexpr int kSeeds = 3000;
  const OwnedInputs owned({1, 1, 1, 1, 12, 8, 8}, 1);
  std::vector<double> kept(12, 0), p(12, 0);
  for (int seed = 0; seed < kSeeds; ++seed) {
    const Mask mask = magic_pig_mask(R"("lsh_l": 4, "lsh_k": 3, "seed": )" + std::to_string(seed), owned.inputs);
    for (Index key = 0; key < 12; ++key) {
      const float at = mask.at(0, 0, 0, key);
      if (at == 0) continue;
      kept[static_cast<std::size_t>(key)] += 1.0 / kSeeds;
      p[static_cast<std::size_t>(key)] = static_cast<double>(at);
    }
  }
  for (std::size_t key = 0; key < 12; ++key) {
    EXPECT_GT(p[key], 0.01);
    EXPECT_NEAR(kept[key], p[key], 4.5 * std::sqrt(p[key] * (1 - p[key]) / kSeeds)) << "key " << key;
  }
}

/// The p of a key at 60 degrees to the query, with the first seed that draws the key; 0 when none of 20 seeds does. As
/// the only key has the largest norm, the transform without centring preserves the angle.
double p_at_60_degrees(const std::string& parameters) {
  const std::vector<float> query{3, 0}, key{0.5f, std::sqrt(0.75f)};
  AttentionInputs inputs;
  inputs.queries = TensorView(query.data(), DType::f32, {1, 1, 1, 2});
  inputs.keys = inputs.values = TensorView(key.data(), DType::f32, {1, 1, 1, 2});
  for (int seed = 0; seed < 20; ++seed) {
    const Mask mask = magic_pig_mask(parameters + R"(, "center": false, "seed": )" + std::to_string(seed), inputs);
    if (mask.nnz() == 1) return static_cast<double>(mask.at(0, 0, 0, 0));
  }
  return 0;
}

TEST(MagicPig, PIsTheProbabilityOfACollision) {
  const double table = std::pow(1 - 60.0 / 180.0, 2), none = std::pow(1 - table, 5);
  EXPECT_NEAR(p_at_60_degrees(R"("lsh_l": 5, "lsh_k": 2)"), 1 - none, 1e-6);
  const double one = 5 * table * std::pow(1 - table, 4);
  EXPECT_NEAR(p_at_60_degrees(R"("lsh_l": 5, "lsh_k": 2, "min_collisions": 2)"), 1 - none - one, 1e-6)
      << "in two tables of five";
}

TEST(MagicPig, AQuerysOwnDirectionAlwaysCollides) {
  const std::vector<float> both{1, 2, 3, 4};
  AttentionInputs inputs;
  inputs.queries = inputs.keys = inputs.values = TensorView(both.data(), DType::f32, {1, 1, 1, 4});
  const Mask mask = magic_pig_mask(R"("lsh_l": 1, "lsh_k": 64, "center": false)", inputs);
  EXPECT_NEAR(mask.at(0, 0, 0, 0), 1.0f, 0.03f) << "the angle is zero but for rounding";
}

TEST(MagicPig, DoesNotDependOnItsNeighboursInTheBatch) {
  const OwnedInputs owned({2, 2, 1, 3, 40, 8, 8}, 2);
  const Mask together = magic_pig_mask(R"("lsh_l": 6, "lsh_k": 4)", owned.inputs);
  for (Index b = 0; b < 2; ++b) {
    AttentionInputs alone = owned.inputs;
    alone.queries = alone.queries.slice(0, b, b + 1);
    alone.keys = alone.keys.slice(0, b, b + 1);
    alone.values = alone.values.slice(0, b, b + 1);
    const Mask mask = magic_pig_mask(R"("lsh_l": 6, "lsh_k": 4)", alone);
    for (Index head = 0; head < 2; ++head) {
      std::vector<reticle::Run> a, c;
      together.row({b, head, 1}, a);
      mask.row({0, head, 1}, c);
      EXPECT_EQ(a, c);
    }
  }
}

TEST(MagicPig, SeveralNewKeysPerStepAreTakenIn) {
  const OwnedInputs owned({2, 4, 2, 1, 64, 16, 16}, 3);
  const SparseAttention sparse = pipeline_of(R"({"type": "magic_pig", "lsh_l": 8, "lsh_k": 4})");
  SequenceState state;
  for (const Index length : {40, 47, 64}) EXPECT_GT(sparse.mask(first_keys(owned.inputs, length), state).nnz(), 0);
  EXPECT_THROW(sparse.mask(first_keys(owned.inputs, 50), state), ShapeError);
}

TEST(MagicPig, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "magic_pig", "lsh_l": 0})"), "/maskers/0/lsh_l: must be in [1, 4096], got 0");
  EXPECT_EQ(refusal(R"({"type": "magic_pig", "lsh_k": 0})"), "/maskers/0/lsh_k: must be in [1, 64], got 0");
  EXPECT_EQ(refusal(R"({"type": "magic_pig", "lsh_k": 65})"), "/maskers/0/lsh_k: must be in [1, 64], got 65");
  EXPECT_EQ(refusal(R"({"type": "magic_pig", "packing": "int8"})"),
            "/maskers/0/packing: \"int8\" is not one of \"int64\", \"float32\"; did you mean \"int64\"?");
  EXPECT_EQ(refusal(R"({"type": "magic_pig", "min_collisions": 2, "lsh_l": 1})"),
            "/maskers/0/min_collisions: must be 1, or 2 with lsh_l > 1, got 2");
}

}  // namespace
}  // namespace reticle::testing
