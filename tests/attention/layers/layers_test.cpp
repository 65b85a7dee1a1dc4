#include <cmath>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/layers/linear.hpp>
#include <reticle/attention/layers/pointwise.hpp>
#include <reticle/attention/layers/rope.hpp>

#include "support/attention.hpp"

namespace reticle::testing {
namespace {

double element(const TensorView& view, Index i, Index j) {
  return static_cast<double>(read_float(view, i * view.stride(0) + j * view.stride(1)));
}

TEST(Linear, IsTheProductWithTheTransposeForAnyRowsAndStorage) {
  std::mt19937 random(1);
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const Tensor weight = random_tensor(dtype, {300, 37}, random);
    for (const Index rows : {0, 1, 3, 4, 7, 8, 9, 33}) {
      const Tensor x = random_tensor(DType::f32, {rows, 37}, random);
      const Tensor y = linear(x, weight);
      ASSERT_EQ(y.view().size(0), rows);
      for (Index i = 0; i < rows; ++i) {
        for (Index o = 0; o < 300; o += 7) {
          double sum = 0;
          for (Index j = 0; j < 37; ++j) sum += element(x, i, j) * element(weight, o, j);
          ASSERT_NEAR(*y.view().at<float>(i, o), sum, 2e-5) << rows << " rows, " << name_of(dtype);
        }
      }
    }
  }
}

TEST(Linear, ItsGradientsAreThoseOfTheProduct) {
  std::mt19937 random(2);
  const Tensor x = random_tensor(DType::f32, {5, 7}, random), weight = random_tensor(DType::f32, {4, 7}, random),
               dy = random_tensor(DType::f32, {5, 4}, random);
  const LinearGradients gradients = linear_backward(x, weight, dy);
  for (Index i = 0; i < 5; ++i) {
    for (Index j = 0; j < 7; ++j) {
      double sum = 0;
      for (Index o = 0; o < 4; ++o) sum += element(dy, i, o) * element(weight, o, j);
      EXPECT_NEAR(*gradients.x.view().at<float>(i, j), sum, 1e-5);
    }
  }
  for (Index o = 0; o < 4; ++o) {
    for (Index j = 0; j < 7; ++j) {
      double sum = 0;
      for (Index i = 0; i < 5; ++i) sum += element(dy, i, o) * element(x, i, j);
      EXPECT_NEAR(*gradients.weight.view().at<float>(o, j), sum, 1e-5);
    }
  }
}

TEST(Linear, RefusesWhatDoesNotFit) {
  const Tensor x(DType::f32, {2, 3}), weight(DType::f32, {4, 5}), half(DType::f16, {2, 5});
  EXPECT_THROW(linear(x, weight), ShapeError);
  EXPECT_THROW(linear(half, weight), ShapeError);
  EXPECT_THROW(linear_backward(x, weight, x), ShapeError);
}

TEST(RmsNorm, DividesByTheRootOfTheMeanSquare) {
  Tensor x(DType::f32, {2, 2}), weight(DType::f32, {2});
  x.span<float>()[0] = 3;
  x.span<float>()[1] = 4;
  x.span<float>()[2] = x.span<float>()[3] = 0;
  weight.span<float>()[0] = 1;
  weight.span<float>()[1] = 10;
  const Tensor y = rms_norm(x, weight, 1e-6f);
  EXPECT_NEAR(y.span<float>()[0], 3 / std::sqrt(12.5), 1e-6);
  EXPECT_NEAR(y.span<float>()[1], 40 / std::sqrt(12.5), 1e-5);
  EXPECT_EQ(y.span<float>()[2], 0);
  EXPECT_THROW(rms_norm(x, x, 1e-6f), ShapeError);
}

TEST(Swiglu, GatesBySilu) {
  std::vector<float> gate{0, 1, -100, 100};
  const std::vector<float> up{5, 2, 3, 4};
  swiglu(gate, up);
  EXPECT_EQ(gate[0], 0);
  EXPECT_NEAR(gate[1], 2 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_NEAR(gate[2], 0, 1e-6);
  EXPECT_NEAR(gate[3], 400, 1e-4);
  EXPECT_THROW(swiglu(gate, std::vector<float>(3)), ShapeError);
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

TEST(Rope, RefusesWhatHasNoRotation) {
  EXPECT_THROW(Rope(7, 10000, std::nullopt), ValueError);
  EXPECT_THROW(Rope(0, 10000, std::nullopt), ValueError);
  EXPECT_THROW(Rope(8, 0, std::nullopt), ValueError);
  EXPECT_THROW(Rope(8, std::nan(""), std::nullopt), ValueError);
  EXPECT_THROW(Rope(8, 10000, RopeScaling{.factor = 0}), ValueError);
  EXPECT_THROW(Rope(8, 10000, (RopeScaling{.low_freq_factor = 4, .high_freq_factor = 4})), ValueError);
  std::vector<float> x(9);
  EXPECT_THROW(Rope(8, 10000, std::nullopt).at(std::vector<Index>{1}).rotate(x), ValueError);
}

}  // namespace
}  // namespace reticle::testing
