#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/executor.hpp>
#include <reticle/attention/inference_handler.hpp>
#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/tensor/tensor.hpp>

#include "support/attention.hpp"

namespace reticle {
namespace {

constexpr Device kGpu{Device::Kind::cuda, 1};

class OnDevices : public ::testing::Test {
 protected:
  OnDevices() {
    for (float& x : tensor_.span<float>()) x = 0.5f;
    inputs_.queries = inputs_.keys = inputs_.values = tensor_.view();
  }
  void move(const Device& device) {
    for (TensorView* view : {&inputs_.queries, &inputs_.keys, &inputs_.values}) view->device = device;
  }
  template <class Call>
  static std::string refusal(const Call& call) {
    try {
      call();
    } catch (const DeviceError& error) {
      return error.what();
    }
    return "none";
  }

  Tensor tensor_{DType::f32, {1, 2, 3, 4}};
  AttentionInputs inputs_;
};

TEST_F(OnDevices, TensorsMayLieOnAnyDeviceButOnOne) {
  inputs_.validate();
  move(kGpu);
  inputs_.validate();
  inputs_.keys.device = {};
  EXPECT_EQ(refusal([&] { inputs_.validate(); }),
            "keys: on the CPU, and the queries on GPU 1; expected one device for all tensors");
  inputs_.keys.device = {Device::Kind::cuda, 0};
  EXPECT_EQ(refusal([&] { inputs_.validate(); }),
            "keys: on GPU 0, and the queries on GPU 1; expected one device for all tensors");
  move(kGpu);
  const Tensor bias(DType::f32, {1, 1, 3, 3});
  inputs_.attention_mask = bias.view();
  EXPECT_EQ(refusal([&] { inputs_.validate(); }),
            "attention_mask: on the CPU, and the queries on GPU 1; expected one device for all tensors");
  inputs_.attention_mask.reset();
  const NamedTensor extra{"projection", tensor_.view()};
  inputs_.extras = {&extra, 1};
  EXPECT_EQ(refusal([&] { inputs_.validate(); }),
            "projection: on the CPU, and the queries on GPU 1; expected one device for all tensors");
}

TEST_F(OnDevices, CodeDemandsTheDeviceThatItRunsOn) {
  EXPECT_EQ(refusal([&] { inputs_.validate_on(Device::Kind::cuda); }),
            "queries: on the CPU; expected a tensor on a GPU");
  move(kGpu);
  inputs_.validate_on(Device::Kind::cuda);
  const Mask full = Mask::full(inputs_.shape());
  const auto sparse = SparseAttention::from_json(R"({"maskers": [{"type": "tova"}]})");
  // There, by whatever is missing: CUDA, a GPU, or that it is the current one.
  const auto on_gpu = [&](auto&& call) { EXPECT_THROW(call(), DeviceError); };
  ::testing::internal::CaptureStderr();
  on_gpu([&] { attention(inputs_, full); });
  const Tensor lse(DType::f32, {tensor_.view().size(0), tensor_.view().size(1), tensor_.view().size(2)});
  on_gpu([&] { attention_backward(inputs_, full, tensor_.view(), lse.view(), tensor_.view()); });
  on_gpu([&] { AttentionPlan(inputs_, full); });
  on_gpu([&] {
    SequenceState state;
    sparse.mask(inputs_, state);
  });
  on_gpu([&] {
    SequenceState state;
    sparse.attend(inputs_, state);
  });
  on_gpu([&] {
    InferenceState sequence;
    InferenceHandler(sparse, sparse).attend(inputs_, sequence);
  });
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");  // nobody is warned of copies that were not made
  EXPECT_EQ(refusal([&] { Tensor::copy(inputs_.queries, DType::f32); }),
            "copy: on GPU 1; expected a tensor on the CPU");
}

TEST(SeenKeys, RefuseCallsOfOtherExtents) {
  for (const testing::Shapes& other : {testing::Shapes{2, 4, 2, 1, 50, 16, 16}, testing::Shapes{1, 2, 2, 1, 50, 16, 16},
                                       testing::Shapes{1, 4, 4, 1, 50, 16, 16}, testing::Shapes{1, 4, 2, 1, 50, 8, 8},
                                       testing::Shapes{1, 4, 2, 1, 39, 16, 16}}) {
    SeenKeys seen;
    const testing::OwnedInputs first({1, 4, 2, 1, 40, 16, 16}, 1), next(other, 1);
    seen.continue_with(first.inputs);
    seen.finish(first.inputs);
    EXPECT_THROW(seen.continue_with(next.inputs), ShapeError);
    EXPECT_EQ(seen.count(), 40);
  }
}

class SeenKeysOfTwo : public ::testing::Test {
 protected:
  SeenKeysOfTwo() {
    float next = 0;
    for (float& x : keys_.span<float>()) x = next++;
    seen_.continue_with(of(4));
    seen_.finish(of(4));
  }
  AttentionInputs of(Index keys) const {
    AttentionInputs inputs;
    inputs.queries = keys_.view().slice(2, 0, 1);
    inputs.keys = inputs.values = keys_.view().slice(2, 0, keys);
    return inputs;
  }

  Tensor keys_{DType::f32, {2, 1, 6, 4}};
  SeenKeys seen_;
};

TEST_F(SeenKeysOfTwo, RefusesOtherExtentsAndFewerKeys) {
  EXPECT_NO_THROW(seen_.continue_with(of(5)));
  EXPECT_THROW(seen_.continue_with(of(3)), ShapeError);
  AttentionInputs one = of(5);
  for (TensorView* view : {&one.queries, &one.keys, &one.values}) *view = view->slice(0, 0, 1);
  EXPECT_THROW(seen_.continue_with(one), ShapeError);
}

TEST_F(SeenKeysOfTwo, RefusesOtherSequences) {
  const float before = keys_.span<float>()[3 * 4];
  keys_.span<float>()[3 * 4] = -1;  // of the first sequence's last key that was read
  EXPECT_THROW(seen_.continue_with(of(5)), ShapeError);
  seen_.truncate(3);
  EXPECT_EQ(seen_.count(), 3);
  EXPECT_NO_THROW(seen_.continue_with(of(4))) << "key 3 is to be read again";
  keys_.span<float>()[3 * 4] = before;
}

TEST_F(SeenKeysOfTwo, FollowsWhatIsSelected) {
  const std::vector<Index> twice = {1, 1, 0};
  seen_.select(twice);
  EXPECT_EQ(seen_.batch(), 3);
  Tensor three(DType::f32, {3, 1, 6, 4});
  for (std::size_t row = 0; row < 3; ++row) {
    const auto from = keys_.span<float>().subspan(static_cast<std::size_t>(twice[row]) * 24, 24);
    std::copy(from.begin(), from.end(), three.span<float>().begin() + static_cast<std::ptrdiff_t>(row) * 24);
  }
  AttentionInputs inputs;
  inputs.queries = three.view().slice(2, 0, 1);
  inputs.keys = inputs.values = three.view().slice(2, 0, 5);
  EXPECT_NO_THROW(seen_.continue_with(inputs));
  EXPECT_THROW(seen_.select(std::vector<Index>{3}), ShapeError);
}

}  // namespace
}  // namespace reticle
