// Properties of all maskers that compress the prompt or evict keys during generation.
#include <string>

#include <gtest/gtest.h>

#include "support/attention.hpp"
#include "support/generation.hpp"

namespace reticle::testing {
namespace {

constexpr const char* kMaskers[] = {
    R"({"type": "snap_kv", "token_capacity": 12, "approximation_window": 4, "kernel_size": 3})",
    R"({"type": "snap_kv", "token_capacity": 12, "approximation_window": 4, "pooling": "max", "pool_window": false,
        "local_window": 2, "prefix_tokens": 3, "share_within_group": true})",
    R"({"type": "ada_snap_kv", "token_capacity": 12, "approximation_window": 4, "local_window": 4,
        "prefix_tokens": 1})",
    R"({"type": "pyramid_kv", "num_layers": 3, "token_capacity": 12, "approximation_window": 4, "beta": 2})",
    R"({"type": "tova", "token_capacity": 12})",
    R"({"type": "h2o", "heavy_size": 6, "recent_size": 5})",
};

TEST(Eviction, OneCallEqualsOneStepAfterAnother) {
  const OwnedInputs owned({2, 4, 2, 60, 60, 16, 16}, 1);
  for (const char* masker : kMaskers) {
    const Mask at_once = generate(generating(masker), owned.inputs, 40, 20);
    EXPECT_EQ(generate(generating(masker), owned.inputs, 40, 1), at_once) << masker;
    EXPECT_EQ(generate(generating(masker), owned.inputs, 40, 7), at_once) << masker;
    for (Index query = 0; query < 20; ++query) EXPECT_GT(at_once.at(1, 3, query, 40 + query), 0) << "its own key";
    EXPECT_LT(at_once.density(), 0.6) << masker;
  }
}

TEST(Eviction, SaysThatAPrefillIsMissing) {
  const OwnedInputs owned({1, 4, 2, 1, 60, 16, 16}, 2);
  for (const char* masker : kMaskers) {
    AttentionInputs inputs = owned.inputs;
    inputs.stage = Stage::generation;
    SequenceState state;
    try {
      generating(masker).mask(inputs, state);
      ADD_FAILURE() << masker;
    } catch (const ValueError& error) {
      EXPECT_NE(std::string(error.what()).find("no prefill was observed"), std::string::npos) << error.what();
    }
  }
}

TEST(Eviction, RefusesAnotherSequence) {
  const OwnedInputs owned({1, 4, 2, 60, 60, 16, 16}, 3), other({2, 4, 2, 1, 61, 16, 16}, 3);
  for (const char* masker : kMaskers) {
    const SparseAttention sparse = generating(masker);
    SequenceState state;
    sparse.mask(owned.inputs.rows(0, 50), state);
    AttentionInputs shorter = owned.inputs.rows(30, 31), wider = other.inputs;
    shorter.stage = wider.stage = Stage::generation;
    EXPECT_THROW(sparse.mask(shorter, state), ShapeError) << masker;
    EXPECT_THROW(sparse.mask(wider, state), ShapeError) << masker;
    state.reset();
    EXPECT_NO_THROW(sparse.mask(owned.inputs.rows(0, 20), state));
  }
}

}  // namespace
}  // namespace reticle::testing
