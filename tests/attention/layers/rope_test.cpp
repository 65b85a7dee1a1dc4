#include <cmath>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/layers/rope.hpp>

#include "support/attention.hpp"
#include "support/message_of.hpp"

namespace reticle::testing {
namespace {

TEST(Rope, TurnsThePairsOfBothHalvesByPositionTimesFrequency) {
  const Rope rope(4, 100, std::nullopt);
  ASSERT_EQ(rope.inverse_frequencies().size(), 2u);
  EXPECT_FLOAT_EQ(rope.inverse_frequencies()[0], 1);
  EXPECT_FLOAT_EQ(rope.inverse_frequencies()[1], 0.1f);
  const RopeTable table = rope.at(std::vector<Index>{0, 3});
  EXPECT_EQ(table.rows(), 2);
  EXPECT_EQ(table.half(), 2);
  std::vector<float> x{1, 2, 3, 4, 1, 2, 3, 4};  // one head at each of two positions
  table.rotate(x);
  EXPECT_EQ(std::vector<float>(x.begin(), x.begin() + 4), (std::vector<float>{1, 2, 3, 4})) << "position 0 stays";
  EXPECT_NEAR(x[4], std::cos(3.0) - 3 * std::sin(3.0), 1e-6);
  EXPECT_NEAR(x[6], 3 * std::cos(3.0) + std::sin(3.0), 1e-6);
  EXPECT_NEAR(x[5], 2 * std::cos(0.3) - 4 * std::sin(0.3), 1e-6);
  EXPECT_NEAR(x[7], 4 * std::cos(0.3) + 2 * std::sin(0.3), 1e-6);
}

TEST(Rope, ScoresDependOnDistancesOnly) {
  std::mt19937 random(3);
  const Rope rope(16, 10000, std::nullopt);
  const Tensor q = random_tensor(DType::f32, {1, 16}, random), k = random_tensor(DType::f32, {1, 16}, random);
  const auto score = [&](Index query, Index key) {
    Tensor a = Tensor::copy(q, DType::f32), b = Tensor::copy(k, DType::f32);
    rope.at(std::vector<Index>{query}).rotate(a.span<float>());
    rope.at(std::vector<Index>{key}).rotate(b.span<float>());
    return std::inner_product(a.span<float>().begin(), a.span<float>().end(), b.span<float>().begin(), 0.0);
  };
  EXPECT_NEAR(score(9, 4), score(105, 100), 1e-4);
  EXPECT_NEAR(score(0, 0), score(77, 77), 1e-4);
}

TEST(Rope, RotatingBackUndoes) {
  std::mt19937 random(4);
  const Rope rope(8, 500, RopeScaling{});
  const RopeTable table = rope.at(packed_positions(std::vector<Index>{0, 3, 3, 5}));
  Tensor x = random_tensor(DType::f32, {5, 3, 8}, random);
  const Tensor before = Tensor::copy(x, DType::f32);
  table.rotate(x.span<float>());
  EXPECT_NE(x.span<float>()[30], before.span<float>()[30]);
  table.rotate_back(x.span<float>());
  for (std::size_t i = 0; i < x.span<float>().size(); ++i)
    EXPECT_NEAR(x.span<float>()[i], before.span<float>()[i], 1e-6);
}

TEST(Rope, ScalingStretchesLongWavesOnly) {
  const Rope plain(64, 10000, std::nullopt),
      linear(64, 10000, RopeScaling{.type = RopeScaling::Type::linear, .factor = 4}),
      llama3(64, 10000, RopeScaling{.factor = 8, .original_max_position_embeddings = 256});
  EXPECT_FLOAT_EQ(linear.inverse_frequencies()[5] * 4, plain.inverse_frequencies()[5]);
  EXPECT_EQ(llama3.inverse_frequencies()[0], plain.inverse_frequencies()[0]);
  EXPECT_FLOAT_EQ(llama3.inverse_frequencies()[31] * 8, plain.inverse_frequencies()[31]);
}

TEST(Rope, WavesBetweenShortAndLongAreStretchedByDegrees) {
  // One pair of frequency 1, wavelength 2 pi. Turns in 4 pi tokens: 2, a third of the way from 1 to 4.
  const Rope scaled(
      2, 10000,
      RopeScaling{.factor = 8, .low_freq_factor = 1, .high_freq_factor = 4, .original_max_position_embeddings = 13});
  const double turns = 13 / (2 * std::acos(-1.0)), smooth = (turns - 1) / 3;
  EXPECT_NEAR(scaled.inverse_frequencies()[0], (1 - smooth) / 8 + smooth, 1e-6);
}

TEST(Rope, RefusesWhatHasNoRotation) {
  EXPECT_THROW(Rope(7, 10000, std::nullopt), ValueError);
  EXPECT_THROW(Rope(0, 10000, std::nullopt), ValueError);
  EXPECT_THROW(Rope(8, 0, std::nullopt), ValueError);
  EXPECT_THROW(Rope(8, std::nan(""), std::nullopt), ValueError);
  EXPECT_THROW(Rope(8, 10000, RopeScaling{.factor = 0}), ValueError);
  EXPECT_THROW(Rope(8, 10000, (RopeScaling{.low_freq_factor = 4, .high_freq_factor = 4})), ValueError);
  std::vector<float> x(9);
  EXPECT_THROW(Rope(8, 10000, std::nullopt).at(std::vector<Index>{1}).rotate(x), ValueError);
  EXPECT_EQ(message_of<ValueError>([] { Rope(7, 10000, std::nullopt); }),
            "rope: head_dim is 7; expected an even number > 0");
  EXPECT_EQ(message_of<ValueError>([] { Rope(8, 10000, RopeScaling{.factor = -1}); }),
            "rope: scaling factor is -1.000000; expected a finite number > 0");
  EXPECT_EQ(message_of<ValueError>([&] { Rope(8, 10000, std::nullopt).at(std::vector<Index>{1}).rotate(x); }),
            "rope: 9 elements are not (1, heads, 8)");
}

TEST(PackedPositions, CountAnewInEachSequence) {
  EXPECT_EQ(packed_positions(std::vector<Index>{0, 3, 3, 5}), (std::vector<Index>{0, 1, 2, 0, 1}));
  EXPECT_EQ(packed_positions(std::vector<Index>{0, 2, 5}, 16), (std::vector<Index>{0, 16, 0, 16, 32}));
  EXPECT_TRUE(packed_positions(std::vector<Index>{0}).empty());
}

TEST(RequireOffsets, RefusesOffsetsThatDoNotAscendFromZeroToTheTokens) {
  EXPECT_NO_THROW(require_offsets(std::vector<Index>{0, 2, 2, 5}, 5, "cu_seqlens"));
  for (const std::vector<Index>& wrong : {std::vector<Index>{}, {1, 5}, {0, 4}, {0, 6}, {0, 3, 2, 5}}) {
    EXPECT_EQ(message_of<ShapeError>([&] { require_offsets(wrong, 5, "cu_seqlens"); }),
              "cu_seqlens: expected ascending offsets from 0 to the number of tokens, 5");
  }
}

}  // namespace
}  // namespace reticle::testing
