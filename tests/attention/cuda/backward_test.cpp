#include <cmath>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/cuda/backward.hpp>
#include <reticle/core/mask/convert.hpp>

#include "support/cuda/on_device.hpp"
#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

template <class T>
void compare_gradients(const Case& c, Index head_dim, const Mask& mask, bool tiles, double tolerance) {
  const Problem<T> drawn(c, head_dim);
  const AttentionResult result = attention(drawn.inputs, mask, drawn.options());
  Tensor d_output(dtype_of<T>, {c.batch, c.heads, c.rows, head_dim});
  std::mt19937 random(11);
  std::normal_distribution<float> draw;
  for (T& x : d_output.span<T>()) x = from_float<T>(draw(random));
  const AttentionGradients expected =
      attention_backward(drawn.inputs, mask, result.output.view(), result.lse.view(), d_output.view(), drawn.options());
  const OnDevice<T> on_device(drawn);
  const Buffer output = Buffer::copy_of(result.output.template span<T>(), nullptr),
               upstream = Buffer::copy_of(std::as_const(d_output).template span<T>(), nullptr),
               lse = Buffer::copy_of(result.lse.span<float>(), nullptr);
  const TensorView output_view = on_gpu(result.output.view(), output.template as<T>()),
                   upstream_view = on_gpu(d_output.view(), upstream.template as<T>());
  const Array<float> dense = to_dense(mask);
  const std::vector<std::uint8_t> bytes(dense.begin(), dense.end());
  const Buffer attended = Buffer::copy_of(std::span<const std::uint8_t>(bytes), nullptr);
  std::vector<BackwardPlan> plans = {BackwardPlan(on_device.inputs, mask, nullptr, drawn.options())};
  if (tiles && !mask.weighted()) {
    plans.emplace_back(on_device.inputs,
                       AttendedBytes{on_gpu(TensorView(nullptr, DType::u8, {c.batch, c.heads, c.rows, c.keys}),
                                            attended.as<std::uint8_t>())},
                       nullptr, drawn.options());
    plans.emplace_back(on_device.inputs, mask.to(kGpu), nullptr, drawn.options());
  }
  for (const BackwardPlan& plan : plans) {
    EXPECT_EQ(plan.uses_tiles(), tiles);
    std::vector<std::vector<float>> first;
    for (int repeat = 0; repeat < 2; ++repeat) {
      std::vector<Buffer> gradients;
      std::vector<std::vector<float>> found;
      for (const Tensor* wanted : {&expected.queries, &expected.keys, &expected.values}) {
        found.emplace_back(static_cast<std::size_t>(wanted->view().elements()), std::nanf(""));
        gradients.push_back(Buffer::copy_of(std::span<const float>(found.back()), nullptr));
      }
      plan.run(on_device.inputs, output_view, lse.as<float>(), upstream_view, gradients[0].as<float>(),
               gradients[1].as<float>(), gradients[2].as<float>(), nullptr);
      std::size_t i = 0;
      for (const Tensor* wanted : {&expected.queries, &expected.keys, &expected.values}) {
        gradients[i].copy_to(found[i].data(), nullptr);
        const auto values = wanted->span<float>();
        for (std::size_t e = 0; e < values.size(); ++e)
          ASSERT_NEAR(found[i][e], values[e], tolerance * (1 + std::abs(values[e]))) << "gradient " << i << ", " << e;
        ++i;
      }
      if (repeat == 1) {
        EXPECT_EQ(found, first) << "the same bits every time";
      }
      first = std::move(found);
    }
  }
}

TEST_F(CudaDevice, GradientsAreThoseOfTheCpu) {
  for (const Index head_dim : {64, 128}) {
    for (const double density : {0.0, 0.05, 1.0}) {
      Case c;
      c.heads = 6;
      c.rows = 90;
      c.keys = 300;
      c.causal = density == 1.0;
      c.sinks = density == 0.05;
      const Mask mask = random_mask(c, density, 2);
      compare_gradients<BFloat16>(c, head_dim, mask, true, 0.03);
      compare_gradients<Half>(c, head_dim, mask, true, 0.004);
      compare_gradients<float>(c, head_dim, mask, false, 1e-4);
      compare_gradients<Half>(c, head_dim, sampled_mask(c, density, 2, 3), true, 0.004);
    }
  }
}

TEST_F(CudaDevice, GradientsTakeAttentionMasksIn) {
  Case c;
  c.biased = true;
  c.rows = 30;
  c.keys = 700;
  compare_gradients<float>(c, 64, random_mask(c, 0.3, 2), false, 1e-4);
  compare_gradients<Half>(c, 64, random_mask(c, 0.3, 2), true, 0.004);
}

TEST_F(CudaDevice, GradientsThatAGpuDoesNotHaveAreRefusedByName) {
  using reticle::testing::message_of;
  Case c;
  c.rows = 20;
  const Problem<float> drawn(c, 64);
  const Problem<Half> half(c, 64);
  const OnDevice<float> on_device(drawn);
  const OnDevice<Half> on_device_half(half);
  const Mask mask = random_mask(c, 0.3, 2);
  EXPECT_TRUE(BackwardPlan::serves(on_device.inputs, mask));
  EXPECT_FALSE(BackwardPlan::serves(on_device.inputs, mask.to(kGpu))) << "F32";
  EXPECT_TRUE(BackwardPlan::serves(on_device_half.inputs, mask.to(kGpu)));
  EXPECT_FALSE(BackwardPlan::serves(on_device_half.inputs, sampled_mask(c, 0.4, 1, 3).to(kGpu))) << "p";
  EXPECT_EQ(message_of<DeviceError>([&] { BackwardPlan(on_device.inputs, Band{}, nullptr); }),
            "attention_backward: over a mask that is on the GPU, gradients need F16 or BF16, head_dim 64 or 128, 16 "
            "rows to a KV head and no p; give a Mask of the host");
  AttentionOptions options;
  const std::vector<float> sinks(4);
  options.sink_logits = sinks;
  const TensorView result = on_device.inputs.queries;
  EXPECT_EQ(
      message_of<DeviceError>([&] { attention_backward(on_device.inputs, mask, result, result, result, options); }),
      "attention_backward: sink logits are not supported on a GPU; compute these gradients on the CPU");
  const BackwardPlan plan(on_device.inputs, mask, nullptr);
  EXPECT_EQ(message_of<ShapeError>([&] {
              plan.run(on_device.inputs, on_device.inputs.keys, nullptr, result, nullptr, nullptr, nullptr, nullptr);
            }),
            "attention_backward: output F32 (2, 2, 200, 64) is not of queries F32 (2, 4, 20, 64)");
}

TEST_F(CudaSmall, GradientsByTiles) {
  compare_gradients<BFloat16>(small(70), 64, random_mask(small(70), 0.5, 2), true, 0.03);
}

TEST_F(CudaSmall, GradientsByLists) {
  compare_gradients<float>(small(20), 64, random_mask(small(20), 0.5, 2), false, 1e-4);
}

}  // namespace
}  // namespace reticle::cuda
