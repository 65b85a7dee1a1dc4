#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/ops/page_bounds.hpp>
#include <reticle/core/ops/quantise.hpp>

#include "support/attention.hpp"

namespace reticle::testing {
namespace {

Mask mask_of(const std::string& parameters, const AttentionInputs& inputs, SequenceState& state, bool causal = false) {
  return SparseAttention::from_json(R"({"maskers": [{"type": "quest_top_k", )" + parameters +
                                    (causal ? R"(}], "causal": true})" : "}]}"))
      .mask(inputs, state);
}

TEST(QuestTopK, KeepsThePagesOfTheHighestBounds) {
  Tensor queries(DType::f32, {1, 1, 1, 1}), keys(DType::f32, {1, 1, 9, 1});
  const float values[] = {1, 1, 5, -9, 2, 2, -3, 4, 3};  // pages of 2; largest: 1, 5, 2, 4, 3
  std::copy(std::begin(values), std::end(values), keys.span<float>().begin());
  queries.span<float>()[0] = 1;
  AttentionInputs inputs;
  inputs.queries = queries.view();
  inputs.keys = inputs.values = keys.view();
  SequenceState state;
  const auto kept = [&](const std::string& parameters) {
    SequenceState fresh;
    const Mask mask = mask_of(parameters, inputs, fresh);
    std::string text;
    for (Index key = 0; key < 9; ++key) text += mask.at(0, 0, 0, key) > 0 ? '1' : '.';
    return text;
  };
  EXPECT_EQ(kept(R"("heavy_size": 4, "page_size": 2, "min_pages": 1)"), "..11..11.");
  EXPECT_EQ(kept(R"("heavy_size": 4, "page_size": 2)"), "..11..111") << "at least three";
  EXPECT_EQ(kept(R"("heavy_size": 2, "page_size": 2, "min_pages": 1, "keep_current_page": true)"), "..11....1");
  queries.span<float>()[0] = -1;  // largest of -k: -1, 9, -2, 3, -3
  EXPECT_EQ(kept(R"("heavy_size": 2, "page_size": 2, "min_pages": 1)"), "..11.....");
}

TEST(QuestTopK, ADecodeStepReadsOnlyNewKeysAndEqualsAFreshStart) {
  const OwnedInputs owned({1, 4, 2, 30, 200, 16, 16}, 7);
  for (const char* bits : {"16", "4"}) {
    const std::string parameters = std::string(R"("heavy_size": 40, "page_size": 8, "label_bits": )") + bits;
    SequenceState kept;
    for (Index step = 0; step < 30; ++step) {
      AttentionInputs inputs = owned.inputs;
      inputs.queries = inputs.queries.slice(2, step, step + 1);
      inputs.keys = inputs.keys.slice(2, 0, 171 + step);
      inputs.values = inputs.values.slice(2, 0, 171 + step);
      SequenceState fresh;
      EXPECT_EQ(mask_of(parameters, inputs, kept), mask_of(parameters, inputs, fresh)) << "step " << step;
    }
  }
  PageBounds bounds;
  const auto first = [&](Index keys) {
    AttentionInputs inputs = owned.inputs;
    inputs.keys = inputs.keys.slice(2, 0, keys);
    return inputs;
  };
  bounds.update(first(150), 8, 16);
  const Index before = bounds.keys_read();
  bounds.update(first(151), 8, 16);
  EXPECT_EQ(bounds.keys_read() - before, 2) << "one key of each KV head";
}

TEST(QuestTopK, GroupsShareTheirPagesWhenAsked) {
  const OwnedInputs owned({1, 8, 2, 3, 120, 16, 16}, 8);
  SequenceState state, other;
  const Mask shared = mask_of(R"("heavy_size": 32, "page_size": 8, "share_within_group": true)", owned.inputs, state);
  const Mask apart = mask_of(R"("heavy_size": 32, "page_size": 8)", owned.inputs, other);
  const auto row = [](const Mask& mask, Index head) {
    std::vector<reticle::Run> runs;
    mask.row({0, head, 2}, runs);
    return runs;
  };
  for (Index head = 0; head < 8; ++head) EXPECT_EQ(row(shared, head), row(shared, head / 4 * 4));
  EXPECT_NE(row(apart, 0), row(apart, 1));
}

TEST(QuestTopK, AnotherSequenceNeedsAnotherState) {
  const OwnedInputs owned({1, 4, 2, 1, 50, 16, 16}, 9), shorter({1, 4, 2, 1, 40, 16, 16}, 9);
  SequenceState state;
  mask_of(R"("page_size": 8)", owned.inputs, state);
  // Another pipeline is another masker; the same one is asked twice here.
  const auto sparse = SparseAttention::from_json(R"({"maskers": [{"type": "quest_top_k"}]})");
  sparse.mask(owned.inputs, state);
  EXPECT_THROW(sparse.mask(shorter.inputs, state), ShapeError);
  state.reset();
  EXPECT_NO_THROW(sparse.mask(shorter.inputs, state));
}

TEST(QuestTopK, RefusesBadParameters) {
  for (const char* parameters :
       {R"("page_size": 0)", R"("label_bits": 0)", R"("label_bits": 17)", R"("heavy_size": 0)", R"("min_pages": 0)"}) {
    EXPECT_THROW(
        SparseAttention::from_json(std::string(R"({"maskers": [{"type": "quest_top_k", )") + parameters + "}]}"),
        ConfigError);
  }
}

TEST(FakeQuantise, RoundsToTheLevelsBetweenLeastAndLargest) {
  std::vector<float> values{0, 1, 2, 3, 10};
  fake_quantise(values, 1);
  EXPECT_EQ(values, (std::vector<float>{0, 0, 0, 0, 10}));
  std::vector<float> equal{3, 3};
  fake_quantise(equal, 4);
  EXPECT_EQ(equal, (std::vector<float>{3, 3}));
  fake_quantise({}, 4);
}

}  // namespace
}  // namespace reticle::testing
