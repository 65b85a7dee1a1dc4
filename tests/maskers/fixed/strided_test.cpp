#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(Strided, ReachesEveryKeyInTwoSteps) {
  const Scored s(10, std::vector<float>(10));
  const Mask strided = mask_of(R"({"type": "strided", "stride": 3, "summary_size": 1})", s.inputs);
  EXPECT_EQ(row_text(strided, 9), "1..1..1111") << "0, 3, 6 are multiples of 3 away; 7, 8, 9 are near";
  EXPECT_EQ(row_text(strided, 1), "11........");
  const Mask fixed = mask_of(R"({"type": "strided", "stride": 4, "pattern": "fixed", "summary_size": 1})", s.inputs);
  EXPECT_EQ(row_text(fixed, 9), "...1...111");
  EXPECT_EQ(row_text(fixed, 6), "...1111...");
}

TEST(Strided, KeepsNearKeysAndThoseAMultipleOfTheStrideAway) {
  const Scored s(13, std::vector<float>(20));
  for (const Index stride : {1, 3, 7, 50}) {
    const Mask mask = mask_of(masker("strided", R"("summary_size": 1, "stride": )" + std::to_string(stride)), s.inputs);
    for (Index query = 0; query < 13; ++query) {
      std::string expected;
      for (Index key = 0; key < 20; ++key) {
        const Index distance = query + 7 - key;
        expected += distance >= 0 && (distance < stride || distance % stride == 0) ? '1' : '.';
      }
      EXPECT_EQ(row_text(mask, query), expected) << "stride " << stride << ", query " << query;
    }
  }
}

TEST(Strided, TheFixedPatternKeepsTheOwnBlockAndTheEndsOfThoseBefore) {
  const Scored s(13, std::vector<float>(20));
  for (const Index stride : {2, 3, 7, 50}) {
    const Mask mask = mask_of(
        masker("strided", R"("pattern": "fixed", "summary_size": 2, "stride": )" + std::to_string(stride)), s.inputs);
    for (Index query = 0; query < 13; ++query) {
      std::string expected;
      for (Index key = 0; key < 20; ++key) {
        const bool own = key / stride == (query + 7) / stride;
        expected += key <= query + 7 && (own || key % stride >= stride - 2) ? '1' : '.';
      }
      EXPECT_EQ(row_text(mask, query), expected) << "stride " << stride << ", query " << query;
    }
  }
}

TEST(Strided, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "strided", "stride": 4, "summary_size": 5})"),
            "/maskers/0/summary_size: must be in [1, stride], got 5");
  EXPECT_EQ(refusal(R"({"type": "strided", "pattern": "sideways"})"),
            "/maskers/0/pattern: \"sideways\" is not one of \"strided\", \"fixed\"");
  EXPECT_EQ(refusal(R"({"type": "strided", "stride": 0})"), "/maskers/0/stride: must be in [1, 2^31), got 0");
}

}  // namespace
}  // namespace reticle::testing
