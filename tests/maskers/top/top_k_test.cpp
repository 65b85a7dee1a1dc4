#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(TopK, ExactIsTheOracle) {
  const OwnedInputs owned({2, 4, 2, 9, 50, 16, 16}, 1, DType::bf16);
  EXPECT_EQ(mask_of(R"({"type": "top_k", "heavy_size": 7})", owned.inputs, true),
            mask_of(R"({"type": "oracle_top_k", "heavy_size": 7})", owned.inputs, true));
}

TEST(TopK, EachScorerRanksByItsRule) {
  const auto row = [](const Scored& s, const std::string& parameters) {
    return row_text(mask_of(R"({"type": "top_k", )" + parameters + "}", s.inputs), 0);
  };
  const Scored s(1, {4, -5, 1, 2, 3, 0});
  EXPECT_EQ(row(s, R"("heavy_size": 2)"), "1...1.");
  EXPECT_EQ(row(s, R"("heavy_size": 2, "scorer": "key_norm")"), "..1..1") << "the smallest keys";
  EXPECT_EQ(row(s, R"("heavy_size": 2, "scorer": "page_bounds", "page_size": 2)"), "11....") << "their page holds 4";
  EXPECT_EQ(row(s, R"("heavy_size": 2, "scorer": "page_means", "page_size": 2)"), "..11..")
      << "means -0.5, 1.5, 1.5; the first of equals";
}

TEST(TopK, AnIncompletePageIsScoredByItsOwnKeys) {
  const Scored s(1, {1, 1, 1, 1, 9, 0});
  const Mask mask = mask_of(R"({"type": "top_k", "heavy_size": 2, "scorer": "page_means", "page_size": 4})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "1...1.");
}

TEST(TopK, ValueAwareCountsTheSizeOfValues) {
  Scored s(1, {1, 1, 1, 1});
  Tensor values(DType::f32, {1, 1, 4, 1});
  const std::vector<float> sizes{1, -8, 0, 2};
  std::copy(sizes.begin(), sizes.end(), values.span<float>().begin());
  s.inputs.values = values.view();
  EXPECT_EQ(row_text(mask_of(R"({"type": "top_k", "heavy_size": 2, "scorer": "value_aware"})", s.inputs), 0), ".1.1");
  EXPECT_EQ(row_text(mask_of(R"({"type": "top_k", "heavy_size": 4, "scorer": "value_aware"})", s.inputs), 0), "11.1")
      << "a value of 0 adds nothing";
}

TEST(TopK, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "top_k", "scorer": "exakt"})"),
            "/maskers/0/scorer: \"exakt\" is not one of \"exact\", \"value_aware\", \"page_bounds\", \"page_means\", "
            "\"key_norm\"; did you mean \"exact\"?");
  EXPECT_EQ(refusal(R"({"type": "top_k", "heavy_size": 0})"), "/maskers/0/heavy_size: must be > 0, got 0");
  EXPECT_EQ(refusal(R"({"type": "top_k", "page_size": 0})"), "/maskers/0/page_size: must be in [1, 2^31), got 0");
}

}  // namespace
}  // namespace reticle::testing
