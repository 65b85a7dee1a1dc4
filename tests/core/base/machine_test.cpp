#include <string>

#include <gtest/gtest.h>

#include <reticle/core/base/machine.hpp>

namespace reticle::testing {
namespace {

TEST(Machine, ProductsOfBfloat16AreExactWhereTheProcessorHasNoInstructionForPairs) {
  if (has_bf16_pairs()) {
    EXPECT_NE(bf16_product(), Bf16Product::exact);
  } else {
    EXPECT_EQ(bf16_product(), Bf16Product::exact);
    EXPECT_EQ(time_of_bf16_pairs(), 0);
  }
  EXPECT_EQ(bf16_product(), bf16_product());
}

TEST(Machine, TheInstructionForPairsTakesAsLongAsAFewMultiplyAdds) {
  if (!has_bf16_pairs()) GTEST_SKIP() << "no AVX512_BF16 here";
  const double time = time_of_bf16_pairs();
  EXPECT_GT(time, 0.3);
  EXPECT_LT(time, 20);
}

TEST(Machine, EveryProductHasTheNameByWhichItIsAskedFor) {
  EXPECT_EQ(name_of(Bf16Product::pairs), "pairs");
  EXPECT_EQ(name_of(Bf16Product::floats), "floats");
  EXPECT_EQ(name_of(Bf16Product::exact), "exact");
}

}  // namespace
}  // namespace reticle::testing
