#include <algorithm>
#include <random>

#include <gtest/gtest.h>

#include <reticle/attention/layers/linear.hpp>

#include "support/attention.hpp"
#include "support/message_of.hpp"

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

TEST(Linear, ReadsWeightsWhoseRowsStandApart) {
  std::mt19937 random(3);
  const Tensor whole = random_tensor(DType::f32, {40, 9}, random);
  const TensorView weight = whole.view().slice(1, 2, 7);
  for (const Index rows : {1, 20}) {  // dot products, and BLAS
    const Tensor x = random_tensor(DType::f32, {rows, 5}, random), y = linear(x, weight);
    for (Index i = 0; i < rows; ++i) {
      for (Index o = 0; o < 40; ++o) {
        double sum = 0;
        for (Index j = 0; j < 5; ++j) sum += element(x, i, j) * element(whole, o, j + 2);
        ASSERT_NEAR(*y.view().at<float>(i, o), sum, 1e-5);
      }
    }
  }
}

TEST(Linear, NoInputsGiveZerosAndNoOutputsNothing) {
  for (const Index rows : {1, 20}) {
    const Tensor x(DType::f32, {rows, 0}), weight(DType::f32, {3, 0}), wide(DType::f32, {rows, 4}),
        none(DType::f32, {0, 4});
    const Tensor y = linear(x, weight);
    EXPECT_EQ(y.view().elements(), rows * 3);
    EXPECT_TRUE(std::ranges::all_of(y.span<float>(), [](float value) { return value == 0; })) << rows << " rows";
    EXPECT_EQ(linear(wide, none).span<float>().size(), 0u);
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
  EXPECT_EQ(message_of<ShapeError>([&] { linear(x, weight); }),
            "linear: x F32 (2, 3) and weight F32 (4, 5); expected a weight (out, 3) whose rows are contiguous");
  EXPECT_EQ(message_of<ShapeError>([&] { linear(half, weight); }), "linear: x: is F16 (2, 5); expected contiguous F32");
  EXPECT_EQ(message_of<ShapeError>([&] { linear_backward(x, weight, x); }),
            "linear_backward: x F32 (2, 3), weight F32 (4, 5) and dy F32 (2, 3) do not fit together; expected (n, in), "
            "(out, in) and (n, out)");
  EXPECT_THROW(linear(x, weight.view().permute({1, 0})), ShapeError) << "neighbours along the inputs";
}

}  // namespace
}  // namespace reticle::testing
