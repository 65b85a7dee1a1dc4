#include "support/cuda/unavailable.hpp"

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/choose.hpp>
#include <reticle/core/cuda/mask.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/cuda/scores.hpp>
#include <reticle/core/cuda/tensor.hpp>
#include <reticle/core/cuda/top_k.hpp>

#include "support/attention.hpp"

namespace reticle::cuda {
namespace {

TEST_F(CudaUnavailable, ThereIsNoDevice) { EXPECT_EQ(device_count(), 0); }

TEST_F(CudaUnavailable, MemoryOfADeviceIsRefusedByName) {
  std::uint8_t byte = 0;
  EXPECT_EQ(refusal([] { Buffer(16, nullptr); }), kNoCuda);
  EXPECT_EQ(refusal([] { Buffer::zeros(16, nullptr); }), kNoCuda);
  EXPECT_EQ(refusal([&] { copy_to_device(nullptr, &byte, 1, nullptr); }), kNoCuda);
  EXPECT_EQ(refusal([&] { copy_to_host(&byte, nullptr, 1, nullptr); }), kNoCuda);
  EXPECT_EQ(refusal([] { copy_on_device(nullptr, nullptr, 1, nullptr); }), kNoCuda);
  EXPECT_EQ(Buffer().bytes(), 0u) << "an empty one needs no device";
}

TEST_F(CudaUnavailable, QuestionsAboutADeviceAreRefusedByName) {
  EXPECT_EQ(refusal([] { current_device(); }), kNoCuda);
  EXPECT_EQ(refusal([] { multiprocessors(); }), kNoCuda);
  EXPECT_EQ(refusal([] { compute_capability(); }), kNoCuda);
}

TEST_F(CudaUnavailable, TensorsAreCopiedOnTheHostOnly) {
  Tensor tensor(DType::f32, {2, 2});
  for (std::size_t i = 0; i < 4; ++i) tensor.span<float>()[i] = static_cast<float>(i);
  const Tensor copy = copy_to(tensor.view().permute({1, 0}), {});
  EXPECT_EQ(std::vector<float>(copy.span<float>().begin(), copy.span<float>().end()), (std::vector<float>{0, 2, 1, 3}));
  EXPECT_EQ(refusal([&] { copy_to(tensor, {Device::Kind::cuda, 0}); }), kNoCuda);
  EXPECT_EQ(refusal([&] { empty_tensor(DType::f32, {}, nullptr); }), kNoCuda);
  EXPECT_EQ(refusal([&] { packed_rows(tensor, 2, nullptr); }), kNoCuda);
  EXPECT_EQ(refusal([&] { as_bias(tensor, nullptr); }), kNoCuda);
}

TEST_F(CudaUnavailable, MasksStayOnTheHost) {
  const Mask mask = Mask::intervals({1, 1, 2, 3}, [](RowId) { return Interval{0, 2}; });
  EXPECT_EQ(refusal([&] { mask.to({Device::Kind::cuda, 0}); }), kNoCuda);
  EXPECT_EQ(mask.to({}), mask);
  EXPECT_EQ(refusal([&] { mask_of_lists(mask.shape(), {}, nullptr); }), kNoCuda);
  EXPECT_EQ(refusal([] { entries_of_lists({}, 1, nullptr); }), kNoCuda);
}

TEST_F(CudaUnavailable, SelectionAndChoiceAreRefusedByName) {
  EXPECT_EQ(refusal([] { top_k(nullptr, 1, 1, 1, nullptr, nullptr, nullptr); }), kNoCuda);
  EXPECT_EQ(refusal([] { KeyChooser(1, 10, nullptr); }), kNoCuda);
}

TEST_F(CudaUnavailable, WhereTensorsLieIsCheckedBeforeTheDeviceIsMissed) {
  const reticle::testing::OwnedInputs owned({}, 1);
  EXPECT_EQ(refusal([&] { dot_scores(owned.inputs, nullptr, nullptr); }),
            "queries: on the CPU; expected a tensor on a GPU");
  EXPECT_EQ(refusal([&] { FittedInputs(owned.inputs, nullptr); }), "queries: on the CPU; expected a tensor on a GPU");
  AttentionInputs there = owned.inputs;
  for (TensorView* view : {&there.queries, &there.keys, &there.values}) view->device = {Device::Kind::cuda, 0};
  EXPECT_EQ(refusal([&] { dot_scores(there, nullptr, nullptr); }), kNoCuda);
  EXPECT_EQ(refusal([&] { FittedInputs::extents(there); }), kNoCuda);
}

}  // namespace
}  // namespace reticle::cuda
