#include "support/cuda/unavailable.hpp"

#include <string>

#include <gtest/gtest.h>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/backward.hpp>
#include <reticle/attention/executor.hpp>

#include "support/attention.hpp"
#include "support/cuda/problem.hpp"

namespace reticle::cuda {
namespace {

/// With a toolkit and without a GPU, too.
TEST(CudaWithoutDevice, IsSaidWhenADeviceIsAskedFor) {
  if (device_count() > 0) GTEST_SKIP() << "there is a GPU";
  EXPECT_NE(std::string(why_unavailable()), "");
  Case c;
  const Problem<float> drawn(c, 64);
  AttentionInputs inputs = drawn.inputs;
  for (TensorView* view : {&inputs.queries, &inputs.keys, &inputs.values}) view->device = {Device::Kind::cuda, 0};
  using reticle::testing::message_of;
  const Mask mask = random_mask(c, 1, 1);
  EXPECT_TRUE(message_of<DeviceError>([&] { DevicePlan(inputs, mask, nullptr); }).starts_with("CUDA: "));
  EXPECT_TRUE(message_of<DeviceError>([&] { BackwardPlan(inputs, mask, nullptr); }).starts_with("CUDA: "));
  EXPECT_EQ(message_of<DeviceError>([&] { DevicePlan(drawn.inputs, mask, nullptr); }),
            "queries: on the CPU; expected a tensor on a GPU");
  EXPECT_THROW(KeyChooser(1, 10, nullptr), DeviceError);
  EXPECT_THROW(Buffer(16, nullptr), DeviceError);
}

TEST_F(CudaUnavailable, AttentionOverTensorsOfADeviceIsRefusedByName) {
  const reticle::testing::OwnedInputs owned({}, 1);
  AttentionInputs there = owned.inputs;
  for (TensorView* view : {&there.queries, &there.keys, &there.values}) view->device = {Device::Kind::cuda, 0};
  const Mask mask = Mask::full(there.shape());
  const TensorView result = there.queries;
  EXPECT_EQ(refusal([&] { attention(there, mask); }), kNoCuda);
  EXPECT_EQ(refusal([&] { attention(there, Band{}); }), kNoCuda);
  EXPECT_EQ(refusal([&] { AttentionPlan(there, mask); }), kNoCuda);
  EXPECT_EQ(refusal([&] { attend(there, mask, {}, {}, nullptr, nullptr); }), kNoCuda);
  EXPECT_EQ(refusal([&] { plan_for(there, mask, {}); }), kNoCuda);
  EXPECT_EQ(refusal([&] { empty_result(there, nullptr); }), kNoCuda);
  EXPECT_EQ(refusal([&] { BackwardPlan::serves(there, mask); }), kNoCuda);
  EXPECT_EQ(refusal([&] { differentiate(there, mask, result, result, result, {}, {}, {}); }), kNoCuda);
}

TEST_F(CudaUnavailable, DecodersAreRefusedByName) {
  EXPECT_EQ(refusal([] { KeyListAttention(4, nullptr); }), kNoCuda);
  EXPECT_EQ(refusal([] { SparseDecoder(4, 10, nullptr); }), kNoCuda);
}

TEST_F(CudaUnavailable, TensorsOfTheHostAreNamedBeforeTheDeviceIsMissed) {
  const reticle::testing::OwnedInputs owned({}, 1);
  const Mask mask = Mask::full(owned.inputs.shape());
  const std::string on_the_cpu = "queries: on the CPU; expected a tensor on a GPU";
  EXPECT_EQ(refusal([&] { attend(owned.inputs, mask, {}, {}, nullptr, nullptr); }), on_the_cpu);
  EXPECT_EQ(refusal([&] { BackwardPlan(owned.inputs, mask, nullptr); }), on_the_cpu);
}

}  // namespace
}  // namespace reticle::cuda
