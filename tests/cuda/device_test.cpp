// On a GPU: the same results as on the CPU. Where there is none these skip, and say why.
#include <cmath>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/backward.hpp>
#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/base/warning.hpp>
#include <reticle/core/cuda/choose.hpp>
#include <reticle/core/cuda/tensor.hpp>
#include <reticle/core/cuda/top_k.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>
#include <reticle/core/ops/select.hpp>

#include "cuda/hash_weights.hpp"
#include "cuda/problem.hpp"
#include "support/files.hpp"

namespace reticle::cuda {
namespace {

class CudaDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (device_count() == 0) GTEST_SKIP() << "no GPU: " << why_unavailable();
  }
};

constexpr Device kGpu{Device::Kind::cuda, 0};

/// A view of device memory, laid out as `view` is.
TensorView on_gpu(TensorView view, const void* data) {
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
  compare_gradients<float>(c, 64, random_mask(c, 0.3, 2), false, 1e-4);
  compare_gradients<Half>(c, 64, random_mask(c, 0.3, 2), true, 0.004);
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

TEST_F(CudaDevice, HeadsThatAttendAlikeShareListsHoweverTheMaskComes) {
  for (const Index heads : {2, 4, 8, 16}) {
    Case c;
    c.heads = heads;
    c.rows = 1;
    c.keys = 5000;
    Case one_head = c;
    one_head.batch = one_head.heads = 1;
    const Mask pattern = random_mask(one_head, 0.2, 4);
    const Mask mask = broadcast_to(pattern, {c.batch, c.heads, c.rows, c.keys});
    const Array<float> dense = to_dense(pattern);
    const std::vector<std::uint8_t> bytes(dense.begin(), dense.end());
    const Buffer copy = Buffer::copy_of(std::span<const std::uint8_t>(bytes), nullptr);
    const TensorView attended = on_gpu(TensorView(nullptr, DType::u8, {1, 1, 1, c.keys}), copy.as<std::uint8_t>());

    const Problem<float> drawn(c, 64);
    const AttentionResult expected = attention(drawn.inputs, mask, drawn.options());
    const OnDevice<float> on_device(drawn);
    for (const DevicePlan& plan :
         {DevicePlan(on_device.inputs, mask, nullptr), DevicePlan(on_device.inputs, mask.to(kGpu), nullptr),
          DevicePlan(on_device.inputs, AttendedBytes{attended}, nullptr)}) {
      const Buffer out(drawn.output_size() * sizeof(float), nullptr), logs(drawn.lse_size() * sizeof(float), nullptr);
      plan.run(on_device.inputs, out.as<float>(), logs.as<float>(), nullptr);
      std::vector<float> found(drawn.output_size()), found_lse(drawn.lse_size());
      out.copy_to(found.data(), nullptr);
      logs.copy_to(found_lse.data(), nullptr);
      expect_equal(expected, found, found_lse, 1e-4, 1e-3);
    }
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

TEST_F(CudaDevice, MasksCombineAsOnTheCpuAndArePlanned) {
  for (const bool weighted : {false, true}) {
    for (const double density : {0.01, 0.3}) {
      Case c;
      c.rows = 40;
      c.keys = 3000;
      c.causal = true;
      c.weighted = weighted;
      const Mask a = random_mask(c, density, 1);
      c.weighted = false;
      const Mask b = random_mask(c, 0.1, 2);
      const Mask window = Mask::intervals(a.shape().one_head(), [](RowId row) {
        const auto end = static_cast<std::int32_t>(2961 + row.query);
        return Interval{end - 100, end};
      });
      const Mask on_a = a.to(kGpu), on_b = b.to(kGpu), on_window = window.to(kGpu);
      for (const Mask& result :
           {merge(on_a, on_b), merge(on_a, on_b, MergeRule::independent), intersect(on_a, on_b), subtract(on_a, on_b)})
        EXPECT_EQ(result.device(), kGpu);
      EXPECT_EQ(merge(on_a, on_b), merge(a, b)) << "masks are compared on the host";
      EXPECT_EQ(merge(on_a, on_b, MergeRule::independent), merge(a, b, MergeRule::independent));
      EXPECT_EQ(intersect(on_a, on_b), intersect(a, b));
      EXPECT_EQ(subtract(on_a, on_b), subtract(a, b));
      if (!weighted) {
        EXPECT_EQ(complement(on_a), complement(a));
      }
      for (const Mask& on_device : {on_a, on_b, on_window}) EXPECT_EQ(on_device.nnz(), on_device.to({}).nnz());
      const Mask both = merge(on_a, on_window, MergeRule::max);
      const Mask expected_mask = merge(a, window, MergeRule::max);
      EXPECT_EQ(both, expected_mask);

      const Problem<BFloat16> drawn(c, 128);
      const AttentionResult expected = attention(drawn.inputs, expected_mask, drawn.options());
      const OnDevice<BFloat16> on_device(drawn);
      const DevicePlan plan(on_device.inputs, both, nullptr);
      EXPECT_EQ(plan.uses_tiles(), !weighted);
      const Buffer out(drawn.output_size() * sizeof(BFloat16), nullptr),
          logs(drawn.lse_size() * sizeof(float), nullptr);
      plan.run(on_device.inputs, out.as<BFloat16>(), logs.as<float>(), nullptr, drawn.options());
      std::vector<BFloat16> found(drawn.output_size());
      std::vector<float> found_lse(drawn.lse_size());
      out.copy_to(found.data(), nullptr);
      logs.copy_to(found_lse.data(), nullptr);
      expect_equal(expected, found, found_lse, 0.03, 1e-3);
    }
  }
}

/// A tensor of the GPU as the host has it.
template <class T>
std::vector<T> on_host(const Tensor& tensor) {
  const Tensor copy = copy_to(tensor.view(), {});
  const auto values = copy.span<T>();
  return {values.begin(), values.end()};
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

/// Prompts and steps of a sequence, through the same calls as on the CPU.
void expect_a_pipeline_decodes_alike(const std::string& config, Index head_dim, bool warns) {
  std::vector<std::string> warned;
  set_warning_handler([&](const std::string& message) { warned.push_back(message); });
  const SparseAttention sparse = SparseAttention::from_json(config);
  SequenceState here(Recording::figures), there(Recording::figures);
  Case c;
  c.rows = c.keys = 70;
  const Problem<float> drawn(c, head_dim);
  const OnDevice<float> on_device(drawn);
  // A prompt of 60, steps, three of which are taken back (negative: truncate), and come again.
  for (const Index length : {60, 61, 62, 63, 64, 65, -62, 63, 64, 65, 66, 67}) {
    if (length < 0) {
      here.truncate(-length);
      there.truncate(-length);
      continue;
    }
    for (const int layer : {0, 1}) {
      const auto part = [&](const AttentionInputs& whole) {
        AttentionInputs inputs = whole.rows(length == 60 ? 0 : length - 1, length);
        inputs.layer = layer;
        inputs.causal = true;
        inputs.stage = length == 60 ? Stage::prefill : Stage::generation;
        return inputs;
      };
      const AttentionResult expected = sparse.attend(part(drawn.inputs), here).attention;
      const AttentionResult found = sparse.attend(part(on_device.inputs), there).attention;
      expect_equal(expected, on_host<float>(found.output), on_host<float>(found.lse), 1e-4, 1e-3);
    }
  }
  for (const Stage stage : {Stage::prefill, Stage::generation})
    EXPECT_EQ(here.recorded(stage).sparsity, there.recorded(stage).sparsity) << config;
  EXPECT_EQ(!warned.empty(), warns) << config;
  set_warning_handler({});
}

TEST_F(CudaDevice, PipelinesDecodeThroughTheCallsOfTheCpu) {
  const std::string fixed = R"({"type": "sink", "sink_size": 3}, {"type": "local", "window_size": 5}, )";
  for (const char* last : {R"({"type": "oracle_top_k", "heavy_size": 9})", R"({"type": "oracle_top_p", "top_p": 0.4})",
                           R"({"type": "quest_top_k", "heavy_size": 16, "page_size": 4})",
                           R"({"type": "random_sampling", "sampling_rate": 0.3})"}) {
    const std::string maskers = R"({"maskers": [)" + fixed + last + "]}";
    for (const Index head_dim : {64, 40}) {
      expect_a_pipeline_decodes_alike(R"({"prefill": {"maskers": []}, "generation": )" + maskers + "}", head_dim,
                                      false);
      expect_a_pipeline_decodes_alike(maskers, head_dim, true);  // the prompt's keys are chosen on the host
    }
  }
  expect_a_pipeline_decodes_alike(R"({"maskers": []})", 64, false);
  expect_a_pipeline_decodes_alike(R"({"prefill": {"maskers": []}, "generation": {"maskers": [{"type": "moba"}]}})", 64,
                                  true);
  expect_a_pipeline_decodes_alike(R"({"prefill": {"maskers": []}, "generation": {"maskers": [{"type": "snap_kv"}]}})",
                                  64, true);
}

/// Maskers that choose by rules, one of each kind. Hashes have weights for 4 heads of 64 in `folder`.
std::vector<std::string> maskers_by_rules(const reticle::testing::TemporaryFolder& folder) {
  return {R"({"type": "oracle_top_k", "heavy_size": 100})",
          R"({"type": "oracle_top_p", "top_p": 0.5})",
          R"({"type": "quest_top_k", "heavy_size": 200})",
          R"({"type": "adaptive_sampling", "epsilon": 0.2})",
          R"({"type": "random_sampling", "sampling_rate": 0.2})",
          hashing(folder / "w", 0, 4, 100, 64, "relu"),
          R"({"type": "pq_cache", "heavy_size": 100})",
          R"({"type": "magic_pig", "lsh_l": 40})",
          R"({"type": "test_rules_only"})"};
}

TEST_F(CudaDevice, MasksOfStepsLieThereAndAreTheCpusBitForBitWhereScoresAgree) {
  std::mt19937 random(8);
  std::uniform_int_distribution<int> draw(-3, 3);  // products are exact in any order, and many tie
  Tensor queries(DType::f32, {2, 4, 1, 64}), keys(DType::f32, {2, 2, 700, 64});
  for (Tensor* tensor : {&queries, &keys}) {
    for (float& x : tensor->span<float>()) x = static_cast<float>(draw(random));
  }
  AttentionInputs here;
  here.queries = queries.view();
  here.keys = here.values = keys.view();
  here.scaling = 0.0625f;
  here.causal = true;
  here.stage = Stage::generation;
  const Tensor queries_there = copy_to(here.queries, kGpu), keys_there = copy_to(here.keys, kGpu);
  AttentionInputs there = here;
  there.queries = queries_there.view();
  there.keys = there.values = keys_there.view();
  const reticle::testing::TemporaryFolder folder;
  for (const std::string& added : maskers_by_rules(folder)) {
    for (const std::string before : {"", R"({"type": "sink", "sink_size": 5}, {"type": "local", "window_size": 9}, )",
                                     R"({"type": "local", "window_size": 20, "dilation": 3}, )"}) {
      const auto sparse = SparseAttention::from_json(R"({"seed": 4, "maskers": [)" + before + added + "]}");
      SequenceState a, b;
      const Mask expected = sparse.mask(here, a), found = sparse.mask(there, b);
      EXPECT_EQ(found.device(), kGpu);
      EXPECT_EQ(found, expected) << before << added;
    }
  }
  SequenceState state;
  EXPECT_THROW(SparseAttention::from_json(R"({"maskers": [{"type": "sink"}]})").run(there, state), DeviceError)
      << "figures are of the CPU";
}

TEST_F(CudaDevice, TopKSelectsWhatTheCpuSelects) {
  std::mt19937 random(3);
  std::normal_distribution<float> draw;
  for (const std::size_t count : {100u, 5000u, 131072u}) {
    constexpr std::size_t kRows = 5;
    std::vector<float> scores(kRows * count);
    for (float& score : scores) score = draw(random);
    for (std::size_t i = 0; i < count; ++i) scores[i] = 1;  // the first row has ties only
    for (const Index k : {1, 256, 3000}) {
      const auto width = static_cast<std::size_t>(k);
      const Buffer device = Buffer::copy_of(std::span<const float>(scores), nullptr);
      const Buffer indices(kRows * width * sizeof(std::int32_t), nullptr),
          counts(kRows * sizeof(std::int32_t), nullptr);
      top_k(device.as<float>(), kRows, static_cast<Index>(count), k, indices.as<std::int32_t>(),
            counts.as<std::int32_t>(), nullptr);
      std::vector<std::int32_t> found(kRows * width), found_counts(kRows), expected;
      indices.copy_to(found.data(), nullptr);
      counts.copy_to(found_counts.data(), nullptr);
      for (std::size_t row = 0; row < kRows; ++row) {
        expected.clear();  // top_k appends
        reticle::top_k(std::span<const float>(scores).subspan(row * count, count), k, expected);
        ASSERT_EQ(static_cast<std::size_t>(found_counts[row]), expected.size());
        for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_EQ(found[row * width + i], expected[i]);
      }
    }
  }
}

void expect_rules_choose_as_the_pipeline(bool biased, Index keys = 4000) {
  Case c;
  c.rows = 1;
  c.keys = keys;
  c.biased = biased;
  const Problem<float> drawn(c, 64);
  const OnDevice<float> on_device(drawn);
  const auto rows = static_cast<std::size_t>(c.batch * c.heads);
  const reticle::testing::TemporaryFolder folder;
  for (const std::string& added : maskers_by_rules(folder)) {
    const auto sparse = SparseAttention::from_json(
        R"({"seed": 4, "maskers": [{"type": "sink", "sink_size": 5}, {"type": "local", "window_size": 9}, )" + added +
        "]}");
    SequenceState state;
    const Mask expected = sparse.mask(drawn.inputs, state);
    const KeyChooser chooser(c.batch * c.heads, c.keys, nullptr);
    const Buffer counts(rows * sizeof(std::int32_t), nullptr);
    const KeyLists lists =
        chooser.choose(on_device.inputs, sparse.rules(Stage::prefill, 0, c.keys), nullptr, counts.as<std::int32_t>());
    std::vector<std::int32_t> found(rows);
    counts.copy_to(found.data(), nullptr);
    for (std::size_t row = 0; row < rows; ++row) {
      std::vector<reticle::Run> runs;
      expected.row(expected.shape().row_of_logical(static_cast<Index>(row)), runs);
      Index wanted = 0;
      for (const reticle::Run& run : runs) wanted += run.end - run.begin;
      EXPECT_EQ(found[row], wanted) << added << ", row " << row;
    }
    const AttentionResult result = attention(drawn.inputs, expected);
    const Buffer out(rows * 64 * sizeof(float), nullptr), logs(rows * sizeof(float), nullptr);
    KeyListAttention(c.batch * c.heads, nullptr)
        .run(on_device.inputs, lists, out.as<float>(), logs.as<float>(), nullptr);
    std::vector<float> output(rows * 64), lse(rows);
    out.copy_to(output.data(), nullptr);
    logs.copy_to(lse.data(), nullptr);
    expect_equal(result, output, lse, 1e-4, 1e-3);
  }
}

TEST_F(CudaDevice, RulesChooseWhatThePipelineChooses) { expect_rules_choose_as_the_pipeline(false); }

TEST_F(CudaDevice, RulesChooseUnderAttentionMasks) { expect_rules_choose_as_the_pipeline(true); }

/// The kernels of attention, gradients, choice, masks and plans, over so few keys that compute-sanitizer's tools take
/// seconds.
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

TEST_F(CudaSmall, GradientsByTiles) {
  compare_gradients<BFloat16>(small(70), 64, random_mask(small(70), 0.5, 2), true, 0.03);
}

TEST_F(CudaSmall, GradientsByLists) {
  compare_gradients<float>(small(20), 64, random_mask(small(20), 0.5, 2), false, 1e-4);
}

TEST_F(CudaSmall, MasksAndPlans) {
  Case c = small(40);
  const Mask a = random_mask(c, 0.3, 1), b = random_mask(c, 0.02, 2);
  const Mask on_a = a.to(kGpu), on_b = b.to(kGpu);
  EXPECT_EQ(merge(on_a, on_b), merge(a, b));
  EXPECT_EQ(intersect(on_b, on_b), b);
  EXPECT_EQ(on_b.nnz(), b.nnz());
  const Problem<BFloat16> drawn(c, 64);
  const AttentionResult expected = attention(drawn.inputs, a, drawn.options());
  const OnDevice<BFloat16> on_device(drawn);
  const DevicePlan plan(on_device.inputs, on_a, nullptr);
  const Buffer out(drawn.output_size() * sizeof(BFloat16), nullptr), logs(drawn.lse_size() * sizeof(float), nullptr);
  plan.run(on_device.inputs, out.as<BFloat16>(), logs.as<float>(), nullptr, drawn.options());
  std::vector<BFloat16> found(drawn.output_size());
  std::vector<float> found_lse(drawn.lse_size());
  out.copy_to(found.data(), nullptr);
  logs.copy_to(found_lse.data(), nullptr);
  expect_equal(expected, found, found_lse, 0.03, 3e-3);
}

TEST_F(CudaSmall, Choices) { expect_rules_choose_as_the_pipeline(false, 300); }

TEST(CudaUnavailable, IsSaidWhenADeviceIsAskedFor) {
  if (device_count() > 0) GTEST_SKIP() << "there is a GPU";
  EXPECT_NE(std::string(why_unavailable()), "");
  Case c;
  const Problem<float> drawn(c, 64);
  AttentionInputs inputs = drawn.inputs;
  for (TensorView* view : {&inputs.queries, &inputs.keys, &inputs.values}) *view = on_gpu(*view, view->data);
  const auto message_of = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const DeviceError& error) {
      return error.what();
    }
    return "";
  };
  const Mask mask = random_mask(c, 1, 1);
  EXPECT_TRUE(message_of([&] { DevicePlan(inputs, mask, nullptr); }).starts_with("CUDA: "));
  EXPECT_TRUE(message_of([&] { BackwardPlan(inputs, mask, nullptr); }).starts_with("CUDA: "));
  EXPECT_EQ(message_of([&] { DevicePlan(drawn.inputs, mask, nullptr); }),
            "queries: on the CPU; expected a tensor on a GPU");
  EXPECT_THROW(KeyChooser(1, 10, nullptr), DeviceError);
  EXPECT_THROW(Buffer(16, nullptr), DeviceError);
}

}  // namespace
}  // namespace reticle::cuda
