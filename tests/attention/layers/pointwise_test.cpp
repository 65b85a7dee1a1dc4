#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/layers/pointwise.hpp>

#include "support/attention.hpp"
#include "support/message_of.hpp"

namespace reticle::testing {
namespace {

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

TEST(RmsNorm, EpsilonIsAddedToTheMeanSquare) {
  Tensor x(DType::f32, {1, 3}), weight(DType::f16, {3});
  for (float& value : x.span<float>()) value = 2;
  for (Half& value : weight.span<Half>()) value = from_float<Half>(0.5f);
  const Tensor y = rms_norm(x, weight, 5);  // sqrt(4 + 5) = 3
  for (const float value : y.span<float>()) EXPECT_NEAR(value, 1.0f / 3, 1e-7);
}

TEST(RmsNorm, RowsDoNotDependOnTheNumberOfThreads) {
  std::mt19937 random(1);
  const Tensor x = random_tensor(DType::f32, {301, 333}, random), weight = random_tensor(DType::f32, {333}, random);
  const Tensor y = rms_norm(x, weight, 1e-6f, Context(3));
  for (const Index row : {0, 97, 98, 99, 300}) {  // 98 rows are a task
    double squares = 0;
    for (Index i = 0; i < 333; ++i) squares += std::pow(static_cast<double>(*x.view().at<float>(row, i)), 2);
    for (Index i = 0; i < 333; i += 4) {
      const double expected = static_cast<double>(*x.view().at<float>(row, i)) *
                              static_cast<double>(weight.span<float>()[static_cast<std::size_t>(i)]) /
                              std::sqrt(squares / 333 + 1e-6);
      ASSERT_NEAR(*y.view().at<float>(row, i), expected, 1e-5) << row << ", " << i;
    }
  }
  const Tensor none(DType::f32, {0, 333}), normed = rms_norm(none, weight, 1e-6f);
  EXPECT_EQ(normed.view().size(0), 0);
}

TEST(RmsNorm, RefusesWeightsOfAnotherWidth) {
  const Tensor x(DType::f32, {2, 3}), weight(DType::f32, {4});
  EXPECT_EQ(message_of<ShapeError>([&] { rms_norm(x, weight, 0); }),
            "rms_norm: x F32 (2, 3) and weight F32 (4); expected contiguous F32 (n, width) and (width)");
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
  EXPECT_EQ(message_of<ShapeError>([&] { swiglu(gate, std::vector<float>(3)); }),
            "swiglu: 4 and 3 elements; expected as many");
}

TEST(Swiglu, NoElementsAreNone) {
  std::vector<float> nothing;
  EXPECT_NO_THROW(swiglu(nothing, nothing));
}

TEST(Add, SumsElementByElement) {
  std::vector<float> x{1, 2, 3, 4, 5};
  add(x, std::vector<float>{10, 20, 30, 40, -5});
  EXPECT_EQ(x, (std::vector<float>{11, 22, 33, 44, 0}));
  EXPECT_EQ(message_of<ShapeError>([&] { add(x, std::vector<float>(4)); }), "add: 5 and 4 elements; expected as many");
}

}  // namespace
}  // namespace reticle::testing
