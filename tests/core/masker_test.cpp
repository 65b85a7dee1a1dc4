#include <optional>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/masker.hpp>

namespace reticle {
namespace {

class Counter final : public Masker {
 public:
  Mask select(const AttentionInputs& inputs, const Mask&, LayerState& state, const Context&) const override {
    ++state.get<int>(*this);
    return Mask::empty(inputs.shape());
  }
};

TEST(LayerState, KeepsOneValuePerMaskerUntilReset) {
  LayerState state;
  const Counter a, b;
  const float number = 0;
  AttentionInputs inputs;
  inputs.queries = inputs.keys = inputs.values = TensorView(&number, DType::f32, {1, 1, 1, 1});
  for (int i = 0; i < 3; ++i) a.select(inputs, Mask(), state, Context());
  b.select(inputs, Mask(), state, Context());
  EXPECT_EQ(state.get<int>(a), 3);
  EXPECT_EQ(state.get<int>(b), 1);
  state.reset();
  EXPECT_EQ(state.get<int>(a), 0);
}

TEST(LayerState, AMaskerThatTakesAnothersPlaceFindsNothingOfIt) {
  LayerState state;
  std::optional<Counter> masker(std::in_place);
  state.get<int>(*masker) = 5;
  masker.emplace();  // at the same address
  EXPECT_EQ(state.get<std::string>(*masker), "");
}

TEST(LayerState, WhatCannotFollowIsNamed) {
  const Counter masker;
  LayerState state;
  state.get<int>(masker) = 3;
  const std::string why =
      "cannot follow its sequence: what it keeps has no truncate(keys) and select(rows); reset the "
      "state and start from the prompt";
  for (const auto& call : {+[](LayerState& s) { s.truncate(1); }, +[](LayerState& s) { s.fork(); },
                           +[](LayerState& s) { s.select(std::vector<Index>{0}); }}) {
    try {
      call(state);
      ADD_FAILURE() << "expected a ValueError";
    } catch (const ValueError& error) {
      EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace reticle
