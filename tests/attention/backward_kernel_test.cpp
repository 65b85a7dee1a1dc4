// BackwardTile is internal: it is tested through attention_backward, whose every tile goes by it.
#include <random>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>

#include "support/gradients.hpp"
#include "support/random_mask.hpp"
#include "support/targets.hpp"

namespace reticle::testing {
namespace {

TEST(BackwardKernel, AgreesWithFiniteDifferencesOnEveryTarget) {
  for_each_target([] {
    Differentiated problem(
        {.batch = 1, .heads = 2, .kv_heads = 1, .queries = 70, .keys = 70, .head_dim = 20, .value_dim = 20}, 5);
    problem.owned.inputs.causal = true;
    expect_gradients(problem, Mask::full(problem.owned.inputs.shape()));
  });
}

TEST(BackwardKernel, AgreesForRowsAndHeadSizesBesideTheLanesOfVectors) {
  for_each_target([] {
    std::uint32_t seed = 20;
    for (const Index rows : {1, 15, 17}) {
      for (const auto& [d, dv] : {std::pair<Index, Index>{1, 3}, {17, 1}, {16, 33}}) {
        SCOPED_TRACE(std::to_string(rows) + " rows, sizes " + std::to_string(d) + " and " + std::to_string(dv));
        Differentiated problem(
            {.batch = 1, .heads = 1, .kv_heads = 1, .queries = rows, .keys = 140, .head_dim = d, .value_dim = dv},
            seed++);
        expect_gradients(problem, Mask::full(problem.owned.inputs.shape()));
      }
    }
  });
}

TEST(BackwardKernel, KeysThatOneRowAloneAttendsToAndPTakePart) {
  for_each_target([] {
    Differentiated problem(
        {.batch = 1, .heads = 2, .kv_heads = 1, .queries = 9, .keys = 130, .head_dim = 5, .value_dim = 6}, 30);
    std::mt19937 random(31);
    const MaskShape shape = problem.owned.inputs.shape();
    expect_gradients(problem, Mask::dense(shape, random_p(shape, 0.1, true, random)));
  });
}

TEST(BackwardKernel, OneKeyTakesNoGradientToItsQueryAndAllToItsValue) {
  // The weight of a row's only key is 1, whatever the scores are.
  const Differentiated problem(
      {.batch = 1, .heads = 1, .kv_heads = 1, .queries = 1, .keys = 1, .head_dim = 3, .value_dim = 3}, 40);
  const AttentionGradients gradients = problem.gradients(Mask::full(problem.owned.inputs.shape()));
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(gradients.queries.span<float>()[i], 0, 1e-6);
    EXPECT_NEAR(gradients.keys.span<float>()[i], 0, 1e-6);
    EXPECT_NEAR(gradients.values.span<float>()[i], problem.d_output.span<float>()[i], 1e-6);
  }
}

}  // namespace
}  // namespace reticle::testing
