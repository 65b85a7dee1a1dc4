#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/tensor/safetensors.hpp>

#include "support/files.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

std::string with_file(const std::filesystem::path& path) {
  return masker("block_list", R"("block_q": 2, "block_k": 2, "file": ")" + path.string() + "\"");
}

TEST(BlockList, KeepsWhatTheFileLists) {
  const TemporaryFolder folder;
  const std::vector<std::int32_t> counts{1, 2, 0}, indices{0, -1, 2, 0, 7, 7};
  const auto save = [&](const std::vector<std::int32_t>& list) {
    save_safetensors(folder / "blocks", {{"kv_num_blocks", TensorView(counts.data(), DType::i32, {1, 1, 3})},
                                         {"kv_indices", TensorView(list.data(), DType::i32, {1, 1, 3, 2})}});
  };
  save(indices);
  const Scored s(6, std::vector<float>(6));
  const Mask mask = mask_of(with_file(folder / "blocks"), s.inputs);
  EXPECT_EQ(row_text(mask, 1), "11....");
  EXPECT_EQ(row_text(mask, 2), "11..11") << "in any order";
  EXPECT_EQ(row_text(mask, 5), "......");

  save({0, -1, 3, 0, 7, 7});  // block 3 does not exist
  EXPECT_THROW(mask_of(with_file(folder / "blocks"), s.inputs), ShapeError);
  save({0, -1, -1, 0, 7, 7});
  EXPECT_THROW(mask_of(with_file(folder / "blocks"), s.inputs), ShapeError);
  save(indices);
  EXPECT_THROW(mask_of(with_file(folder / "blocks"), Scored(7, std::vector<float>(7)).inputs), ShapeError)
      << "a fourth block of queries";
}

TEST(BlockList, EachHeadHasListsAndALayersOwnComeFirst) {
  const TemporaryFolder folder;
  const std::vector<Index> all_counts{1, 1}, all{0, 0}, counts{1, 2, 2, 1}, indices{0, 0, 1, 0, 1, 0, 1, 1};
  save_safetensors(folder / "blocks", {{"kv_num_blocks", TensorView(all_counts.data(), DType::i64, {1, 1, 2})},
                                       {"kv_indices", TensorView(all.data(), DType::i64, {1, 1, 2, 1})},
                                       {"layers.3.kv_num_blocks", TensorView(counts.data(), DType::i64, {1, 2, 2})},
                                       {"layers.3.kv_indices", TensorView(indices.data(), DType::i64, {1, 2, 2, 2})}});
  OwnedInputs owned({1, 2, 1, 3, 3, 4, 4}, 1);  // the second block of keys is short
  const Mask of_all = mask_of(with_file(folder / "blocks"), owned.inputs);
  for (const Index head : {0, 1}) EXPECT_EQ(row_text(of_all, 2, head), "11.");
  owned.inputs.layer = 3;
  const Mask mask = mask_of(with_file(folder / "blocks"), owned.inputs);
  EXPECT_EQ(row_text(mask, 0, 0), "11.");
  EXPECT_EQ(row_text(mask, 2, 0), "111");
  EXPECT_EQ(row_text(mask, 0, 1), "111");
  EXPECT_EQ(row_text(mask, 2, 1), "..1");
}

TEST(BlockList, FilesThatDoNotFitAreRefusedByName) {
  const TemporaryFolder folder;
  const std::string path = (folder / "blocks").string();
  const Scored s(4, std::vector<float>(4));
  const std::vector<std::int32_t> zeros(8), twos(8, 2);
  const auto message = [&](const std::vector<NamedTensor>& tensors) {
    save_safetensors(folder / "blocks", tensors);
    return refusal<Error>(with_file(folder / "blocks"), s.inputs);
  };
  const NamedTensor counts{"kv_num_blocks", TensorView(zeros.data(), DType::i32, {1, 1, 2})};
  const NamedTensor indices{"kv_indices", TensorView(zeros.data(), DType::i32, {1, 1, 2, 1})};
  EXPECT_EQ(message({counts, indices}), "") << "lists may be empty";
  EXPECT_EQ(message({counts}), path + ": has no tensor \"kv_indices\"");
  EXPECT_EQ(message({counts, {"kv_indices", TensorView(zeros.data(), DType::f32, {1, 1, 2, 1})}}),
            path + ": kv_indices is F32 (1, 1, 2, 1); expected I32 or I64");
  EXPECT_EQ(message({counts, {"kv_indices", TensorView(zeros.data(), DType::i32, {1, 2, 2, 1})}}),
            path +
                ": kv_num_blocks I32 (1, 1, 2) and kv_indices I32 (1, 2, 2, 1) do not list blocks for 2 blocks of "
                "queries, 1 heads");
  EXPECT_EQ(message({{"kv_num_blocks", TensorView(twos.data(), DType::i32, {1, 1, 2})}, indices}),
            path + ": the list of (0, 0, 0) is not one of blocks in [0, 2)")
      << "two blocks where there is room for one";
}

TEST(BlockList, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "block_list", "file": "/nonexistent"})"),
            "/maskers/0/file: must be a file, got \"/nonexistent\"");
  EXPECT_EQ(refusal(R"({"type": "block_list", "file": "/nonexistent", "block_q": 0})"),
            "/maskers/0/block_q: must be in [1, 2^31), got 0");
}

}  // namespace
}  // namespace reticle::testing
