#include <cmath>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/cuda/attention.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>

#include "support/cuda/on_device.hpp"
#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

template <class T>
void compare_with_cpu(const Case& c, Index head_dim, const Mask& mask, bool tiles, double tolerance,
                      double lse_tolerance) {
  const Problem<T> drawn(c, head_dim);
  const AttentionResult expected = attention(drawn.inputs, mask, drawn.options());
  const OnDevice<T> on_device(drawn);
  const AttentionInputs& inputs = on_device.inputs;
  std::vector<T> output(drawn.output_size(), from_float<T>(std::nanf("")));
  std::vector<float> lse(drawn.lse_size(), std::nanf(""));
  const DevicePlan plan(inputs, mask, nullptr);
  EXPECT_EQ(plan.uses_tiles(), tiles);
  for (int repeat = 0; repeat < 3; ++repeat) {  // a plan serves again
    Buffer out = Buffer::copy_of(std::span<const T>(output), nullptr),
           logs = Buffer::copy_of(std::span<const float>(lse), nullptr);
    plan.run(inputs, out.template as<T>(), logs.template as<float>(), nullptr, drawn.options());
    std::vector<T> found(output.size());
    std::vector<float> found_lse(lse.size());
    out.copy_to(found.data(), nullptr);
    logs.copy_to(found_lse.data(), nullptr);
    expect_equal(expected, found, found_lse, tolerance, lse_tolerance);
  }
}

TEST_F(CudaDevice, ListsComputeWhatTheCpuComputes) {
  for (const Index head_dim : {64, 128, 256}) {
    for (const double density : {0.0, 0.01, 0.3, 1.0}) {
      Case c;
      c.keys = 5000;
      c.weighted = density == 0.3;
      compare_with_cpu<float>(c, head_dim, random_mask(c, density, 1), false, 1e-4, 1e-3);
      compare_with_cpu<BFloat16>(c, head_dim, random_mask(c, density, 1), false, 0.03, 1e-3);
      compare_with_cpu<Half>(c, head_dim, random_mask(c, density, 1), false, 0.004, 1e-3);
    }
  }
}

TEST_F(CudaDevice, AttentionMasksAddAndForbid) {
  Case c;
  c.biased = true;
  c.rows = 30;
  c.keys = 700;
  compare_with_cpu<float>(c, 64, random_mask(c, 0.3, 2), false, 1e-4, 1e-3);
  compare_with_cpu<BFloat16>(c, 128, Mask::full({c.batch, c.heads, c.rows, c.keys}), true, 0.03, 3e-3);
  c.rows = 3;
  compare_with_cpu<BFloat16>(c, 128, random_mask(c, 0.3, 2), false, 0.03, 3e-3);
}

TEST_F(CudaDevice, DenseAttentionNeedsNoList) {
  for (const bool causal : {false, true}) {
    Case c;
    c.rows = 40;
    c.keys = 3000;
    c.causal = causal;
    compare_with_cpu<float>(c, 128, Mask::full({c.batch, c.heads, c.rows, c.keys}), false, 1e-4, 1e-3);
    c.rows = 1;
    compare_with_cpu<BFloat16>(c, 64, Mask::full({c.batch, c.heads, c.rows, c.keys}), false, 0.03, 1e-3);
  }
}

TEST_F(CudaDevice, TilesComputeWhatTheCpuComputes) {
  for (const Index head_dim : {64, 128}) {
    for (const double density : {0.0, 0.05, 0.6, 1.0}) {
      Case c;
      c.rows = 150;
      c.keys = 700;
      c.causal = density == 0.6;
      c.sinks = density == 0.05;
      compare_with_cpu<BFloat16>(c, head_dim, random_mask(c, density, 2), true, 0.03, 3e-3);
      compare_with_cpu<Half>(c, head_dim, random_mask(c, density, 2), true, 0.004, 3e-3);
    }
  }
}

TEST_F(CudaDevice, TilesOfSampledMasksComputeWhatTheCpuComputes) {
  for (const int samples : {1, 3}) {
    Case c;
    c.rows = 150;
    c.keys = 700;
    c.causal = true;
    compare_with_cpu<BFloat16>(c, 128, sampled_mask(c, 0.4, samples, 2), true, 0.05, 3e-3);
    compare_with_cpu<Half>(c, 64, sampled_mask(c, 0.4, samples, 2), true, 0.008, 3e-3);
  }
}

