#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(OracleTopP, KeepsTheFewestKeysWhoseMassExceedsTheShare) {
  const float ln2 = std::log(2.0f);
  const Scored s(1, {0, 2 * ln2, ln2, 0});  // masses 1, 4, 2, 1 of 8
  const auto row = [&](const std::string& p) {
    return row_text(mask_of(R"({"type": "oracle_top_p", "top_p": )" + p + "}", s.inputs), 0);
  };
  EXPECT_EQ(row("0"), ".1..");
  EXPECT_EQ(row("0.49"), ".1..");
  EXPECT_EQ(row("0.7"), ".11.");
  EXPECT_EQ(row("0.8"), "111.");
  EXPECT_EQ(row("1"), "1111");
  EXPECT_EQ(row_text(mask_of(R"({"type": "oracle_top_p", "top_p": 0.4})", s.inputs, false,
                             mask_of(R"({"type": "sink", "sink_size": 2})", s.inputs)),
                     0),
            "111.")
      << "the mass is that of the keys not chosen yet";
}

TEST(OracleTopP, ForbiddenKeysHaveNoMass) {
  const float ln2 = std::log(2.0f), infinity = std::numeric_limits<float>::infinity();
  Scored s(1, {0, 2 * ln2, ln2, 0});  // masses 1, -, 2, 1 of 4
  const auto row = [&](const std::vector<float>& bias, const std::string& p) {
    s.inputs.attention_mask = TensorView(bias.data(), DType::f32, {1, 1, 1, 4});
    return row_text(mask_of(R"({"type": "oracle_top_p", "top_p": )" + p + "}", s.inputs), 0);
  };
  EXPECT_EQ(row({0, -infinity, 0, 0}, "0.49"), "..1.");
  EXPECT_EQ(row({0, -infinity, 0, 0}, "0.6"), "1.1.") << "ties: the lower index";
  EXPECT_EQ(row({0, -infinity, 0, 0}, "1"), "1.11");
  EXPECT_EQ(row({-infinity, -infinity, -infinity, -infinity}, "1"), "....");
}

TEST(OracleTopP, RefusesSharesOutsideZeroToOne) {
  EXPECT_EQ(refusal(R"({"type": "oracle_top_p", "top_p": 1.01})"), "/maskers/0/top_p: must be in [0, 1], got 1.01");
}

}  // namespace
}  // namespace reticle::testing
