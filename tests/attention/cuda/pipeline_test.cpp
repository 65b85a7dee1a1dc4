#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/base/warning.hpp>

#include "support/cuda/on_device.hpp"
#include "support/cuda/rules.hpp"
#include "support/files.hpp"

namespace reticle::cuda {
namespace {

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

TEST_F(CudaDevice, MasksOfStepsLieThereAndAreTheCpusBitForBitWhereScoresAgree) {
  const WholeNumbers numbers(8, 700);
  const AttentionInputs here = numbers.here(700), there = numbers.there(700);
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

}  // namespace
}  // namespace reticle::cuda
