#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/observed_attention.hpp>

#include "support/attention.hpp"
#include "support/maskers.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<float> softmax_of(std::vector<float> scores) {
  softmax(scores);
  return scores;
}

void expect_close(std::span<const float> found, const std::vector<double>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-6) << i;
}

TEST(Softmax, IsExpOverItsSum) {
  const double sum = 1 + std::exp(-1) + std::exp(-3);
  expect_close(softmax_of({2, 3, 0}), {std::exp(-1) / sum, 1 / sum, std::exp(-3) / sum});
  expect_close(softmax_of({1000, 1000}), {0.5, 0.5});
  EXPECT_EQ(softmax_of({-7}), std::vector<float>{1});
  EXPECT_TRUE(softmax_of({}).empty());
}

TEST(Softmax, GivesNothingToNaNAndForbiddenScores) {
  EXPECT_EQ(softmax_of({kNaN, 5, kForbidden, 5}), (std::vector<float>{0, 0.5f, 0, 0.5f}));
  EXPECT_EQ(softmax_of({kForbidden, kNaN}), (std::vector<float>{0, 0}));
}

TEST(Softmax, OfAnInfiniteScoreIsAllOfIt) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(softmax_of({1, kInfinity, 3, kInfinity}), (std::vector<float>{0, 0.5f, 0, 0.5f}));
}

TEST(AttentionRows, AreTheCausalSoftmaxOfEachQuery) {
  const OwnedInputs owned({2, 4, 2, 13, 20, 8, 8}, 3);
  AttentionInputs causal = owned.inputs;
  causal.causal = true;
  const Reference reference = reference_attention(causal, Mask::full(causal.shape()));
  std::vector<Index> queries;
  for_each_attention_row(owned.inputs, 1, 2, 3, 13, [&](Index query, std::span<const float> probabilities) {
    queries.push_back(query);
    const auto first = reference.weights.begin() + ((1 * 4 + 2) * 13 + query) * 20;
    expect_close(probabilities, {first, first + 20});
  });
  EXPECT_EQ(queries, (std::vector<Index>{3, 4, 5, 6, 7, 8, 9, 10, 11, 12}));
}

TEST(AttentionRows, OfQueriesBeforeTheFirstKeyAreEmptyOfMass) {
  const Scored scored(3, {1});
  std::vector<float> found;
  for_each_attention_row(scored.inputs, 0, 0, 0, 3, [&](Index, std::span<const float> probabilities) {
    found.insert(found.end(), probabilities.begin(), probabilities.end());
  });
  EXPECT_EQ(found, (std::vector<float>{0, 0, 1}));
}

TEST(AttendTo, IsTheSoftmaxOverTheListedKeysAlone) {
  WrittenInputs written({1, 1, 1, 1}, {2}, {1, 1, 5, 1}, {1, 9, 3, 9, 2});
  written.inputs.scaling = 0.5f;
  std::vector<float> probabilities{7, 7, 7, 7, 7, 7};
  attend_to(written.inputs, {0, 0, 0}, std::vector<std::int32_t>{0, 2, 4}, probabilities);
  const double sum = 1 + std::exp(-2) + std::exp(-1);
  expect_close(probabilities, {std::exp(-2) / sum, 1 / sum, std::exp(-1) / sum});
  written.forbid({2});
  attend_to(written.inputs, {0, 0, 0}, std::vector<std::int32_t>{0, 2, 4}, probabilities);
  expect_close(probabilities, {1 / (1 + std::exp(1)), 0, 1 / (1 + std::exp(-1))});
  attend_to(written.inputs, {0, 0, 0}, {}, probabilities);
  EXPECT_TRUE(probabilities.empty());
}

/// Two queries of 0 over six keys attend to all visible keys equally: 1/5 to each of five keys, and 1/6 to each of six.
class ImportanceOfKeys : public ::testing::Test {
 protected:
  std::vector<float> importance(const Importance& rule) const {
    return importance_of_keys(scored_.inputs, 0, 0, 1, rule);
  }
  Scored scored_{std::vector<float>{0, 0}, {1, 2, 3, 4, 5, 6}};
};

TEST_F(ImportanceOfKeys, IsTheSumOrTheLargestOverTheWindowsQueries) {
  const double fifth = 1.0 / 5, sixth = 1.0 / 6, both = fifth + sixth;
  expect_close(importance({.window = 2, .kernel_size = 1}), {both, both, both, both, both, sixth});
  expect_close(importance({.window = 2, .kernel_size = 1, .reduce = Importance::Reduce::max}),
               {fifth, fifth, fifth, fifth, fifth, sixth});
  expect_close(importance({.window = 1, .kernel_size = 1}), {sixth, sixth, sixth, sixth, sixth, sixth});
  expect_close(importance({.window = 99, .kernel_size = 1}), {both, both, both, both, both, sixth});
}

TEST_F(ImportanceOfKeys, IsPooledOverNeighbours) {
  const double part = 1.0 / 18;  // a third of a sixth
  expect_close(importance({.window = 1, .kernel_size = 3}),
               {2 * part, 3 * part, 3 * part, 3 * part, 3 * part, 2 * part});
  const double fifth = 1.0 / 5, sixth = 1.0 / 6;
  expect_close(importance({.window = 2, .kernel_size = 3, .pooling = Pooling::max, .reduce = Importance::Reduce::max}),
               {fifth, fifth, fifth, fifth, fifth, fifth});
  expect_close(importance({.window = 2,
                           .kernel_size = 3,
                           .pooling = Pooling::max,
                           .reduce = Importance::Reduce::max,
                           .pool_window = false}),
               {fifth, fifth, fifth, fifth, 0, 0});
  expect_close(importance({.window = 1, .kernel_size = 3, .pool_window = false}),
               {2 * sixth / 3, sixth, sixth, sixth, 2 * sixth / 3, 0});
}

TEST_F(ImportanceOfKeys, SumsOverTheHeadsOfAList) {
  const WrittenInputs written({1, 2, 1, 1}, {0, 0}, {1, 1, 4, 1}, {1, 2, 3, 4});
  expect_close(importance_of_keys(written.inputs, 0, 0, 2, {.window = 1, .kernel_size = 1}), {0.5, 0.5, 0.5, 0.5});
  expect_close(importance_of_keys(written.inputs, 0, 1, 1, {.window = 1, .kernel_size = 1}), {0.25, 0.25, 0.25, 0.25});
}

TEST(Importance, PoolsOverNeighboursAndDividesByTheWholeKernel) {
  // One query, probabilities 0, 0, 1, 0, 0.
  const Scored s(1, {0, 0, 200, 0, 0});
  const auto importance = [&](Importance rule) { return importance_of_keys(s.inputs, 0, 0, 1, rule); };
  EXPECT_EQ(importance({.window = 1, .kernel_size = 1}), (std::vector<float>{0, 0, 1, 0, 0}));
  const std::vector<float> avg = importance({.window = 1, .kernel_size = 3});
  EXPECT_NEAR(avg[1], 1.0f / 3, 1e-6);
  EXPECT_NEAR(avg[0], 0, 1e-6);
  EXPECT_EQ(importance({.window = 1, .kernel_size = 5, .pooling = Pooling::max}), (std::vector<float>{1, 1, 1, 1, 1}));
  const Scored last(1, {0, 0, 0, 0, 200});
  EXPECT_EQ(importance_of_keys(last.inputs, 0, 0, 1, {.window = 1, .kernel_size = 3, .pool_window = false})[3], 0)
      << "the window's own key does not leak";
}

}  // namespace
}  // namespace reticle::testing
