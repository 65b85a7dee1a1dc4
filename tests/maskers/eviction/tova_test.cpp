#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "support/generation.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(Tova, EvictsTheKeyOfLeastAttention) {
  // Keys 0 to 3 are the prompt; scores rank them 3 > 1 > 0 > 2.
  const Scored s(6, {2, 3, 1, 4, 0, 5});
  const Mask mask = generate(generating(R"({"type": "tova", "token_capacity": 3})"), s.inputs, 4, 1);
  EXPECT_EQ(row_text(mask, 0), "11.11.") << "3 of the prompt and its own key, of which its own is evicted";
  EXPECT_EQ(row_text(mask, 1), "11.1.1");
}

TEST(Tova, AmongEqualsTheLastIsEvicted) {
  const Scored s(5, std::vector<float>(5));
  const Mask mask = generate(generating(R"({"type": "tova", "token_capacity": 2})"), s.inputs, 3);
  EXPECT_EQ(row_text(mask, 0), "11.1.");
  EXPECT_EQ(row_text(mask, 1), "11..1");
}

TEST(Tova, EvictsNothingBelowTheCapacity) {
  const Scored s(5, {1, 2, 3, 4, 5});
  const Mask mask = generate(generating(R"({"type": "tova", "token_capacity": 5})"), s.inputs, 3);
  EXPECT_EQ(row_text(mask, 0), "1111.");
  EXPECT_EQ(row_text(mask, 1), "11111");
}

TEST(Tova, HeadsOfALayerKeepWhatTheyAttendToOnAverage) {
  // Head 0 gives 0.6 to key 0 and 0.4 to key 1, head 1 gives 0.4 to key 1 and 0.6 to key 2.
  const float more = std::log(6.0f), less = std::log(4.0f);
  const std::vector<float> queries(8, 1.0f), keys{more, less, -20, 0, /**/ -20, less, more, 0};
  AttentionInputs inputs;
  inputs.queries = TensorView(queries.data(), DType::f32, {1, 2, 4, 1});
  inputs.keys = inputs.values = TensorView(keys.data(), DType::f32, {1, 2, 4, 1});
  const Mask mask = generate(generating(R"({"type": "tova", "token_capacity": 1})"), inputs, 3);
  EXPECT_EQ(row_text(mask, 0, 0), ".1.1");
  EXPECT_EQ(row_text(mask, 0, 1), ".1.1");
}

TEST(Tova, GoesOnWhereItStopped) {
  const OwnedInputs owned({1, 2, 1, 30, 30, 8, 8}, 4);
  const SparseAttention sparse = generating(R"({"type": "tova", "token_capacity": 8})");
  SequenceState state;
  sparse.mask(owned.inputs.rows(0, 20), state);
  AttentionInputs step = owned.inputs.rows(20, 21);
  step.stage = Stage::generation;
  sparse.mask(step, state);
  EXPECT_THROW(sparse.mask(step, state), ShapeError) << "a step cannot be taken twice";
  AttentionInputs later = owned.inputs.rows(25, 26);
  later.stage = Stage::generation;
  EXPECT_THROW(sparse.mask(later, state), ShapeError) << "nor can steps be left out";
}

TEST(Tova, LeavesForGoodWhatItEvicted) {
  const Scored s(6, {2, 3, 1, 4, 0, 5});
  const SparseAttention sparse = generating(R"({"type": "tova", "token_capacity": 3})");
  EXPECT_EQ(sparse.observed_queries(), 1);
  EXPECT_EQ(row_text(lasting(sparse, s.inputs, 4, 6), 0), ".1.1.1")
      << "key 4 was evicted at its own step, key 0 at the next";
  EXPECT_EQ(row_text(lasting(sparse, s.inputs, 4, 5), 0), "11.1.1") << "what the step at 5 evicts may be taken back";
}

TEST(Tova, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "tova", "token_capacity": 0})"),
            "/maskers/0/token_capacity: must be in [1, 2^31), got 0");
}

}  // namespace
}  // namespace reticle::testing
