#include <optional>
#include <string>

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

}  // namespace
}  // namespace reticle
