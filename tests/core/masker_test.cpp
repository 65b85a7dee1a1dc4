#include <optional>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/masker.hpp>

#include "support/message_of.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
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
  masker.emplace();  // another masker at the same address
  EXPECT_EQ(state.get<std::string>(*masker), "");
}

/// Masker state that follows its sequences: a list of keys for each sequence of the batch.
struct Followed {
  std::vector<std::vector<int>> keys;

  void truncate(Index count) {
    if (count == 0) throw CannotFollow("nothing is left");
    for (std::vector<int>& of_sequence : keys) of_sequence.resize(static_cast<std::size_t>(count));
  }
  void select(std::span<const Index> rows) {
    std::vector<std::vector<int>> selected;
    for (const Index row : rows) selected.push_back(keys[static_cast<std::size_t>(row)]);
    keys = selected;
  }
};

TEST(LayerState, WhatIsKeptFollowsItsSequences) {
  LayerState state;
  const Counter masker;
  state.get<Followed>(masker).keys = {{1, 2, 3}, {4, 5, 6}};
  state.truncate(2);
  state.select(std::vector<Index>{1, 1, 0});
  EXPECT_EQ(state.get<Followed>(masker).keys, (std::vector<std::vector<int>>{{4, 5}, {4, 5}, {1, 2}}));
}

TEST(LayerState, AForkGoesOnByItself) {
  LayerState state;
  const Counter masker;
  state.get<Followed>(masker).keys = {{1, 2, 3}};
  LayerState fork = state.fork();
  fork.truncate(1);
  EXPECT_EQ(fork.get<Followed>(masker).keys, (std::vector<std::vector<int>>{{1}}));
  EXPECT_EQ(state.get<Followed>(masker).keys, (std::vector<std::vector<int>>{{1, 2, 3}}));
}

TEST(LayerState, WhatCannotFollowIsRefusedByTheMaskersName) {
  LayerState state;
  const Counter masker;
  state.get<Followed>(masker);
  EXPECT_EQ(message_of<ValueError>([&] { state.truncate(0); }),
            "masker \"?\" cannot follow its sequence: nothing is left; reset the state and start from the prompt");
  state.reset();
  state.get<int>(masker) = 1;
  const std::string message =
      "masker \"?\" cannot follow its sequence: what it keeps has no truncate(keys) and select(rows); reset the state "
      "and start from the prompt";
  EXPECT_EQ(message_of<ValueError>([&] { state.truncate(3); }), message);
  EXPECT_EQ(message_of<ValueError>([&] { state.select(std::vector<Index>{0}); }), message);
  EXPECT_EQ(message_of<ValueError>([&] { state.fork(); }), message);
  EXPECT_EQ(state.get<int>(masker), 1);
}

TEST(LayerState, ValuesOfTwoTypesForOneMaskerAreRefused) {
  LayerState state;
  const Counter masker;
  state.get<int>(masker);
  EXPECT_EQ(message_of<Error>([&] { state.get<float>(masker); }),
            "masker \"?\": keeps values of two types at one layer");
}

TEST(Masker, SaysNothingOfItselfUnlessItsAuthorDoes) {
  const Counter masker;
  const WrittenInputs written({1, 2, 3, 1}, std::vector<float>(6), {1, 1, 5, 1}, std::vector<float>(5));
  LayerState state;
  EXPECT_EQ(masker.type(), "?");
  EXPECT_TRUE(masker.rules(5, 0).empty());
  EXPECT_EQ(masker.observed_queries(), 0);
  EXPECT_FALSE(masker.selects_by_query());
  EXPECT_FALSE(masker.forgets());
  EXPECT_FALSE(masker.samples());
  EXPECT_EQ(masker.lasting(written.inputs, 0, state, Context(1)), Mask::full({1, 2, 1, 5}));
}

}  // namespace
}  // namespace reticle::testing
