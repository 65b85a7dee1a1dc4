#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include <reticle/core/tensor/tensor.hpp>

namespace reticle {
namespace {

TEST(Tensor, IsAlignedAndContiguous) {
  const Tensor tensor(DType::f16, {3, 5, 7});
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.view().data) % 64, 0u);
  EXPECT_TRUE(tensor.view().contiguous());
  EXPECT_EQ(tensor.view().elements(), 105);
  EXPECT_EQ(tensor.view().describe(), "F16 (3, 5, 7)");
}

TEST(Tensor, SlicesAndPermutationsAreViews) {
  Tensor tensor(DType::f32, {2, 3, 4});
  for (std::size_t i = 0; i < 24; ++i) tensor.span<float>()[i] = static_cast<float>(i);
  const TensorView view = tensor.view().permute({2, 0, 1}).slice(0, 1, 3);
  EXPECT_EQ(view.describe(), "F32 (2, 2, 3)");
  EXPECT_EQ(*view.at<float>(1, 1, 2), 22.0f);
  EXPECT_FALSE(view.contiguous());
  const Tensor packed = Tensor::copy(view, DType::f32);
  EXPECT_EQ(packed.span<float>()[11], 22.0f);
  const Tensor narrow = Tensor::copy(view, DType::f16);
  EXPECT_EQ(to_float(narrow.span<Half>()[11]), 22.0f);
}

TEST(Tensor, MisuseIsRefused) {
  const Tensor tensor(DType::f32, {2, 3});
  EXPECT_THROW(tensor.view().slice(0, 1, 3), ShapeError);
  EXPECT_THROW(tensor.view().slice(2, 0, 1), ShapeError);
  EXPECT_THROW(tensor.view().permute({0}), ShapeError);
  EXPECT_THROW(static_cast<void>(tensor.span<Half>()), ShapeError);
  EXPECT_THROW(Tensor(DType::f32, {1, 1, 1, 1, 1, 1, 1, 1, 1}), ShapeError);
  EXPECT_THROW(Tensor(DType::f32, {Index{1} << 62, 4}), ShapeError);
  EXPECT_THROW(Tensor(DType::f32, {-1}), ShapeError);
  EXPECT_THROW(Tensor::copy(TensorView(nullptr, DType::i64, {0}), DType::f32), ShapeError);
}

TEST(Half, EveryValueSurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Half half{static_cast<std::uint16_t>(bits)};
    const float value = to_float(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(from_float<Half>(value))));
    } else {
      EXPECT_EQ(from_float<Half>(value).bits, half.bits);
    }
    const BFloat16 brain{static_cast<std::uint16_t>(bits)};
    if (!std::isnan(to_float(brain))) {
      EXPECT_EQ(from_float<BFloat16>(to_float(brain)).bits, brain.bits);
    }
  }
}

TEST(Half, RoundsToNearestEven) {
  EXPECT_EQ(to_float(from_float<Half>(1.0f + 0x1p-11f)), 1.0f);
  EXPECT_EQ(to_float(from_float<Half>(1.0f + 0x3p-11f)), 1.0f + 0x1p-9f);
  EXPECT_EQ(to_float(from_float<Half>(65519.0f)), 65504.0f);
  EXPECT_EQ(to_float(from_float<Half>(65520.0f)), std::numeric_limits<float>::infinity());
  EXPECT_EQ(to_float(from_float<Half>(0x1p-25f)), 0.0f);
  EXPECT_EQ(to_float(from_float<Half>(0x1.8p-25f)), 0x1p-24f);
  EXPECT_EQ(to_float(from_float<BFloat16>(1.0f + 0x1p-8f)), 1.0f);
  EXPECT_EQ(to_float(from_float<BFloat16>(1.0f + 0x3p-8f)), 1.0f + 0x1p-6f);
  EXPECT_TRUE(std::isnan(to_float(from_float<BFloat16>(std::nanf("")))));
}

}  // namespace
}  // namespace reticle
