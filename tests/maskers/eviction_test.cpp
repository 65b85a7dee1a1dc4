// Rules that compress the prompt, or evict as they generate.
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/reshape.hpp>
#include <reticle/core/ops/observed_attention.hpp>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

SparseAttention generating(const std::string& maskers) {
  return SparseAttention::from_json(R"({"prefill": {"maskers": []}, "generation": {"maskers": [)" + maskers +
                                    R"(]}, "causal": true})");
}

/// The mask of the queries from `prompt` on, in one call or one by one.
Mask generate(const SparseAttention& sparse, const AttentionInputs& inputs, Index prompt, Index queries_per_call) {
  SequenceState state;
  AttentionInputs prefill = inputs.rows(0, prompt);
  prefill.stage = Stage::prefill;
  EXPECT_EQ(sparse.mask(prefill, state), restrict_causal(Mask::full(prefill.shape()))) << "the prefill is dense";
  std::optional<Mask> all;
  for (Index from = prompt; from < inputs.queries_length(); from += queries_per_call) {
    const Index to = std::min(inputs.queries_length(), from + queries_per_call);
    AttentionInputs part = inputs.rows(from, to);
    part.stage = Stage::generation;
    const Mask mask = append_keys(sparse.mask(part, state), inputs.keys_length() - part.keys_length());
    all = all ? append_queries(*all, mask) : mask;
  }
  return *all;
}

constexpr const char* kMaskers[] = {
    R"({"type": "snap_kv", "token_capacity": 12, "approximation_window": 4, "kernel_size": 3})",
    R"({"type": "snap_kv", "token_capacity": 12, "approximation_window": 4, "pooling": "max", "pool_window": false,
        "local_window": 2, "prefix_tokens": 3, "share_within_group": true})",
    R"({"type": "ada_snap_kv", "token_capacity": 12, "approximation_window": 4, "local_window": 4, "prefix_tokens": 1})",
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

TEST(Eviction, LiveSetsGoOnWhereTheyStopped) {
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

TEST(SnapKv, KeepsTheWindowTheFirstKeysAndThePeaks) {
  std::vector<float> keys(10, 0.0f);
  keys[3] = 9;
  const Scored s(12, [&] {
    std::vector<float> all = keys;
    all.resize(12);
    return all;
  }());
  const auto row = [&](const std::string& parameters) {
    return row_text(generate(generating(R"({"type": "snap_kv", )" + parameters + "}"), s.inputs, 10, 2), 1);
  };
  EXPECT_EQ(row(R"("token_capacity": 3, "approximation_window": 2, "kernel_size": 1)"), "...1....1111");
  EXPECT_EQ(row(R"("token_capacity": 5, "approximation_window": 2, "kernel_size": 3)"), "..111...1111");
  EXPECT_EQ(row(R"("token_capacity": 3, "approximation_window": 2, "kernel_size": 1, "local_window": 1,
                  "prefix_tokens": 1)"),
            "1..1.....111");
  EXPECT_EQ(row(R"("token_capacity": 100)"), "111111111111") << "a short prompt is left alone";
}

TEST(AdaSnapKv, HeadsShareTheBudgetOfTheLayer) {
  // Head 0 attends to keys 2, 3, 4; head 1 to key 2 only.
  Tensor queries(DType::f32, {1, 2, 9, 1}), keys(DType::f32, {1, 2, 9, 1});
  std::fill(queries.span<float>().begin(), queries.span<float>().end(), 1.0f);
  const std::vector<float> values{0, 0, 20, 20, 20, 0, 0, 0, 0, /**/ 0, 0, 20, 0, 0, 0, 0, 0, 0};
  std::copy(values.begin(), values.end(), keys.span<float>().begin());
  AttentionInputs inputs;
  inputs.queries = queries.view();
  inputs.keys = inputs.values = keys.view();
  const Mask mask =
      generate(generating(R"({"type": "ada_snap_kv", "token_capacity": 3, "approximation_window": 1, "kernel_size": 1,
                     "local_window": 1, "prefix_tokens": 0, "min_head_capacity_ratio": 0.34})"),
               inputs, 8, 1);
  EXPECT_EQ(row_text(mask, 0, 0), "..111..11") << "the floor is the window; of 4 more, head 1 needs one";
  EXPECT_EQ(row_text(mask, 0, 1), "..1....11");
}

TEST(PyramidKv, CapacityFallsWithTheLayer) {
  const OwnedInputs owned({1, 1, 1, 101, 101, 8, 8}, 5);
  const SparseAttention sparse = generating(
      R"({"type": "pyramid_kv", "num_layers": 5, "token_capacity": 24, "approximation_window": 4, "beta": 10})");
  std::vector<Index> kept;
  for (int layer = 0; layer < 5; ++layer) {
    AttentionInputs inputs = owned.inputs;
    inputs.layer = layer;
    kept.push_back(generate(sparse, inputs, 100, 1).nnz() - 1);
  }
  EXPECT_EQ(kept, (std::vector<Index>{42, 33, 24, 15, 6})) << "4 + from 2c - c / 10 = 38 down to 2 in steps of 9";
  AttentionInputs beyond = owned.inputs;
  beyond.layer = 5;
  SequenceState state;
  EXPECT_THROW(sparse.mask(beyond, state), ValueError);
}

TEST(Tova, EvictsTheKeyOfLeastAttention) {
  // Keys 0 to 3 are the prompt; scores rank them 3 > 1 > 0 > 2.
  const Scored s(6, {2, 3, 1, 4, 0, 5});
  const Mask mask = generate(generating(R"({"type": "tova", "token_capacity": 3})"), s.inputs, 4, 1);
  EXPECT_EQ(row_text(mask, 0), "11.11.") << "3 of the prompt and its own key, of which its own is evicted";
  EXPECT_EQ(row_text(mask, 1), "11.1.1");
}

TEST(H2O, KeepsRecentKeysAndHeavyHitters) {
  // Key 1 gathers most of the prompt's attention, then key 0.
  const Scored s(8, {2, 8, 0, 0, 0, 0, 0, 0});
  const Mask mask = generate(generating(R"({"type": "h2o", "heavy_size": 1, "recent_size": 2})"), s.inputs, 5, 1);
  EXPECT_EQ(row_text(mask, 0), ".1.111..");
  EXPECT_EQ(row_text(mask, 1), ".1..111.");
  EXPECT_EQ(row_text(mask, 2), ".1...111");
}

TEST(Eviction, RefusesBadParameters) {
  EXPECT_NE(refusal(R"({"type": "snap_kv", "kernel_size": 4})").find("must be odd"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "snap_kv", "token_capacity": 8})").find("local_window + prefix_tokens"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"type": "snap_kv", "approximation_window": 9223372036854775807})").find("2147483647]"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"type": "ada_snap_kv", "min_head_capacity_ratio": 2})").find("[0, 1]"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "pyramid_kv"})").find("num_layers"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "pyramid_kv", "num_layers": 4, "token_capacity": 32})").find("> approximation_window"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"type": "tova", "token_capacity": 0})").find("/token_capacity"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "h2o", "heavy_size": 0, "recent_size": 0})").find("must be > 0"), std::string::npos);
}

}  // namespace
}  // namespace reticle::testing
