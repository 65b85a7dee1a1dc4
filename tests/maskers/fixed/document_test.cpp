#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

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

TEST(Document, SequencesOfABatchHaveDocumentsOfTheirOwn) {
  const OwnedInputs owned({2, 1, 1, 2, 4, 8, 8}, 1);  // queries at positions 2 and 3
  AttentionInputs inputs = owned.inputs;
  const std::vector<std::int32_t> ids{0, 0, 0, 1, /**/ 4, 2, 2, 2};
  const NamedTensor given{"document_ids", TensorView(ids.data(), DType::i32, {2, 4})};
  inputs.extras = {&given, 1};
  const Mask mask = mask_of(R"({"type": "document"})", inputs);
  const Index kept[2][2][4] = {{{1, 1, 1, 0}, {0, 0, 0, 1}}, {{0, 1, 1, 1}, {0, 1, 1, 1}}};
  for (Index batch = 0; batch < 2; ++batch) {
    for (Index query = 0; query < 2; ++query) {
      for (Index key = 0; key < 4; ++key)
        EXPECT_EQ(mask.at(batch, 0, query, key), static_cast<float>(kept[batch][query][key])) << batch << query << key;
    }
  }
}

TEST(Document, ADocumentLongerThanTheSequenceIsAllOfIt) {
  const Scored s(2, std::vector<float>(3));
  EXPECT_EQ(row_text(mask_of(R"({"type": "document", "lengths": [5, 2]})", s.inputs), 0), "111");
}

TEST(Document, RefusesBadParametersAndDocumentsThatDoNotFit) {
  EXPECT_EQ(refusal(R"({"type": "document", "lengths": [3, 0]})"),
            "/maskers/0/lengths: must be in [1, 2^31), got [3,0]");
  Scored s(1, std::vector<float>(3));
  EXPECT_EQ(refusal<ShapeError>(R"({"type": "document"})", s.inputs),
            "document: lengths is empty and the extra tensor document_ids is missing; expected one of them");
  const std::vector<float> ids(6);
  const NamedTensor given{"document_ids", TensorView(ids.data(), DType::f32, {2, 3})};
  s.inputs.extras = {&given, 1};
  EXPECT_EQ(refusal<ShapeError>(R"({"type": "document"})", s.inputs),
            "document_ids: F32 (2, 3); expected I64 or I32 (1 or 1, 3)");
}

}  // namespace
}  // namespace reticle::testing
