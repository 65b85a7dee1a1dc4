#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/files.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

std::string with_channels(const std::filesystem::path& channels, const std::string& more) {
  return masker("double_sparsity_top_k", R"("sorted_channel_file": ")" + channels.string() + R"(", )" + more);
}

TEST(DoubleSparsityTopK, ScoresOnlyTheLayersOwnChannels) {
  const TemporaryFolder folder;
  write_bytes(folder / "c.json",
              R"({"model.layers.0.self_attn.qk_proj": [[1, 0]], "model.layers.1.self_attn.qk_proj": [[0, 1]],
                  "model.layers.0.self_attn.q_proj": [[0, 1]], "unrelated": 1})");
  const std::vector<float> query{1, 1}, keys{9, 0, 0, 5, 1, 1};
  AttentionInputs inputs;
  inputs.queries = TensorView(query.data(), DType::f32, {1, 1, 1, 2});
  inputs.keys = inputs.values = TensorView(keys.data(), DType::f32, {1, 1, 3, 2});
  const auto kept = [&](const std::string& more, int layer) {
    inputs.layer = layer;
    return row_text(
        mask_of(with_channels(folder / "c.json", R"("heavy_size": 1, "group_factor": 2, "label_bits": 16)" + more),
                inputs),
        0);
  };
  EXPECT_EQ(kept("", 0), ".1.");
  EXPECT_EQ(kept("", 1), "1..") << "another layer, other channels";
  EXPECT_EQ(kept(R"(, "channel_selection": "q_proj")", 0), "1..");
}

TEST(DoubleSparsityTopK, OneListOfChannelsServesAllHeads) {
  const TemporaryFolder folder;
  const OwnedInputs owned({1, 2, 1, 1, 20, 8, 8}, 4);
  const auto mask = [&](const std::string& channels) {
    write_bytes(folder / "c.json", R"({"model.layers.0.self_attn.qk_proj": )" + channels + "}");
    return mask_of(with_channels(folder / "c.json", R"("heavy_size": 3, "group_factor": 4)"), owned.inputs);
  };
  EXPECT_EQ(mask("[[6, 1]]"), mask("[[6, 1], [6, 1]]"));
  EXPECT_NE(mask("[[6, 1]]"), mask("[[2, 5], [6, 1]]"));
}

TEST(DoubleSparsityTopK, FewBitsRoundTheChannelsOfAKey) {
  // One bit can represent the smallest and the largest channel of a key: (9, 0, 8) becomes (9, 0, 9).
  const TemporaryFolder folder;
  write_bytes(folder / "c.json", R"({"model.layers.0.self_attn.qk_proj": [[0, 1, 2]]})");
  const std::vector<float> query{0, 0, 1}, keys{9, 0, 8, 9, 0, 8.5f, 9, 0, 3};
  AttentionInputs inputs;
  inputs.queries = TensorView(query.data(), DType::f32, {1, 1, 1, 3});
  inputs.keys = inputs.values = TensorView(keys.data(), DType::f32, {1, 1, 3, 3});
  const auto kept = [&](const std::string& bits) {
    return row_text(
        mask_of(with_channels(folder / "c.json", R"("heavy_size": 1, "group_factor": 1, "label_bits": )" + bits),
                inputs),
        0);
  };
  EXPECT_EQ(kept("16"), ".1.");
  EXPECT_EQ(kept("1"), "1..") << "8 and 8.5 are both 9, and the lower index wins a tie";
}

TEST(DoubleSparsityTopK, ADecodeStepEqualsAFreshStart) {
  const TemporaryFolder folder;
  write_bytes(folder / "c.json",
              R"({"model.layers.0.self_attn.qk_proj": [[3, 1, 7, 0], [2, 5, 1, 0], [0, 1, 2, 3], [7, 6, 5, 4]]})");
  const OwnedInputs owned({1, 4, 2, 12, 60, 8, 8}, 3);
  for (const char* bits : {"16", "4"}) {
    const std::string maskers =
        with_channels(folder / "c.json", std::string(R"("heavy_size": 9, "group_factor": 2, "label_bits": )") + bits);
    expect_steps_equal_fresh_starts(maskers, owned.inputs);
    const SparseAttention sparse = pipeline_of(maskers);
    SequenceState one, four;
    EXPECT_EQ(sparse.mask(owned.inputs, one, Context(1)), sparse.mask(owned.inputs, four, Context(4)));
  }
}

TEST(DoubleSparsityTopK, ChannelFilesThatDoNotFitAreRefusedByName) {
  const TemporaryFolder folder;
  const OwnedInputs owned({1, 2, 1, 1, 20, 8, 8}, 4);
  const std::string path = (folder / "c.json").string();
  const auto message = [&](const std::string& content, const std::string& more = R"("group_factor": 4)") {
    write_bytes(folder / "c.json", content);
    return refusal<Error>(with_channels(folder / "c.json", more), owned.inputs);
  };
  const std::string key = R"({"model.layers.0.self_attn.qk_proj": )";
  EXPECT_EQ(message("["), path + ": is not a JSON object");
  EXPECT_EQ(message("{}"), path + ": has no \"model.layers.0.self_attn.qk_proj\"");
  EXPECT_EQ(message(key + "3}"),
            path + ": \"model.layers.0.self_attn.qk_proj\" must be a list with one list per query head");
  EXPECT_EQ(message(key + R"([["x"]]})"),
            path + ": \"model.layers.0.self_attn.qk_proj\" holds \"x\"; expected channel numbers");
  EXPECT_EQ(message(R"({"model.layers.x.self_attn.qk_proj": []})"),
            path + ": key \"model.layers.x.self_attn.qk_proj\" does not name a layer");
  EXPECT_EQ(
      message(key + "[[0, 1], [0, 1], [0, 1]]}"),
      "double_sparsity_top_k, layer 0: the channel file has lists for 3 heads; expected 2, or one list for all heads");
  EXPECT_EQ(message(key + "[[0, 1], [0]]}"),
            "double_sparsity_top_k, layer 0: the channel file has 1 channels of a head; expected 2");
  EXPECT_EQ(message(key + "[[0, 1], [0, 8]]}"), "double_sparsity_top_k, layer 0: there is no channel 8 in head_dim 8");
  EXPECT_EQ(message(key + "[[0], [0]]}", R"("group_factor": 9)"),
            "double_sparsity_top_k, layer 0: group_factor 9 leaves no channel of head_dim 8");
  EXPECT_EQ(message(key + "[[0], [0]]}", R"("group_factor": 0)"), "/maskers/0/group_factor: must be > 0, got 0");
  EXPECT_EQ(message(key + "[[0], [0]]}", R"("label_bits": 17)"), "/maskers/0/label_bits: must be in [1, 16], got 17");
}

}  // namespace
}  // namespace reticle::testing
