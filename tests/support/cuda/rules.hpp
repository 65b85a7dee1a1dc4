// Maskers that choose by rules, and their choices on a GPU beside those of the pipeline on the CPU.
#pragma once

#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/cuda/choose.hpp>

#include "support/cuda/hash_weights.hpp"
#include "support/cuda/on_device.hpp"
#include "support/files.hpp"

namespace reticle::cuda {

/// Maskers that choose by rules, one of each kind. Hashes have weights for 4 heads of 64 in `folder`.
inline std::vector<std::string> maskers_by_rules(const reticle::testing::TemporaryFolder& folder) {
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

/// Of every row, as many keys as the pipeline's mask has, and the same attention over them.
inline void expect_rules_choose_as_the_pipeline(const std::string& masker, const Case& c) {
  SCOPED_TRACE(masker);
  const Problem<float> drawn(c, 64);
  const OnDevice<float> on_device(drawn);
  const auto rows = static_cast<std::size_t>(c.batch * c.heads);
  const auto sparse = SparseAttention::from_json(
      R"({"seed": 4, "maskers": [{"type": "sink", "sink_size": 5}, {"type": "local", "window_size": 9}, )" + masker +
      "]}");
  SequenceState state;
  const Mask expected = sparse.mask(drawn.inputs, state);
  const KeyChooser chooser(c.batch * c.heads, c.keys, nullptr);
  const Buffer counts(rows * sizeof(std::int32_t), nullptr);
  const KeyLists lists =
      chooser.choose(on_device.inputs, sparse.rules(Stage::prefill, 0, c.keys), nullptr, counts.as<std::int32_t>());
  const auto found = on_host<std::int32_t>(counts, rows);
  for (std::size_t row = 0; row < rows; ++row) {
    std::vector<Run> runs;
    expected.row(expected.shape().row_of_logical(static_cast<Index>(row)), runs);
    Index wanted = 0;
    for (const Run& run : runs) wanted += run.end - run.begin;
    EXPECT_EQ(found[row], wanted) << "row " << row;
  }
  const AttentionResult result = attention(drawn.inputs, expected);
  const Buffer out(rows * 64 * sizeof(float), nullptr), logs(rows * sizeof(float), nullptr);
  KeyListAttention(c.batch * c.heads, nullptr).run(on_device.inputs, lists, out.as<float>(), logs.as<float>(), nullptr);
  expect_equal(result, on_host<float>(out, rows * 64), on_host<float>(logs, rows), 1e-4, 1e-3);
}

/// Queries (2, 4, 1, 64) and keys (2, 2, keys, 64) of small whole numbers: products are exact in any order, and many
/// tie. Here and on the GPU.
class WholeNumbers {
 public:
  WholeNumbers(unsigned seed, Index keys) : queries_(DType::f32, {2, 4, 1, 64}), keys_(DType::f32, {2, 2, keys, 64}) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<int> draw(-3, 3);
    for (Tensor* tensor : {&queries_, &keys_}) {
      for (float& x : tensor->span<float>()) x = static_cast<float>(draw(random));
    }
    queries_there_ = copy_to(queries_, kGpu);
    keys_there_ = copy_to(keys_, kGpu);
  }
  /// A decode step over the first `keys` keys.
  AttentionInputs here(Index keys) const { return step(queries_, keys_, keys); }
  AttentionInputs there(Index keys) const { return step(queries_there_, keys_there_, keys); }

 private:
  static AttentionInputs step(const TensorView& queries, const TensorView& keys, Index count) {
    AttentionInputs inputs;
    inputs.queries = queries;
    inputs.keys = inputs.values = keys.slice(2, 0, count);
    inputs.scaling = 0.0625f;
    inputs.causal = true;
    inputs.stage = Stage::generation;
    return inputs;
  }

  Tensor queries_, keys_, queries_there_, keys_there_;
};

/// What a chooser chooses as a sequence grows, and of another sequence once it is reset: the masks of the pipeline,
/// p included. Codes, codebooks and bounds are kept between the steps.
inline void expect_steps_choose_as_the_pipeline(const std::string& masker) {
  SCOPED_TRACE(masker);
  const auto sparse = SparseAttention::from_json(R"({"seed": 4, "maskers": [)" + masker + "]}");
  const WholeNumbers first(8, 700), second(9, 700);
  const KeyChooser chooser(8, 700, nullptr);
  const auto chosen = [&](const AttentionInputs& inputs) {
    const std::vector<Rule> rules = sparse.rules(Stage::generation, 0, inputs.keys_length());
    return mask_of_lists(inputs.shape(), chooser.choose(inputs, rules, nullptr), nullptr);
  };
  SequenceState state, other;
  for (const Index keys : {500, 501, 564, 700})
    EXPECT_EQ(chosen(first.there(keys)), sparse.mask(first.here(keys), state)) << keys << " keys";
  chooser.reset();
  EXPECT_EQ(chosen(second.there(700)), sparse.mask(second.here(700), other)) << "another sequence";
}

}  // namespace reticle::cuda
