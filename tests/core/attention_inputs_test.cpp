#include <string>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/executor.hpp>
#include <reticle/attention/inference_handler.hpp>
#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/tensor/tensor.hpp>

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
  const std::string wanted = "queries: on GPU 1; expected a tensor on the CPU";
  const Mask full = Mask::full(inputs_.shape());
  EXPECT_EQ(refusal([&] { attention(inputs_, full); }), wanted);
  EXPECT_EQ(refusal([&] {
              attention_backward(inputs_, full, tensor_.view(), tensor_.view().slice(3, 0, 1), tensor_.view());
            }),
            wanted);
  const auto sparse = SparseAttention::from_json(R"({"maskers": [{"type": "sink"}]})");
  SequenceState state;
  EXPECT_EQ(refusal([&] { sparse.mask(inputs_, state); }), wanted);
  InferenceState sequence;
  EXPECT_EQ(refusal([&] { InferenceHandler(sparse, sparse).attend(inputs_, sequence); }), wanted);
  EXPECT_EQ(refusal([&] { Tensor::copy(inputs_.queries, DType::f32); }),
            "copy: on GPU 1; expected a tensor on the CPU");
}

}  // namespace
}  // namespace reticle
