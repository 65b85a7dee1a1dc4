// Patterns that do not look at the tensors.
#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/tensor/safetensors.hpp>

#include "support/files.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(AShape, KeepsTheFirstKeysAndAWindow) {
  const Scored s(6, std::vector<float>(8));  // positions 2 to 7
  const Mask mask = mask_of(R"({"type": "a_shape", "n_init": 2, "n_local": 3})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "111.....");
  EXPECT_EQ(row_text(mask, 3), "11.111..");
  EXPECT_EQ(row_text(mask, 5), "11...111");
  EXPECT_EQ(mask, restrict_causal(
                      mask_of(R"({"type": "sink", "sink_size": 2}, {"type": "local", "window_size": 3})", s.inputs)));
}

TEST(TriShape, TheLastQueriesSeeEverything) {
  const Scored s(8, std::vector<float>(8));
  const Mask mask = mask_of(R"({"type": "tri_shape", "n_init": 1, "n_local": 2, "n_last": 2})", s.inputs);
  EXPECT_EQ(row_text(mask, 5), "1...11..");
  EXPECT_EQ(row_text(mask, 6), "1111111.");
  EXPECT_EQ(row_text(mask, 7), "11111111");
  const Mask all = mask_of(R"({"type": "tri_shape", "n_init": 1, "n_local": 1, "n_last": 100})", s.inputs);
  EXPECT_EQ(row_text(all, 0), "1.......");
  EXPECT_EQ(row_text(all, 2), "111.....");
}

TEST(Strided, ReachesEveryKeyInTwoSteps) {
  const Scored s(10, std::vector<float>(10));
  const Mask strided = mask_of(R"({"type": "strided", "stride": 3, "summary_size": 1})", s.inputs);
  EXPECT_EQ(row_text(strided, 9), "1..1..1111") << "0, 3, 6 are multiples of 3 away; 7, 8, 9 are near";
  EXPECT_EQ(row_text(strided, 1), "11........");
  const Mask fixed = mask_of(R"({"type": "strided", "stride": 4, "pattern": "fixed", "summary_size": 1})", s.inputs);
  EXPECT_EQ(row_text(fixed, 9), "...1...111");
  EXPECT_EQ(row_text(fixed, 6), "...1111...");
}

TEST(BigBird, KeepsGlobalWindowAndRandomBlocks) {
  const Scored s(32, std::vector<float>(32));
  const std::string fixed = R"({"type": "big_bird", "block_size": 4, "global_blocks": 1, "window_blocks": 3)";
  const Mask none = mask_of(fixed + R"(, "random_blocks": 0})", s.inputs);
  EXPECT_EQ(row_text(none, 0), std::string(32, '1')) << "global queries see everything";
  EXPECT_EQ(row_text(none, 17), "1111........111111111111........");
  EXPECT_EQ(row_text(mask_of(fixed + R"(, "random_blocks": 0})", s.inputs, true), 17),
            "1111........111111..............");
  const Mask two = mask_of(fixed + R"(, "random_blocks": 2})", s.inputs);
  for (Index query = 4; query < 32; ++query) {
    const std::string row = row_text(two, query);
    EXPECT_EQ(std::count(row.begin(), row.end(), '1'), std::min<Index>(32, query < 8 || query >= 28 ? 20 : 24))
        << query;
  }
  EXPECT_NE(two, mask_of(fixed + R"(, "random_blocks": 2, "seed": 1})", s.inputs));
}

TEST(Document, KeepsWithinEachDocument) {
  const Scored s(7, std::vector<float>(7));
  const Mask mask = mask_of(R"({"type": "document", "lengths": [2, 3]})", s.inputs);
  EXPECT_EQ(row_text(mask, 1), "11.....");
  EXPECT_EQ(row_text(mask, 2), "..111..");
  EXPECT_EQ(row_text(mask, 6), ".....11") << "the rest is one more document";
  EXPECT_EQ(row_text(mask_of(R"({"type": "document", "lengths": [2, 3]})", s.inputs, true), 3), "..11...");

  AttentionInputs inputs = s.inputs;
  const std::vector<Index> ids{5, 5, 9, 9, 5, 9, 7};
  const NamedTensor given{"document_ids", TensorView(ids.data(), DType::i64, {1, 7})};
  inputs.extras = {&given, 1};
  const Mask interleaved = mask_of(R"({"type": "document"})", inputs);
  EXPECT_EQ(row_text(interleaved, 0), "11..1..");
  EXPECT_EQ(row_text(interleaved, 5), "..11.1.");
  const NamedTensor wrong{"document_ids", TensorView(ids.data(), DType::i64, {1, 6})};
  inputs.extras = {&wrong, 1};
  EXPECT_THROW(mask_of(R"({"type": "document"})", inputs), ShapeError);
  EXPECT_THROW(mask_of(R"({"type": "document"})", s.inputs), ShapeError);
}

TEST(BlockList, KeepsWhatTheFileLists) {
  const TemporaryFolder folder;
  const std::vector<std::int32_t> counts{1, 2, 0}, indices{0, -1, 2, 0, 7, 7};
  const auto save = [&](const std::vector<std::int32_t>& list) {
    save_safetensors(folder / "blocks", {{"kv_num_blocks", TensorView(counts.data(), DType::i32, {1, 1, 3})},
                                         {"kv_indices", TensorView(list.data(), DType::i32, {1, 1, 3, 2})}});
  };
  const std::string masker =
      R"({"type": "block_list", "block_q": 2, "block_k": 2, "file": ")" + (folder / "blocks").string() + "\"}";
  save(indices);
  const Scored s(6, std::vector<float>(6));
  const Mask mask = mask_of(masker, s.inputs);
  EXPECT_EQ(row_text(mask, 1), "11....");
  EXPECT_EQ(row_text(mask, 2), "11..11") << "in any order";
  EXPECT_EQ(row_text(mask, 5), "......");

  save({0, -1, 3, 0, 7, 7});  // there is no block 3
  EXPECT_THROW(mask_of(masker, s.inputs), ShapeError);
  save({0, -1, -1, 0, 7, 7});
  EXPECT_THROW(mask_of(masker, s.inputs), ShapeError);
  save(indices);
  EXPECT_THROW(mask_of(masker, Scored(7, std::vector<float>(7)).inputs), ShapeError) << "a fourth block of queries";
}

TEST(FixedPatterns, RefuseBadParameters) {
  EXPECT_NE(refusal(R"({"type": "a_shape", "n_local": 0})").find("/maskers/0/n_local"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "tri_shape", "n_local": 0})").find("must be > 0"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "local", "dilation": 0})").find("must be in [1, 2^31)"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "strided", "stride": 4, "summary_size": 5})").find("[1, stride]"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "strided", "pattern": "sideways"})").find("fixed"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "big_bird", "block_size": 0})").find("/block_size"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "document", "lengths": [3, 0]})").find("/lengths"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "block_list", "file": "/nonexistent"})").find("must be a file"), std::string::npos);
}

}  // namespace
}  // namespace reticle::testing
