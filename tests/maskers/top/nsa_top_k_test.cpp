#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/tensor/safetensors.hpp>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

/// Sequence [begin, end) of a packed (total, heads, d) tensor, as (1, heads, n, d).
TensorView sequence_of(const TensorView& packed, Index begin, Index end) {
  TensorView view = packed.slice(0, begin, end).permute({1, 0, 2});
  view.rank = 4;
  view.shape = {1, view.shape[0], view.shape[1], view.shape[2]};
  view.strides = {0, view.strides[0], view.strides[1], view.strides[2]};
  return view;
}

TEST(NsaTopK, SelectsTheBlocksThatTheReferenceSelects) {
  const std::filesystem::path folder = std::filesystem::path(RETICLE_SOURCE_DIR) / "tests/golden/nsa";
  int rows = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".json") continue;
    std::ifstream stream(entry.path());
    const nlohmann::json manifest = nlohmann::json::parse(stream);
    if (manifest.at("op") != "compressed_attention") continue;
    const nlohmann::json& p = manifest.at("params");
    std::filesystem::path path = entry.path();
    const SafeTensors tensors(path.replace_extension(".safetensors"));
    const Index block = p.at("block_size");
    const TensorView& expected = tensors.at("topk_idx");
    const auto* starts = tensors.at("cu_seqlens_q").at<std::int32_t>(0);
    const auto* compressed_starts = tensors.at("cu_seqlens_k").at<std::int32_t>(0);
    for (std::size_t i = 0; i < p.at("seqlens").size(); ++i) {
      const Index begin = starts[i], length = starts[i + 1] - begin;
      AttentionInputs inputs;
      inputs.queries = sequence_of(tensors.at("q"), begin, begin + length);
      const Tensor keys(DType::f32, {1, p.at("num_kv_heads").get<Index>(), length, p.at("head_dim").get<Index>()});
      inputs.keys = inputs.values = keys.view();  // the masker reads only the compressed keys
      inputs.scaling = p.at("sm_scale");
      const NamedTensor compressed{"compressed_keys",
                                   sequence_of(tensors.at("k"), compressed_starts[i], compressed_starts[i + 1])};
      inputs.extras = {&compressed, 1};
      const nlohmann::json masker = {{"type", "nsa_top_k"},
                                     {"kernel_size", p.at("kernel_size")},
                                     {"kernel_stride", p.at("kernel_stride")},
                                     {"block_size", block},
                                     {"top_k", p.at("topk")},
                                     {"init_blocks", p.at("init_blocks")},
                                     {"local_blocks", p.at("local_blocks")}};
      const Mask mask = mask_of(masker.dump(), inputs);
      for (Index head = 0; head < inputs.heads(); ++head) {
        for (Index query = 0; query < length; ++query, ++rows) {
          std::vector<Index> blocks, theirs;
          for (Index key = 0; key <= query; key += block) {
            if (mask.at(0, head, query, key) > 0) blocks.push_back(key / block);
          }
          for (Index slot = 0; slot < expected.size(2); ++slot) {
            const std::int32_t id = *expected.at<std::int32_t>(inputs.kv_head(head), begin + query, slot);
            if (id >= 0) theirs.push_back(id);
          }
          ASSERT_EQ(blocks, theirs) << entry.path() << ", sequence " << i << ", query " << query;
        }
      }
      EXPECT_EQ(mask, restrict_causal(mask));
    }
  }
  EXPECT_GT(rows, 1000);
}

TEST(NsaTopK, AveragesTheKeysWhenNoneAreGiven) {
  // Blocks of 2 keys; compressed keys are means of 2 keys at stride 1. Key 3 raises the compressed keys at 2 and 3,
  // hence block 1, and block 2 half as much.
  const Scored s(8, {0, 0, 0, 9, 0, 0, 0, 0});
  const auto row = [&](int top) {
    return row_text(mask_of(R"({"type": "nsa_top_k", "kernel_size": 2, "kernel_stride": 1, "block_size": 2,
                                "init_blocks": 0, "local_blocks": 1, "top_k": )" +
                                std::to_string(top) + "}",
                            s.inputs),
                    7);
  };
  EXPECT_EQ(row(1), "......11");
  EXPECT_EQ(row(2), "..11..11");
  EXPECT_EQ(row(3), "..111111");
}

TEST(NsaTopK, TheFirstAndTheLastBlocksCountInTheBudget) {
  const Scored s(8, {0, 0, 0, 9, 0, 0, 0, 0});
  const auto row = [&](const std::string& blocks) {
    return row_text(
        mask_of(masker("nsa_top_k", R"("kernel_size": 2, "kernel_stride": 2, "block_size": 2, )" + blocks), s.inputs),
        7);
  };
  EXPECT_EQ(row(R"("init_blocks": 1, "local_blocks": 1, "top_k": 2)"), "11....11");
  EXPECT_EQ(row(R"("init_blocks": 1, "local_blocks": 1, "top_k": 3)"), "1111..11");
  EXPECT_EQ(row(R"("init_blocks": 0, "local_blocks": 0, "top_k": 1)"), "..11....");
}

TEST(NsaTopK, ChecksGivenCompressedKeys) {
  const OwnedInputs owned({1, 2, 1, 4, 100, 8, 8}, 1);
  const Tensor few(DType::f32, {1, 1, 2, 8});
  const NamedTensor given{"compressed_keys", few.view()};
  AttentionInputs inputs = owned.inputs;
  inputs.extras = {&given, 1};
  EXPECT_EQ(refusal<ShapeError>(R"({"type": "nsa_top_k"})", inputs),
            "compressed_keys: F32 (1, 1, 2, 8); expected (1, 1, at least 5, 8)");
}

TEST(NsaTopK, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "nsa_top_k", "kernel_size": 24})"),
            "/maskers/0/kernel_size: must be a multiple of kernel_stride, got 24");
  EXPECT_EQ(refusal(R"({"type": "nsa_top_k", "block_size": 24})"),
            "/maskers/0/block_size: must be a multiple of kernel_stride, got 24");
  EXPECT_EQ(refusal(R"({"type": "nsa_top_k", "top_k": 2})"),
            "/maskers/0/top_k: must be at least init_blocks + local_blocks, got 2");
}

}  // namespace
}  // namespace reticle::testing
