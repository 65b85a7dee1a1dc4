#include <vector>

#include <gtest/gtest.h>

#include "support/generation.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

/// How many keys of a prompt each of five layers keeps.
std::vector<Index> kept_by_layers(Index prompt) {
  const OwnedInputs owned({1, 1, 1, prompt + 1, prompt + 1, 8, 8}, 5);
  const SparseAttention sparse = generating(
      R"({"type": "pyramid_kv", "num_layers": 5, "token_capacity": 24, "approximation_window": 4, "beta": 10})");
  std::vector<Index> kept;
  for (int layer = 0; layer < 5; ++layer) {
    AttentionInputs inputs = owned.inputs;
    inputs.layer = layer;
    kept.push_back(generate(sparse, inputs, prompt).nnz() - 1);
  }
  return kept;
}

TEST(PyramidKv, CapacityFallsWithTheLayer) {
  EXPECT_EQ(kept_by_layers(100), (std::vector<Index>{42, 33, 24, 15, 6}))
      << "4 + from 2c - c / 10 = 38 down to 2 in steps of 9";
}

TEST(PyramidKv, ShortPromptsAreKeptWholeAndMediumOnesKeepTheMeanInEveryLayer) {
  EXPECT_EQ(kept_by_layers(23), (std::vector<Index>{23, 23, 23, 23, 23})) << "below token_capacity";
  EXPECT_EQ(kept_by_layers(39), (std::vector<Index>{24, 24, 24, 24, 24})) << "below twice c = 20";
  EXPECT_EQ(kept_by_layers(40), (std::vector<Index>{40, 32, 24, 16, 8})) << "at most what lies before the window";
}

TEST(PyramidKv, KeepsTheWindowAndTheKeysOfMostAttention) {
  const Scored s(12, {0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0});
  const Mask mask = generate(generating(R"({"type": "pyramid_kv", "num_layers": 1, "token_capacity": 3,
                                            "approximation_window": 2, "kernel_size": 1})"),
                             s.inputs, 10);
  EXPECT_EQ(row_text(mask, 1), "...1....1111");
}

TEST(PyramidKv, LeavesTheRestOfThePromptForGood) {
  const Scored s(12, {0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0});
  const SparseAttention sparse = generating(R"({"type": "pyramid_kv", "num_layers": 1, "token_capacity": 3,
                                                "approximation_window": 2, "kernel_size": 1})");
  EXPECT_EQ(sparse.observed_queries(), 2);
  EXPECT_EQ(row_text(lasting(sparse, s.inputs, 10, 12), 0), "...1....1111");
}

TEST(PyramidKv, RefusesBadParametersAndLayersThatTheModelLacks) {
  EXPECT_EQ(refusal(R"({"type": "pyramid_kv"})"), "/maskers/0: \"num_layers\" is missing: layers of the model");
  EXPECT_EQ(refusal(R"({"type": "pyramid_kv", "num_layers": 4, "token_capacity": 32})"),
            "/maskers/0/token_capacity: must be > approximation_window, got 32");
  EXPECT_EQ(refusal(R"({"type": "pyramid_kv", "num_layers": 4, "kernel_size": 2})"),
            "/maskers/0/kernel_size: must be odd, got 2");
  const OwnedInputs owned({1, 1, 1, 101, 101, 8, 8}, 5);
  AttentionInputs beyond = owned.inputs;
  beyond.layer = 5;
  EXPECT_EQ(refusal<ValueError>(R"({"type": "pyramid_kv", "num_layers": 5})", beyond),
            "pyramid_kv: layer 5 of a model with num_layers 5");
}

}  // namespace
}  // namespace reticle::testing