TEST_F(CudaDevice, TilesOfFewRowsComputeWhatTheCpuComputes) {
  Case c;
  c.rows = 20;  // 40 to a KV head: not enough for tiles of 128 rows
  c.keys = 700;
  compare_with_cpu<BFloat16>(c, 128, random_mask(c, 0.3, 2), true, 0.03, 3e-3);
}

/// One call, wherever the tensors lie: any head size, any alignment, attention masks of any dtype, any pattern.
TEST_F(CudaDevice, AttentionIsOneCallOnBothDevices) {
  for (const Index head_dim : {64, 40, 96, 200}) {
    Case c;
    c.rows = 20;
    c.keys = 300;
    c.causal = true;
    c.biased = head_dim == 96;
    const Problem<float> drawn(c, head_dim);
    const OnDevice<float> on_device(drawn);
    const Mask mask = random_mask(c, 0.3, 1);
    const Band band{.first_query = 280, .width = 50};
    for (const Pattern& pattern : {Pattern(mask), Pattern(mask.to(kGpu)), Pattern(band)}) {
      const Pattern host = std::holds_alternative<Mask>(pattern) ? Pattern(mask) : pattern;
      const AttentionResult expected = attention(drawn.inputs, host, drawn.options());
      const AttentionResult found = attention(on_device.inputs, pattern, drawn.options());
      EXPECT_EQ(found.output.view().device, kGpu);
      expect_equal(expected, on_host<float>(found.output), on_host<float>(found.lse), 1e-4, 1e-3);
      const AttentionResult planned =
          attention(on_device.inputs, AttentionPlan(on_device.inputs, pattern), drawn.options());
      expect_equal(expected, on_host<float>(planned.output), on_host<float>(planned.lse), 1e-4, 1e-3);
      AttentionOptions plain;
      const AttentionResult result = attention(drawn.inputs, host, plain);
      const Tensor there_output = copy_to(result.output.view(), kGpu), there_lse = copy_to(result.lse.view(), kGpu);
      const AttentionGradients wanted =
          attention_backward(drawn.inputs, host, result.output.view(), result.lse.view(), result.output.view(), plain);
      const AttentionGradients gradients = attention_backward(on_device.inputs, pattern, there_output.view(),
                                                              there_lse.view(), there_output.view(), plain);
      for (const auto& [a, b] : {std::pair{&wanted.queries, &gradients.queries},
                                 {&wanted.keys, &gradients.keys},
                                 {&wanted.values, &gradients.values}}) {
        const auto values = a->span<float>();
        const std::vector<float> there = on_host<float>(*b);
        ASSERT_EQ(values.size(), there.size());
        for (std::size_t i = 0; i < there.size(); ++i)
          ASSERT_NEAR(there[i], values[i], 5e-4 * (1 + std::abs(values[i]))) << head_dim << ", " << i;
      }
    }
  }
}

TEST_F(CudaDevice, PlansAreForOneDevice) {
  Case c;
  c.rows = 20;
  const Problem<float> drawn(c, 64);
  const OnDevice<float> on_device(drawn);
  const Mask mask = random_mask(c, 0.3, 1);
  const AttentionPlan here(drawn.inputs, mask), there(on_device.inputs, mask);
  EXPECT_EQ(there.device(), kGpu);
  EXPECT_THROW(attention(on_device.inputs, here), DeviceError);
  EXPECT_THROW(attention(drawn.inputs, there), DeviceError);
  EXPECT_THROW(restrict_causal(mask.to(kGpu)), DeviceError) << "said by name, not read from device memory";
  EXPECT_THROW(merge(mask, mask.to(kGpu)), DeviceError);
}

