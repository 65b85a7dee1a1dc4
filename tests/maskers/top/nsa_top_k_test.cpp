// Rules that keep whole blocks of keys, per query: NSA, MoBA, InfLLM.
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/ops/pooled_keys.hpp>
#include <reticle/core/tensor/safetensors.hpp>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

/// (total, heads, d), sequence [begin, end) of it, as (1, heads, n, d).
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
      inputs.keys = inputs.values = keys.view();  // what counts is compressed already
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
  // Blocks of 2; compressed keys are means of 2 keys, stride 1: key 3 raises those at 2 and 3, so blocks 1 and 2
  // (half).
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

TEST(PooledKeys, ReadOnlyNewKeysAndCountCompleteWindows) {
  const OwnedInputs owned({1, 2, 1, 1, 40, 4, 4}, 1);
  PooledKeys pooled, fresh;
  AttentionInputs inputs = owned.inputs;
  for (const Index length : {3, 10, 11, 40}) {
    inputs.keys = owned.inputs.keys.slice(2, 0, length);
    inputs.values = owned.inputs.values.slice(2, 0, length);
    const Index before = pooled.keys_read();
    pooled.update(inputs, 4, 2);
    EXPECT_EQ(pooled.count(length), length < 4 ? 0 : (length - 4) / 2 + 1);
    if (length == 11) {
      EXPECT_EQ(pooled.keys_read(), before) << "no window ends there";
    }
  }
  fresh.update(inputs, 4, 2);
  for (Index i = 0; i < fresh.count(40) * 4; ++i)
    EXPECT_EQ(*pooled.means(0, 0, 19).at<float>(0, i), *fresh.means(0, 0, 19).at<float>(0, i));
}

TEST(Moba, KeepsTheOwnBlockAndTheBestBeforeIt) {
  const Scored s(8, {1, 1, 5, 5, 3, 3, 9, 9});
  const Mask mask = mask_of(R"({"type": "moba", "block_size": 2, "top_k": 2})", s.inputs);
  EXPECT_EQ(row_text(mask, 7), "..11..11");
  EXPECT_EQ(row_text(mask, 6), "..11..1.") << "nothing after the query";
  EXPECT_EQ(row_text(mask, 3), "1111....");
  EXPECT_EQ(row_text(mask_of(R"({"type": "moba", "block_size": 2, "top_k": 1})", s.inputs), 5), "....11..");
}

TEST(InfLlm, KeepsTheFirstTheNearAndTheBlocksThatMattered) {
  // Memory blocks of 2 after the first key; the window is 3. Of block [3, 5), key 3 gathers attention while near.
  const Scored s(10, {0, 0, 0, 6, 0, 0, 0, 0, 0, 0});
  const auto mask = [&](int top) {
    return mask_of(R"({"type": "inf_llm", "block_size": 2, "n_init": 1, "n_local": 3, "repr_top_k": 1,
                       "exc_block_size": 1, "top_k": )" +
                       std::to_string(top) + "}",
                   s.inputs);
  };
  EXPECT_EQ(row_text(mask(0), 9), "1......111") << "blocks [1, 3), [3, 5), [5, 7) lie behind";
  EXPECT_EQ(row_text(mask(1), 9), "1..11..111");
  EXPECT_EQ(row_text(mask(9), 9), "1111111111");
  EXPECT_EQ(row_text(mask(1), 3), "1111......") << "not yet behind";
}

TEST(TopBlocks, RefuseBadParameters) {
  EXPECT_NE(refusal(R"({"type": "nsa_top_k", "kernel_size": 24})").find("multiple of kernel_stride"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"type": "nsa_top_k", "top_k": 2})").find("init_blocks + local_blocks"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "moba", "top_k": 0})").find("/top_k"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "inf_llm", "n_local": 0})").find("/n_local"), std::string::npos);
}

TEST(NsaTopK, ChecksGivenCompressedKeys) {
  const OwnedInputs owned({1, 2, 1, 4, 100, 8, 8}, 1);
  const Tensor few(DType::f32, {1, 1, 2, 8});
  const NamedTensor given{"compressed_keys", few.view()};
  AttentionInputs inputs = owned.inputs;
  inputs.extras = {&given, 1};
  EXPECT_THROW(mask_of(R"({"type": "nsa_top_k"})", inputs), ShapeError);
}

}  // namespace
}  // namespace reticle::testing
