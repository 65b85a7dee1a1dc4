#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>

#include "support/attention.hpp"

namespace reticle::testing {
namespace {

Mask mask_of(const std::string& parameters, const AttentionInputs& inputs) {
  SequenceState state;
  return SparseAttention::from_json(R"({"maskers": [{"type": "magic_pig", )" + parameters + "}]}").mask(inputs, state);
}

TEST(MagicPig, KeepsKeysAsOftenAsTheirPSays) {
  constexpr int kSeeds = 3000;
  const OwnedInputs owned({1, 1, 1, 1, 12, 8, 8}, 1);
  std::vector<double> kept(12, 0), p(12, 0);
  for (int seed = 0; seed < kSeeds; ++seed) {
    const Mask mask = mask_of(R"("lsh_l": 4, "lsh_k": 3, "seed": )" + std::to_string(seed), owned.inputs);
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

TEST(MagicPig, PIsTheProbabilityOfACollision) {
  // One key of the largest norm at 60 degrees to the query; without centring the transform leaves its angle.
  Tensor queries(DType::f32, {1, 1, 1, 2}), keys(DType::f32, {1, 1, 1, 2});
  queries.span<float>()[0] = 3;
  queries.span<float>()[1] = 0;
  keys.span<float>()[0] = 0.5f;
  keys.span<float>()[1] = std::sqrt(0.75f);
  AttentionInputs inputs;
  inputs.queries = queries.view();
  inputs.keys = inputs.values = keys.view();
  const double table = std::pow(1 - 60.0 / 180.0, 2);
  const double expected = 1 - std::pow(1 - table, 5);
  bool drawn = false;
  for (int seed = 0; seed < 20 && !drawn; ++seed) {
    const Mask mask = mask_of(R"("lsh_l": 5, "lsh_k": 2, "center": false, "seed": )" + std::to_string(seed), inputs);
    drawn = mask.nnz() == 1;
    if (drawn) {
      EXPECT_NEAR(mask.at(0, 0, 0, 0), expected, 1e-6);
    }
  }
  EXPECT_TRUE(drawn);
}

TEST(MagicPig, AQuerysOwnDirectionAlwaysCollides) {
  Tensor both(DType::f32, {1, 1, 1, 4});
  for (std::size_t i = 0; i < 4; ++i) both.span<float>()[i] = static_cast<float>(i + 1);
  AttentionInputs inputs;
  inputs.queries = inputs.keys = inputs.values = both.view();
  const Mask mask = mask_of(R"("lsh_l": 1, "lsh_k": 64, "center": false)", inputs);
  EXPECT_NEAR(mask.at(0, 0, 0, 0), 1.0f, 0.03f) << "the angle is zero but for rounding";
}

TEST(MagicPig, DoesNotDependOnItsNeighboursInTheBatch) {
  const OwnedInputs owned({2, 2, 1, 3, 40, 8, 8}, 2);
  const Mask together = mask_of(R"("lsh_l": 6, "lsh_k": 4)", owned.inputs);
  for (Index b = 0; b < 2; ++b) {
    AttentionInputs alone = owned.inputs;
    alone.queries = alone.queries.slice(0, b, b + 1);
    alone.keys = alone.keys.slice(0, b, b + 1);
    alone.values = alone.values.slice(0, b, b + 1);
    const Mask mask = mask_of(R"("lsh_l": 6, "lsh_k": 4)", alone);
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
  const auto sparse = SparseAttention::from_json(R"({"maskers": [{"type": "magic_pig", "lsh_l": 8, "lsh_k": 4}]})");
  SequenceState state;
  for (const Index length : {40, 47, 64}) {
    AttentionInputs inputs = owned.inputs;
    inputs.keys = inputs.keys.slice(2, 0, length);
    inputs.values = inputs.values.slice(2, 0, length);
    EXPECT_GT(sparse.mask(inputs, state).nnz(), 0);
  }
  AttentionInputs shorter = owned.inputs;
  shorter.keys = shorter.keys.slice(2, 0, 50);
  shorter.values = shorter.values.slice(2, 0, 50);
  EXPECT_THROW(sparse.mask(shorter, state), ShapeError);
}

TEST(MagicPig, RefusesBadParameters) {
  for (const char* parameters : {R"("lsh_l": 0)", R"("lsh_k": 0)", R"("lsh_k": 65)", R"("packing": "int8")"}) {
    EXPECT_THROW(SparseAttention::from_json(std::string(R"({"maskers": [{"type": "magic_pig", )") + parameters + "}]}"),
                 ConfigError);
  }
}

}  // namespace
}  // namespace reticle::testing