TEST_F(CudaDevice, ListsThatWereGivenAreAttendedToOnlyUpToTheirCounts) {
  Case c;
  c.batch = 1;
  c.rows = 1;
  c.keys = 9;
  c.sinks = true;
  const Problem<float> drawn(c, 64);
  const OnDevice<float> on_device(drawn);
  // Heads 0 to 3: keys 1 and 8, none, all of three, one. A number that no key has stands beyond each count.
  const std::vector<std::int32_t> indices = {1, 8, -7, -7, -7, -7, 0, 4, 5, 3, -7, -7}, counts = {2, 0, 3, 1};
  const Buffer there = Buffer::copy_of(std::span<const std::int32_t>(indices), nullptr),
               counted = Buffer::copy_of(std::span<const std::int32_t>(counts), nullptr);
  const KeyLists lists{there.as<std::int32_t>(), counted.as<std::int32_t>(), nullptr, 3};
  std::vector<float> p(4 * 9, 0);
  for (const std::size_t attended : {1u, 8u, 18u, 22u, 23u, 30u}) p[attended] = 1;
  const AttentionResult expected = attention(drawn.inputs, Mask::dense({1, 4, 1, 9}, p), drawn.options());
  const Buffer out(4 * 64 * sizeof(float), nullptr), logs(4 * sizeof(float), nullptr);
  KeyListAttention(4, nullptr)
      .run(on_device.inputs, lists, out.as<float>(), logs.as<float>(), nullptr, drawn.options());
  expect_equal(expected, on_host<float>(out, 4 * 64), on_host<float>(logs, 4), 1e-5, 1e-5);
}

TEST_F(CudaDevice, WhatAGpuDoesNotHaveIsRefusedByName) {
  using reticle::testing::message_of;
  Case c;
  c.rows = 2;
  const Problem<float> drawn(c, 64), wide(c, 320);
  const OnDevice<float> on_device(drawn), on_device_wide(wide);
  const Mask mask = Mask::full({c.batch, c.heads, c.rows, c.keys});
  AttentionOptions options;
  options.weights = true;
  EXPECT_EQ(message_of<DeviceError>([&] { attention(on_device.inputs, mask, options); }),
            "attention: weights are not supported on a GPU");
  EXPECT_EQ(message_of<DeviceError>([&] { attention(on_device_wide.inputs, mask); }),
            "attention: head_dim is 320, value_dim 320; on a GPU both are 64, 128 or 256, and equal");
  AttentionInputs mixed = on_device.inputs;
  mixed.keys.dtype = DType::f16;
  EXPECT_EQ(message_of<DeviceError>([&] { attention(mixed, mask); }), "keys: on a GPU all tensors have one dtype");
  const DevicePlan plan(on_device.inputs, mask, nullptr);
  AttentionInputs causal = on_device.inputs;
  causal.causal = true;
  EXPECT_EQ(message_of<ShapeError>([&] { plan.run(causal, nullptr, nullptr, nullptr); }),
            "attention: queries F32 (2, 4, 2, 64), keys F32 (2, 2, 200, 64) and values F32 (2, 2, 200, 64) are not "
            "those that the plan was made for, or there is an attention mask here or there only");
  EXPECT_EQ(message_of<ValueError>([] { KeyListAttention(0, nullptr); }),
            "attention over lists: for 0 rows; expected at least 1");
  EXPECT_EQ(message_of<ShapeError>(
                [&] { KeyListAttention(15, nullptr).run(on_device.inputs, {}, nullptr, nullptr, nullptr); }),
            "attention over lists: queries F32 (2, 4, 2, 64) and values F32 (2, 2, 200, 64); expected at most 15 rows, "
            "and values of the queries' head_dim");
}

TEST_F(CudaSmall, Lists) {
  compare_with_cpu<float>(small(1), 64, random_mask(small(1), 0.6, 1), false, 1e-4, 1e-3);
  compare_with_cpu<BFloat16>(small(1), 128, Mask::full({1, 4, 1, 150}), false, 0.03, 3e-3);
}

TEST_F(CudaSmall, WideTiles) {
  compare_with_cpu<BFloat16>(small(70), 128, random_mask(small(70), 0.5, 2), true, 0.03, 3e-3);
}

TEST_F(CudaSmall, NarrowTiles) {
  compare_with_cpu<Half>(small(20), 64, random_mask(small(20), 0.5, 2), true, 0.004, 3e-3);
}

}  // namespace
}  // namespace reticle::cuda
