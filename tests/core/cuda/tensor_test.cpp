#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/tensor.hpp>

#include "support/cuda/on_device.hpp"
#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

using reticle::testing::message_of;

/// 0, 1, 2, ... in F32.
Tensor counted(std::initializer_list<Index> shape) {
  Tensor tensor(DType::f32, shape);
  float next = 0;
  for (float& x : tensor.span<float>()) x = next++;
  return tensor;
}

TEST_F(CudaDevice, TensorsAreCopiedThereAndBackPacked) {
  const Tensor host = counted({2, 3, 4});
  const Tensor there = copy_to(host.view().permute({2, 0, 1}).slice(0, 1, 3), kGpu);
  EXPECT_EQ(there.view().device, kGpu);
  EXPECT_TRUE(there.view().contiguous());
  EXPECT_EQ(on_host<float>(there), (std::vector<float>{1, 5, 9, 13, 17, 21, 2, 6, 10, 14, 18, 22}));
  // A part of it that is strided, from the GPU to the host, and to other memory of the GPU.
  const TensorView part = there.view().slice(2, 1, 3);
  const std::vector<float> expected = {5, 9, 17, 21, 6, 10, 18, 22};
  EXPECT_EQ(on_host<float>(copy_to(part, kGpu)), expected);
  const Tensor back = copy_to(part, {});
  EXPECT_EQ(std::vector<float>(back.span<float>().begin(), back.span<float>().end()), expected);
  EXPECT_THROW(copy_to(Tensor::copy(Tensor(DType::f32, {2, 32}), DType::q8), kGpu), DeviceError);
  const Tensor nothing(DType::f32, {0, 3}), nothing_there = copy_to(nothing, kGpu);
  EXPECT_EQ(nothing_there.view().describe(), "F32 (0, 3)");
}

TEST_F(CudaDevice, TensorsOfFiveDimensionsAreRefused) {
  const TensorView five = on_gpu(TensorView(nullptr, DType::f32, {1, 1, 1, 1, 1}).permute({4, 3, 2, 1, 0}), nullptr);
  EXPECT_EQ(message_of<ShapeError>([&] { pack_rows(five, 1, nullptr, nullptr); }),
            "a tensor on a GPU: F32 (1, 1, 1, 1, 1); expected at most 4 dimensions");
}

TEST_F(CudaDevice, RowsArePackedWithZerosBehindThemOrCut) {
  const Tensor host = counted({1, 2, 2, 3}), there = copy_to(host, kGpu);
  EXPECT_EQ(on_host<float>(packed_rows(there.view(), 5, nullptr)),
            (std::vector<float>{0, 1, 2, 0, 0, 3, 4, 5, 0, 0, 6, 7, 8, 0, 0, 9, 10, 11, 0, 0}));
  EXPECT_EQ(on_host<float>(packed_rows(there.view().permute({0, 2, 1, 3}), 2, nullptr)),
            (std::vector<float>{0, 1, 6, 7, 3, 4, 9, 10}));
}

TEST_F(CudaDevice, AttentionMasksOfAnyDtypeBecomeBiases) {
  constexpr float kForbids = -std::numeric_limits<float>::infinity();
  Tensor floats = counted({1, 1, 1, 4});
  floats.span<float>()[1] = std::numeric_limits<float>::lowest();
  floats.span<float>()[3] = kForbids;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const Tensor typed = Tensor::copy(floats, dtype), there = copy_to(typed, kGpu);
    EXPECT_EQ(on_host<float>(as_bias(there.view(), nullptr)), (std::vector<float>{0, kForbids, 2, kForbids}))
        << name_of(dtype);
  }
  Tensor booleans(DType::boolean, {1, 1, 2, 2});
  for (int i = 0; i < 4; ++i) static_cast<std::uint8_t*>(booleans.data())[i] = i % 3 == 0;
  const Tensor booleans_there = copy_to(booleans, kGpu), bias = as_bias(booleans_there, nullptr);
  EXPECT_EQ(bias.view().describe(), "F32 (1, 1, 2, 2)");
  EXPECT_EQ(on_host<float>(bias), (std::vector<float>{0, kForbids, kForbids, 0}));
  EXPECT_EQ(message_of<ShapeError>([&] {
              as_bias(on_gpu(TensorView(nullptr, DType::i32, {1, 1, 1, 4}), nullptr), {});
            }),
            "attention_mask: I32 (1, 1, 1, 4); expected floats, which are added to the scores, or booleans, true where "
            "a key may be attended to");
}

TEST_F(CudaDevice, InputsAreCopiedOnlyWhereKernelsCannotReadThem) {
  for (const Index head_dim : {64, 40}) {
    const Problem<float> drawn(Case{}, head_dim);
    const OnDevice<float> on_device(drawn);
    const FittedInputs fitted(on_device.inputs, nullptr);
    EXPECT_EQ(fitted.inputs().queries.size(3), 64);
    EXPECT_EQ(fitted.inputs().queries.data == on_device.inputs.queries.data, head_dim == 64);
    EXPECT_EQ(FittedInputs::extents(on_device.inputs).keys.size(3), 64);
    const Tensor keys = copy_to(fitted.inputs().keys, {}), given = Tensor::copy(drawn.inputs.keys, DType::f32);
    for (Index i = 0; i < 64; ++i)
      EXPECT_EQ(*keys.view().at<float>(1, 1, 3, i), i < head_dim ? *given.view().at<float>(1, 1, 3, i) : 0.0f);
    // And back: what kernels write in rows of 64 goes to the caller's rows of head_dim.
    const auto rows = drawn.output_size() / static_cast<std::size_t>(head_dim);
    const Buffer output(drawn.output_size() * sizeof(float), nullptr);
    FittedResult result = output_of(on_device.inputs, fitted, output.as<float>(), nullptr);
    EXPECT_EQ(result.data() == output.as<float>(), head_dim == 64);
    const std::vector<float> written = [&] {
      std::vector<float> values(rows * 64);
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
      return values;
    }();
    copy_to_device(result.data(), written.data(), written.size() * sizeof(float), nullptr);
    result.finish();
    const std::vector<float> found = on_host<float>(output, drawn.output_size());
    for (std::size_t i = 0; i < found.size(); ++i) {
      const auto width = static_cast<std::size_t>(head_dim);
      ASSERT_EQ(found[i], static_cast<float>(i / width * 64 + i % width)) << i;
    }
  }
}

TEST_F(CudaDevice, RowsThatAreNotAlignedAreCopied) {
  const Problem<float> drawn(Case{}, 64);
  const OnDevice<float> on_device(drawn);
  AttentionInputs inputs = on_device.inputs;
  const Buffer shifted(drawn.output_size() * sizeof(float) + 4, nullptr);
  inputs.queries.data = shifted.as<float>() + 1;
  const FittedInputs fitted(inputs, nullptr);
  EXPECT_NE(fitted.inputs().queries.data, inputs.queries.data);
  EXPECT_EQ(fitted.inputs().keys.data, inputs.keys.data);
}

TEST_F(CudaDevice, TensorsOfAnotherDeviceAreRefusedByName) {
  const Problem<float> drawn(Case{}, 64);
  AttentionInputs inputs = OnDevice<float>(drawn).inputs;
  for (TensorView* view : {&inputs.queries, &inputs.keys, &inputs.values}) view->device.index = 99;
  EXPECT_EQ(message_of<DeviceError>([&] { FittedInputs::extents(inputs); }),
            "queries: on GPU 99, and the current device is GPU 0; make theirs current (cudaSetDevice, "
            "torch.cuda.device)");
}

}  // namespace
}  // namespace reticle::cuda
