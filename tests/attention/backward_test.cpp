#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>

#include "support/gradients.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

bool equal(const Tensor& a, const Tensor& b) {
  const auto x = a.span<float>(), y = b.span<float>();
  return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

TEST(AttentionBackward, AgreesWithFiniteDifferencesForEveryRepresentationAndSharing) {
  Differentiated problem(
      {.batch = 2, .heads = 4, .kv_heads = 2, .queries = 5, .keys = 40, .head_dim = 9, .value_dim = 7}, 3);
  std::mt19937 random(4);
  for (const NamedMask& m : random_masks(problem.owned.inputs.shape(), random)) {
    SCOPED_TRACE(m.name);
    expect_gradients(problem, m.mask);
  }
}

TEST(AttentionBackward, SoftCapAttentionMaskAndSinksTakePart) {
  Differentiated problem(
      {.batch = 1, .heads = 2, .kv_heads = 1, .queries = 20, .keys = 50, .head_dim = 8, .value_dim = 8}, 6);
  std::mt19937 random(7);
  problem.owned.attention_mask = random_tensor(DType::f32, {1, 2, 20, 50}, random);
  problem.owned.inputs.attention_mask = problem.owned.attention_mask.view();
  problem.options.soft_cap = 1.5f;
  std::vector<float> sinks{0.3f, -0.5f};
  problem.options.sink_logits = sinks;
  for (const NamedMask& m : random_masks(problem.owned.inputs.shape(), random)) {
    SCOPED_TRACE(m.name);
    expect_gradients(problem, m.mask);
    const AttentionGradients gradients = problem.gradients(m.mask);
    for (std::size_t head = 0; head < 2; ++head) {
      const float at = sinks[head];
      sinks[head] = at + 1e-2f;
      const double above = problem.loss(m.mask);
      sinks[head] = at - 1e-2f;
      const double below = problem.loss(m.mask);
      sinks[head] = at;
      EXPECT_NEAR(gradients.sink_logits[head], (above - below) / 0.02, 2e-3);
    }
  }
}

TEST(AttentionBackward, DoesNotDependOnTheNumberOfThreads) {
  const Differentiated problem(
      {.batch = 1, .heads = 4, .kv_heads = 2, .queries = 300, .keys = 300, .head_dim = 32, .value_dim = 32}, 8);
  std::mt19937 random(9);
  const Mask mask =
      Mask::dense(problem.owned.inputs.shape(), random_p(problem.owned.inputs.shape(), 0.3, true, random));
  const AttentionGradients one = problem.gradients(mask, Context(1)), three = problem.gradients(mask, Context(3));
  EXPECT_TRUE(equal(one.queries, three.queries));
  EXPECT_TRUE(equal(one.keys, three.keys));
  EXPECT_TRUE(equal(one.values, three.values));
}

TEST(AttentionBackward, RowsWithoutKeysAndKeysWithoutRowsGetZero) {
  const Differentiated problem({.queries = 30, .keys = 60}, 10);
  const MaskShape shape = problem.owned.inputs.shape();
  // Even queries see keys below 20, odd ones none.
  const Mask mask = Mask::intervals(shape, [](RowId row) { return Interval{0, row.query % 2 == 0 ? 20 : 0}; });
  const AttentionGradients gradients = problem.gradients(mask);
  for (Index query = 0; query < 30; ++query) {
    const float sum = std::abs(*gradients.queries.view().at<float>(0, 0, query, 0));
    EXPECT_EQ(sum == 0, query % 2 == 1) << query;
  }
  for (Index key = 20; key < 60; ++key) EXPECT_EQ(*gradients.values.view().at<float>(0, 1, key, 3), 0) << key;
  EXPECT_NE(*gradients.values.view().at<float>(0, 1, 19, 3), 0);
}

TEST(AttentionBackward, HalfPrecisionInputsGiveTheGradientsOfTheirValues) {
  const Shapes shapes{.queries = 40, .keys = 90};
  for (const DType dtype : {DType::f16, DType::bf16}) {
    const Differentiated problem(shapes, 11, dtype);
    Differentiated floats(shapes, 11, dtype);
    floats.owned.queries = Tensor::copy(problem.owned.queries, DType::f32);
    floats.owned.keys = Tensor::copy(problem.owned.keys, DType::f32);
    floats.owned.values = Tensor::copy(problem.owned.values, DType::f32);
    floats.owned.inputs.queries = floats.owned.queries.view();
    floats.owned.inputs.keys = floats.owned.keys.view();
    floats.owned.inputs.values = floats.owned.values.view();
    const Mask mask = Mask::full(problem.owned.inputs.shape());
    const AttentionResult result = attention(floats.owned.inputs, mask);
    const AttentionGradients ours =
        attention_backward(problem.owned.inputs, mask, result.output, result.lse, problem.d_output);
    const AttentionGradients theirs = floats.gradients(mask);
    EXPECT_TRUE(equal(ours.queries, theirs.queries));
    EXPECT_TRUE(equal(ours.keys, theirs.keys));
    EXPECT_TRUE(equal(ours.values, theirs.values));
  }
}

TEST(AttentionBackward, RefusesWhatDoesNotFit) {
  const Differentiated problem({}, 12);
  const Mask mask = Mask::full(problem.owned.inputs.shape());
  const AttentionResult result = attention(problem.owned.inputs, mask);
  const TensorView shorter = problem.d_output.view().slice(2, 0, 2);
  EXPECT_THROW(attention_backward(problem.owned.inputs, mask, result.output, result.lse, shorter), ShapeError);
  EXPECT_THROW(attention_backward(problem.owned.inputs, mask, result.output, result.output, problem.d_output),
               ShapeError);
  EXPECT_THROW(
      attention_backward(problem.owned.inputs, Mask::full({1, 4, 5, 36}), result.output, result.lse, problem.d_output),
      ShapeError);
}

TEST(AttentionBackward, NotANumberIsAnErrorThatNamesTheRow) {
  Differentiated problem({}, 13);
  const Mask mask = Mask::full(problem.owned.inputs.shape());
  const AttentionResult result = attention(problem.owned.inputs, mask);
  problem.d_output.span<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  try {
    attention_backward(problem.owned.inputs, mask, result.output, result.lse, problem.d_output);
    FAIL() << "no error";
  } catch (const ValueError& error) {
    EXPECT_NE(std::string(error.what()).find("row (0, 0, 0)"), std::string::npos) << error.what();
  }
}

TEST(AttentionBackward, NoQueriesOrNoKeysIsNoProblem) {
  for (const Shapes& shapes : {Shapes{.queries = 0}, Shapes{.queries = 3, .keys = 0}}) {
    const Differentiated problem(shapes, 14);
    const AttentionGradients gradients = problem.gradients(Mask::full(problem.owned.inputs.shape()));
    for (const float value : gradients.queries.span<float>()) EXPECT_EQ(value, 0);
  }
}

TEST(AttentionBackward, QuantisedKeysAndValuesAreRefused) {
  const OwnedInputs owned({1, 2, 1, 3, 20, 32, 32}, 60);
  const Mask mask = Mask::full(owned.inputs.shape());
  const AttentionResult result = attention(owned.inputs, mask);
  const Tensor codes = Tensor::copy(owned.keys, DType::q8);
  for (const bool keys : {true, false}) {
    AttentionInputs inputs = owned.inputs;
    (keys ? inputs.keys : inputs.values) = codes.view();
    EXPECT_THROW(attention_backward(inputs, mask, result.output, result.lse, result.output), ValueError);
  }
}

}  // namespace
}  // namespace reticle::testing
