#include <cstdint>

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

}  // namespace
}  // namespace reticle
