#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/named_scorer.hpp>

#include "support/attention.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

std::vector<float> scores_of(ScorerName name, const AttentionInputs& inputs, NamedScorerState& state, RowId row = {}) {
  std::vector<float> scores(static_cast<std::size_t>(inputs.keys_length()), 77.0f);
  NamedScorer(name, 2, inputs, state)({&row, 1}, scores.data());
  return scores;
}
std::vector<float> scores_of(ScorerName name, const AttentionInputs& inputs) {
  NamedScorerState state;
  return scores_of(name, inputs, state);
}

/// One query of (1, -2), scaling 0.5, over five keys; pages hold two.
class NamedScorers : public ::testing::Test {
 protected:
  NamedScorers() {
    written_.inputs.scaling = 0.5f;
    written_.inputs.values = values_.view();
  }
  WrittenInputs written_{{1, 1, 1, 2}, {1, -2}, {1, 1, 5, 2}, {3, 4, 0, -1, 6, 2, 2, 2, -5, 12}};
  Tensor values_ = tensor_of({1, 1, 5, 3}, {2, 0, 0, 0, 3, 4, 0, 0, 0, 1, 0, 0, 0, 0, 10});
};

TEST_F(NamedScorers, ExactIsAttentionsOwnScore) {
  EXPECT_EQ(scores_of(ScorerName::exact, written_.inputs), (std::vector<float>{-2.5f, 1, 1, -1, -14.5f}));
}

TEST_F(NamedScorers, ValueAwareAddsTheLogarithmOfTheValuesNorm) {
  const std::vector<float> scores = scores_of(ScorerName::value_aware, written_.inputs);
  const double norms[] = {2, 5, 0, 1, 10}, exact[] = {-2.5, 1, 1, -1, -14.5};
  for (std::size_t key = 0; key < 5; ++key) {
    if (key == 2) continue;
    EXPECT_NEAR(scores[key], exact[key] + std::log(norms[key]), 1e-5) << key;
  }
  EXPECT_EQ(scores[2], kForbidden) << "a value of zero adds nothing";
}

TEST_F(NamedScorers, PageBoundsAreAlikeForAPage) {
  // Pages are [0, 3] x [-1, 4], [2, 6] x [2, 2] and (-5, 12); the scaled query is (0.5, -1).
  EXPECT_EQ(scores_of(ScorerName::page_bounds, written_.inputs), (std::vector<float>{2.5f, 2.5f, 1, 1, -14.5f}));
}

TEST_F(NamedScorers, PageMeansScoreAnIncompletePageByItsOwnKeys) {
  // Means are (1.5, 1.5) and (4, 2).
  EXPECT_EQ(scores_of(ScorerName::page_means, written_.inputs), (std::vector<float>{-0.75f, -0.75f, 0, 0, -14.5f}));
}

TEST_F(NamedScorers, KeyNormIsTheShorterTheHigherWhateverTheQuery) {
  const std::vector<float> scores = scores_of(ScorerName::key_norm, written_.inputs);
  const double norms[] = {5, 1, std::sqrt(40.0), std::sqrt(8.0), 13};
  for (std::size_t key = 0; key < 5; ++key) {
    EXPECT_NEAR(scores[key], -norms[key], norms[key] * 0x1p-15) << key;
  }
}

TEST_F(NamedScorers, NormsThatDifferByRoundingAreAlike) {
  const float norm = 1.7f;
  const WrittenInputs written({1, 1, 1, 1}, {1}, {1, 1, 3, 1}, {norm, std::nextafter(norm, 2.0f), -norm});
  const std::vector<float> scores = scores_of(ScorerName::key_norm, written.inputs);
  EXPECT_EQ(scores[0], scores[1]);
  EXPECT_EQ(scores[0], scores[2]);
}

constexpr ScorerName kAll[] = {ScorerName::exact, ScorerName::value_aware, ScorerName::page_bounds,
                               ScorerName::page_means, ScorerName::key_norm};

TEST_F(NamedScorers, ForbidWhatTheAttentionMaskDoes) {
  written_.forbid({1, 4});
  for (const ScorerName name : kAll) {
    const std::vector<float> scores = scores_of(name, written_.inputs);
    for (const std::size_t key : {0u, 3u}) EXPECT_TRUE(std::isfinite(scores[key])) << static_cast<int>(name);
    for (const std::size_t key : {1u, 4u}) EXPECT_EQ(scores[key], kForbidden) << static_cast<int>(name);
  }
}

TEST(NamedScorer, ForbidsKeysAfterTheQuerysOwnPositionWhereAttentionIsCausal) {
  OwnedInputs owned({1, 1, 1, 3, 7, 4, 4}, 5);
  owned.inputs.causal = true;
  for (const ScorerName name : kAll) {
    NamedScorerState state;
    const std::vector<float> scores = scores_of(name, owned.inputs, state, {0, 0, 0});
    for (std::size_t key = 0; key < 7; ++key)
      EXPECT_EQ(std::isfinite(scores[key]), key < 5) << static_cast<int>(name) << ' ' << key;
  }
}

TEST(NamedScorer, FollowsItsSequences) {
  const OwnedInputs owned({2, 2, 1, 6, 21, 4, 4}, 7);
  for (const ScorerName name : kAll) {
    NamedScorerState whole, stepwise;
    const std::vector<float> expected = scores_of(name, owned.inputs, whole, {1, 1, 5});
    for (Index step = 0; step < 6; ++step)
      NamedScorer(name, 2, owned.inputs.rows(step, step + 1), stepwise);  // appends the keys
    EXPECT_EQ(scores_of(name, owned.inputs, stepwise, {1, 1, 5}), expected) << static_cast<int>(name);
    stepwise.truncate(17);
    EXPECT_EQ(scores_of(name, owned.inputs, stepwise, {1, 1, 5}), expected) << static_cast<int>(name);
    stepwise.select(std::vector<Index>{1});
    AttentionInputs second = owned.inputs;
    for (TensorView* view : {&second.queries, &second.keys, &second.values}) *view = view->slice(0, 1, 2);
    EXPECT_EQ(scores_of(name, second, stepwise, {0, 1, 5}), expected) << static_cast<int>(name);
  }
}

}  // namespace
}  // namespace reticle::testing
