// Fixtures of tests that need a GPU or the emulated device, and problems whose tensors lie there.
#pragma once

#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/core/cuda/tensor.hpp>

#include "support/cuda/problem.hpp"

namespace reticle::cuda {

/// Skips, and says why, where there is no GPU.
class CudaDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (device_count() == 0) GTEST_SKIP() << "no GPU: " << why_unavailable();
  }
};

/// Each kernel once, over so few keys that compute-sanitizer's tools take seconds.
class CudaSmall : public CudaDevice {
 protected:
  static Case small(Index rows) {
    Case c;
    c.batch = 1;
    c.heads = 4;
    c.rows = rows;
    c.keys = 150;
    c.causal = true;
    return c;
  }
};

inline constexpr Device kGpu{Device::Kind::cuda, 0};

/// A view of device memory, laid out as `view` is.
inline TensorView on_gpu(TensorView view, const void* data) {
  view.data = data;
  view.device = kGpu;
  return view;
}

/// A problem's tensors in device memory.
template <class T>
struct OnDevice {
  explicit OnDevice(const Problem<T>& drawn)
      : queries(Buffer::copy_of(drawn.queries().template span<T>(), nullptr)),
        kv(Buffer::copy_of(drawn.kv().template span<T>(), nullptr)),
        bias(Buffer::copy_of(drawn.bias().template span<float>(), nullptr)),
        inputs(drawn.inputs) {
    const auto* const host = static_cast<const T*>(drawn.kv().view().data);
    const auto moved = [&](const TensorView& view) {
      return on_gpu(view, kv.template as<T>() + (static_cast<const T*>(view.data) - host));
    };
    if (inputs.attention_mask) inputs.attention_mask = on_gpu(*inputs.attention_mask, bias.template as<float>());
    inputs.queries = on_gpu(inputs.queries, queries.template as<T>());
    inputs.keys = moved(inputs.keys);
    inputs.values = moved(inputs.values);
  }
  Buffer queries, kv, bias;
  AttentionInputs inputs;
};

/// A tensor of the GPU as the host has it.
template <class T>
std::vector<T> on_host(const Tensor& tensor) {
  const Tensor copy = copy_to(tensor.view(), {});
  const auto values = copy.span<T>();
  return {values.begin(), values.end()};
}

/// What `count` elements of device memory hold.
template <class T>
std::vector<T> on_host(const Buffer& buffer, std::size_t count) {
  std::vector<T> values(count);
  copy_to_host(values.data(), buffer.as<T>(), count * sizeof(T), nullptr);
  return values;
}

/// What a plan computes of a problem, beside what the CPU does.
template <class T>
void expect_plan_computes(const AttentionResult& expected, const DevicePlan& plan, const Problem<T>& drawn,
                          const OnDevice<T>& on_device, double tolerance, double lse_tolerance) {
  const Buffer out(drawn.output_size() * sizeof(T), nullptr), logs(drawn.lse_size() * sizeof(float), nullptr);
  plan.run(on_device.inputs, out.as<T>(), logs.as<float>(), nullptr, drawn.options());
  expect_equal(expected, on_host<T>(out, drawn.output_size()), on_host<float>(logs, drawn.lse_size()), tolerance,
               lse_tolerance);
}

}  // namespace reticle::cuda
