#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>

#include "support/attention.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(StageRecord, SaysWhatEachStageLeftOut) {
  const OwnedInputs owned{{.heads = 4, .kv_heads = 2, .queries = 20, .keys = 20}, 4};
  const SparseAttention sparse =
      SparseAttention::by_stage(pipeline_of(""), pipeline_of(R"({"type": "local", "window_size": 5})"));
  SequenceState state(Recording::figures);
  sparse.forward(owned.inputs, 4, state);
  EXPECT_EQ(state.recorded(Stage::prefill).sparsity, std::vector<double>{0});
  EXPECT_EQ(state.recorded(Stage::prefill).density(), 1);
  // Queries 16 .. 19 see 5 of 17 .. 20 keys.
  EXPECT_DOUBLE_EQ(state.recorded(Stage::generation).density(), 20.0 / (17 + 18 + 19 + 20));
  EXPECT_DOUBLE_EQ(state.recorded(Stage::generation).mean_sparsity(), 1 - 20.0 / 74);
  EXPECT_TRUE(state.recorded(Stage::generation).masks.empty());
  StageRecord both = state.recorded(Stage::prefill);
  both.merge(state.recorded(Stage::generation));
  EXPECT_DOUBLE_EQ(both.mean_sparsity(), (1 - 20.0 / 74) / 2);
}

TEST(StageRecord, KeepsMasksWhenAsked) {
  const OwnedInputs owned{{.heads = 4, .kv_heads = 2, .queries = 20, .keys = 20}, 4};
  const SparseAttention sparse =
      SparseAttention::by_stage(pipeline_of(""), pipeline_of(R"({"type": "local", "window_size": 5})"));
  SequenceState state(Recording::masks);
  sparse.forward(owned.inputs, 4, state);
  ASSERT_EQ(state.recorded(Stage::generation).masks.size(), 1);
  EXPECT_EQ(state.recorded(Stage::generation).masks[0].mask.nnz(), 20 * 4);
  EXPECT_EQ(state.recorded(Stage::prefill).masks[0].mask.shape().queries, 16);
}

TEST(SequenceState, AForkRecordsAfreshAndAResetForgetsTheRecord) {
  const OwnedInputs owned{{.heads = 2, .kv_heads = 1, .queries = 6, .keys = 6}, 1};
  const SparseAttention sparse = pipeline_of(R"({"type": "local", "window_size": 2})", true);
  SequenceState state(Recording::figures), silent;
  sparse.mask(owned.inputs, state);
  sparse.mask(owned.inputs, silent);
  EXPECT_EQ(state.recorded(Stage::prefill).entries, 2 * 11);
  EXPECT_EQ(state.recorded(Stage::prefill).visible, 2 * 21);
  EXPECT_TRUE(silent.recorded(Stage::prefill).sparsity.empty());
  SequenceState fork = state.fork();
  EXPECT_TRUE(fork.recorded(Stage::prefill).sparsity.empty());
  sparse.mask(owned.inputs, fork);
  EXPECT_EQ(fork.recorded(Stage::prefill).sparsity.size(), 1);
  state.reset();
  EXPECT_TRUE(state.recorded(Stage::prefill).sparsity.empty());
}

}  // namespace
}  // namespace reticle::testing
