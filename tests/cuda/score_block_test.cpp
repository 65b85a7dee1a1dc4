// Decoding over sinks, a window and the best other keys as the GPU does it - scores, selection, attention - run on the
// CPU.
#include <memory>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/cuda/score_block.hpp>
#include <reticle/core/cuda/top_k_block.hpp>

#include "cuda/problem.hpp"

namespace reticle::cuda {
namespace {

struct Chosen {
  int sinks, window, heavy;
};

template <class T, int head_dim>
void compare_with_pipeline(const Case& c, const Chosen& chosen, double tolerance) {
  const Problem<T> drawn(c, head_dim);
  const AttentionInputs& inputs = drawn.inputs;
  const std::string config = R"({"causal": true, "maskers": [{"type": "sink", "sink_size": )" +
                             std::to_string(chosen.sinks) + R"(}, {"type": "local", "window_size": )" +
                             std::to_string(chosen.window) + R"(}, {"type": "oracle_top_k", "heavy_size": )" +
                             std::to_string(chosen.heavy) + "}]}";
  SequenceState state;
  const SparseAttentionResult expected = SparseAttention::from_json(config).run(inputs, state);

  const auto rows = static_cast<int>(c.batch * c.heads);
  std::vector<float> scores(static_cast<std::size_t>(rows * c.keys), std::nanf(""));
  ScoreProblem score;
  score.queries = inputs.queries.data;
  score.keys = inputs.keys.data;
  score.query_strides = strides_of(inputs.queries);
  score.key_strides = strides_of(inputs.keys);
  score.heads = static_cast<int>(c.heads);
  score.kv_heads = static_cast<int>(c.kv_heads);
  score.key_count = static_cast<int>(c.keys);
  score.scaling = inputs.scaling;
  score.sinks = chosen.sinks;
  score.window = chosen.window;
  score.causal = true;
  score.scores = scores.data();
  const HostBlock scoring(kScoreThreads), selecting(kTopKThreads), attending(kDecodeThreads);
  for (int row = 0; row < rows; ++row) {
    for (int part = 0; part * kScoreKeys < score.key_count; ++part) score_part<T, head_dim>(scoring, score, row, part);
  }
  const int list =
      static_cast<int>(std::min<Index>(c.keys, std::min<Index>(c.keys, chosen.sinks + chosen.window) + chosen.heavy));
  std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * list)), counts(static_cast<std::size_t>(rows));
  const auto selection = std::make_unique<TopKShared>();
  for (int row = 0; row < rows; ++row) {
    counts[static_cast<std::size_t>(row)] =
        top_k_row(selecting, *selection, &scores[static_cast<std::size_t>(row * c.keys)], c.keys, list,
                  &indices[static_cast<std::size_t>(row * list)]);
  }
  std::vector<Run> runs;
  for (int row = 0; row < rows; ++row) {
    runs.clear();
    expected.mask.row({row / c.heads, row % c.heads, 0}, runs);
    std::vector<std::int32_t> wanted;
    for (const Run& run : runs) {
      for (std::int32_t key = run.begin; key < run.end; ++key) wanted.push_back(key);
    }
    const auto* const begin = &indices[static_cast<std::size_t>(row * list)];
    ASSERT_EQ(std::vector<std::int32_t>(begin, begin + counts[static_cast<std::size_t>(row)]), wanted) << "row " << row;
  }

  std::vector<T> output(drawn.output_size());
  std::vector<float> lse(drawn.lse_size());
  auto decode = problem_of<DecodeProblem>(inputs, output.data(), lse.data(), 0, nullptr);
  decode.batch = static_cast<int>(c.batch);
  decode.indices = indices.data();
  decode.counts = counts.data();
  decode.list_size = list;
  const auto shared = std::make_unique<DecodeShared<head_dim>>();
  for (int row = 0; row < rows; ++row) decode_part<T, head_dim>(attending, *shared, decode, row, 0);
  expect_equal(expected.attention, output, lse, tolerance, 1e-4);
}

TEST(CudaScores, ChooseTheKeysOfTheConfig) {
  Case c;
  c.rows = 1;
  c.keys = 1500;
  compare_with_pipeline<float, 64>(c, {4, 16, 50}, 1e-4);
  compare_with_pipeline<float, 128>(c, {1, 700, 300}, 1e-4);
  compare_with_pipeline<BFloat16, 64>(c, {4, 16, 50}, 0.03);
}

TEST(CudaScores, ShortSequencesKeepWhatThereIs) {
  for (const Index keys : {1, 5, 18, 30}) {
    Case c;
    c.rows = 1;
    c.keys = keys;
    compare_with_pipeline<float, 64>(c, {4, 16, 6}, 1e-4);
  }
}

}  // namespace
}  // namespace reticle::cuda
