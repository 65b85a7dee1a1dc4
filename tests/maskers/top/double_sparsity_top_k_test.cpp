#include <algorithm>
#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>

#include "support/attention.hpp"
#include "support/files.hpp"

namespace reticle::testing {
namespace {

std::string config(const std::filesystem::path& channels, const std::string& more) {
  return R"({"maskers": [{"type": "double_sparsity_top_k", "sorted_channel_file": ")" + channels.string() + R"(", )" +
         more + "}]}";
}

TEST(DoubleSparsityTopK, ScoresOnlyTheLayersOwnChannels) {
  const TemporaryFolder folder;
  write_bytes(folder / "c.json",
              R"({"model.layers.0.self_attn.qk_proj": [[1, 0]], "model.layers.1.self_attn.qk_proj": [[0, 1]],
                  "model.layers.0.self_attn.q_proj": [[0, 1]], "unrelated": 1})");
  Tensor queries(DType::f32, {1, 1, 1, 2}), keys(DType::f32, {1, 1, 3, 2});
  std::fill(queries.span<float>().begin(), queries.span<float>().end(), 1.0f);
  const float k[] = {9, 0, 0, 5, 1, 1};
  std::copy(std::begin(k), std::end(k), keys.span<float>().begin());
  AttentionInputs inputs;
  inputs.queries = queries.view();
  inputs.keys = inputs.values = keys.view();
  const auto kept = [&](const std::string& more, int layer) {
    inputs.layer = layer;
    SequenceState state;
    const Mask mask = SparseAttention::from_json(
                          config(folder / "c.json", R"("heavy_size": 1, "group_factor": 2, "label_bits": 16)" + more))
                          .mask(inputs, state);
    return mask.at(0, 0, 0, 0) > 0 ? 0 : mask.at(0, 0, 0, 1) > 0 ? 1 : 2;
  };
  EXPECT_EQ(kept("", 0), 1);
  EXPECT_EQ(kept("", 1), 0) << "another layer, other channels";
  EXPECT_EQ(kept(R"(, "channel_selection": "q_proj")", 0), 0);
}

TEST(DoubleSparsityTopK, OneListOfChannelsServesAllHeads) {
  const TemporaryFolder folder;
  const OwnedInputs owned({1, 2, 1, 1, 20, 8, 8}, 4);
  const auto mask = [&](const std::string& channels) {
    write_bytes(folder / "c.json", R"({"model.layers.0.self_attn.qk_proj": )" + channels + "}");
    SequenceState state;
    return SparseAttention::from_json(config(folder / "c.json", R"("heavy_size": 3, "group_factor": 4)"))
        .mask(owned.inputs, state);
  };
  EXPECT_EQ(mask("[[6, 1]]"), mask("[[6, 1], [6, 1]]"));
  EXPECT_NE(mask("[[6, 1]]"), mask("[[2, 5], [6, 1]]"));
}

TEST(DoubleSparsityTopK, ADecodeStepEqualsAFreshStart) {
  const TemporaryFolder folder;
  write_bytes(folder / "c.json",
              R"({"model.layers.0.self_attn.qk_proj": [[3, 1, 7, 0], [2, 5, 1, 0], [0, 1, 2, 3], [7, 6, 5, 4]]})");
  const OwnedInputs owned({1, 4, 2, 12, 60, 8, 8}, 3);
  for (const char* bits : {"16", "4"}) {
    const auto sparse = SparseAttention::from_json(
        config(folder / "c.json", std::string(R"("heavy_size": 9, "group_factor": 2, "label_bits": )") + bits));
    SequenceState kept;
    for (Index step = 0; step < 12; ++step) {
      AttentionInputs inputs = owned.inputs;
      inputs.queries = inputs.queries.slice(2, step, step + 1);
      inputs.keys = inputs.keys.slice(2, 0, 49 + step);
      inputs.values = inputs.values.slice(2, 0, 49 + step);
      SequenceState fresh;
      EXPECT_EQ(sparse.mask(inputs, kept), sparse.mask(inputs, fresh)) << "step " << step;
    }
    SequenceState one, four;
    EXPECT_EQ(sparse.mask(owned.inputs, one, Context(1)), sparse.mask(owned.inputs, four, Context(4)));
  }
}

TEST(DoubleSparsityTopK, ChannelFilesThatDoNotFitAreRefusedByName) {
  const TemporaryFolder folder;
  const OwnedInputs owned({1, 2, 1, 1, 20, 8, 8}, 4);
  const std::string path = (folder / "c.json").string();
  const auto refusal = [&](const std::string& content, const std::string& more = R"("group_factor": 4)") {
    write_bytes(folder / "c.json", content);
    try {
      SequenceState state;
      SparseAttention::from_json(config(folder / "c.json", more)).mask(owned.inputs, state);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const std::string key = R"({"model.layers.0.self_attn.qk_proj": )";
  EXPECT_EQ(refusal("["), path + ": is not a JSON object");
  EXPECT_EQ(refusal("{}"), path + ": has no \"model.layers.0.self_attn.qk_proj\"");
  EXPECT_EQ(refusal(key + "3}"),
            path + ": \"model.layers.0.self_attn.qk_proj\" must be a list with one list per query head");
  EXPECT_EQ(refusal(key + R"([["x"]]})"),
            path + ": \"model.layers.0.self_attn.qk_proj\" holds \"x\"; expected channel numbers");
  EXPECT_EQ(refusal(R"({"model.layers.x.self_attn.qk_proj": []})"),
            path + ": key \"model.layers.x.self_attn.qk_proj\" does not name a layer");
  EXPECT_EQ(
      refusal(key + "[[0, 1], [0, 1], [0, 1]]}"),
      "double_sparsity_top_k, layer 0: the channel file has lists for 3 heads; expected 2, or one list for all heads");
  EXPECT_EQ(refusal(key + "[[0, 1], [0]]}"),
            "double_sparsity_top_k, layer 0: the channel file has 1 channels of a head; expected 2");
  EXPECT_EQ(refusal(key + "[[0, 1], [0, 8]]}"), "double_sparsity_top_k, layer 0: there is no channel 8 in head_dim 8");
  EXPECT_EQ(refusal(key + "[[0], [0]]}", R"("group_factor": 9)"),
            "double_sparsity_top_k, layer 0: group_factor 9 leaves no channel of head_dim 8");
  EXPECT_EQ(refusal(key + "[[0], [0]]}", R"("group_factor": 0)"), "/maskers/0/group_factor: must be > 0, got 0");
  EXPECT_EQ(refusal(key + "[[0], [0]]}", R"("label_bits": 17)"), "/maskers/0/label_bits: must be in [1, 16], got 17");
}

}  // namespace
}  // namespace reticle::testing
