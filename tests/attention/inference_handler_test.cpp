#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/inference_handler.hpp>

#include "support/attention.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

/// A whole sequence of one layer, as many queries as keys.
OwnedInputs sequence(Index length, std::uint32_t seed, Index batch = 1) {
  return {{.batch = batch, .heads = 4, .kv_heads = 2, .queries = length, .keys = length}, seed};
}

std::span<const float> row_of(const AttentionResult& result, Index batch, Index head, Index query) {
  const TensorView& view = result.output.view();
  return {view.at<float>(batch, head, query, 0), static_cast<std::size_t>(view.size(3))};
}

const std::string kGenerations[] = {
    R"({"type": "local", "window_size": 9})",
    R"({"type": "sink", "sink_size": 2}, {"type": "local", "window_size": 4}, {"type": "oracle_top_k", "heavy_size": 8})",
    R"({"type": "snap_kv", "token_capacity": 12, "approximation_window": 4, "kernel_size": 3})",
    R"({"type": "tova", "token_capacity": 10})",
    R"({"type": "h2o", "heavy_size": 6, "recent_size": 6})",
};

TEST(InferenceHandler, TeacherForcingEqualsDecodingStepByStep) {
  const OwnedInputs owned = sequence(40, 1);
  for (const std::string& generation : kGenerations) {
    SCOPED_TRACE(generation);
    const InferenceHandler handler(pipeline_of(R"({"type": "local", "window_size": 16})"), pipeline_of(generation));
    InferenceState at_once, stepwise;
    const AttentionResult forced = handler.forward(owned.inputs, 12, at_once);
    AttentionInputs part = owned.inputs.rows(0, 28);
    part.stage = Stage::prefill;
    handler.attend(part, stepwise);
    for (Index query = 28; query < 40; ++query) {
      part = owned.inputs.rows(query, query + 1);
      part.stage = Stage::generation;
      const AttentionResult step = handler.attend(part, stepwise);
      for (Index head = 0; head < 4; ++head) {
        const auto ours = row_of(step, 0, head, 0), theirs = row_of(forced, 0, head, query);
        for (std::size_t i = 0; i < ours.size(); ++i) ASSERT_NEAR(ours[i], theirs[i], 1e-5) << query;
      }
    }
    EXPECT_NEAR(at_once.generation.density(), stepwise.generation.density(), 1e-12);
    EXPECT_EQ(stepwise.generation.sparsity.size(), 12);
    EXPECT_EQ(at_once.generation.sparsity.size(), 1);
  }
}

TEST(InferenceHandler, SequencesDoNotShareState) {
  const OwnedInputs first = sequence(30, 2), second = sequence(24, 3);
  const InferenceHandler handler(pipeline_of(""), pipeline_of(R"({"type": "tova", "token_capacity": 8})"));
  InferenceState one, other, alone;
  const AttentionResult expected = handler.forward(second.inputs, 6, alone);
  handler.forward(first.inputs, 6, one);
  const AttentionResult beside = handler.forward(second.inputs, 6, other);
  EXPECT_TRUE(std::equal(expected.output.span<float>().begin(), expected.output.span<float>().end(),
                         beside.output.span<float>().begin()));
  one.reset();
  EXPECT_TRUE(one.generation.sparsity.empty());
  const AttentionResult again = handler.forward(second.inputs, 6, one);
  EXPECT_TRUE(std::equal(expected.output.span<float>().begin(), expected.output.span<float>().end(),
                         again.output.span<float>().begin()));
}

TEST(InferenceHandler, RecordsWhatEachStageLeftOut) {
  const OwnedInputs owned = sequence(20, 4);
  const InferenceHandler handler(pipeline_of(""), pipeline_of(R"({"type": "local", "window_size": 5})"));
  InferenceState state;
  handler.forward(owned.inputs, 4, state);
  EXPECT_EQ(state.prefill.sparsity, std::vector<double>{0});
  EXPECT_EQ(state.prefill.density(), 1);
  // Queries 16 .. 19 see 5 of 17 .. 20 keys.
  EXPECT_DOUBLE_EQ(state.generation.density(), 20.0 / (17 + 18 + 19 + 20));
  EXPECT_DOUBLE_EQ(state.generation.mean_sparsity(), 1 - 20.0 / 74);
  EXPECT_TRUE(state.generation.masks.empty());
  StageRecord both = state.prefill;
  both.merge(state.generation);
  EXPECT_DOUBLE_EQ(both.mean_sparsity(), (1 - 20.0 / 74) / 2);
}

TEST(InferenceHandler, KeepsMasksWhenAsked) {
  const OwnedInputs owned = sequence(20, 4);
  InferenceHandler handler(pipeline_of(""), pipeline_of(R"({"type": "local", "window_size": 5})"));
  handler.keep_masks(true);
  InferenceState state;
  handler.forward(owned.inputs, 4, state);
  ASSERT_EQ(state.generation.masks.size(), 1);
  EXPECT_EQ(state.generation.masks[0].mask.nnz(), 20 * 4);
  EXPECT_EQ(state.prefill.masks[0].mask.shape().queries, 16);
}

TEST(InferenceHandler, IsCausalWhateverTheConfigSays) {
  const OwnedInputs owned = sequence(10, 5);
  const InferenceHandler handler(pipeline_of(""), pipeline_of(""));
  InferenceState state;
  const AttentionResult result = handler.forward(owned.inputs, 3, state);
  AttentionInputs causal = owned.inputs;
  causal.causal = true;
  const AttentionResult dense = attention(causal, Mask::full(causal.shape()));
  for (std::size_t i = 0; i < dense.output.span<float>().size(); ++i)
    EXPECT_NEAR(result.output.span<float>()[i], dense.output.span<float>()[i], 1e-6);
}

TEST(InferenceHandler, AnOutputLeavesSomethingToPrefill) {
  const OwnedInputs owned = sequence(10, 6);
  const InferenceHandler handler(pipeline_of(""), pipeline_of(""));
  InferenceState state;
  EXPECT_THROW(handler.forward(owned.inputs, 10, state), ShapeError);
  EXPECT_THROW(handler.forward(owned.inputs, -1, state), ShapeError);
  EXPECT_NO_THROW(handler.forward(owned.inputs, 0, state));
  EXPECT_THROW(handler.forward(owned.inputs.rows(5, 10), 2, state), ShapeError);
}

TEST(InferenceHandler, StagesNeedOneSeedAndMergeRule) {
  const SparseAttention seeded = SparseAttention::from_json(R"({"maskers": [], "seed": 3})");
  EXPECT_THROW(InferenceHandler(pipeline_of(""), seeded), ConfigError);
  const SparseAttention both =
      SparseAttention::by_stage(pipeline_of(R"({"type": "sink"})"), pipeline_of(R"({"type": "local"})"));
  EXPECT_EQ(both.maskers(Stage::prefill), std::vector<std::string>{"sink"});
  EXPECT_EQ(both.maskers(Stage::generation), std::vector<std::string>{"local"});
  EXPECT_EQ(SparseAttention::from_json(both.to_json()).to_json(), both.to_json());
}

}  // namespace
}  // namespace reticle::testing
