#include <algorithm>
#include <cctype>
#include <cstdint>
#include <string>

#include <gtest/gtest.h>

#include <reticle/core/base/processor.hpp>

#include "support/targets.hpp"

namespace reticle::testing {
namespace {

TEST(Processor, NamesOneInstructionSet) {
  const std::string name = instruction_set();
  ASSERT_FALSE(name.empty());
  EXPECT_TRUE(std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isupper(c) != 0 || std::isdigit(c) != 0 || c == '_';
  })) << name;
  EXPECT_NE(name, "UNKNOWN");
}

TEST(Processor, NamesTheSetThatKernelsAreForcedTo) {
  int forced = 0;
  for_each_target([&] {
    const std::int64_t target = hwy::SupportedTargets();
    if (target == HWY_AVX3_DL) return;  // only one kernel file is compiled for this target
    ++forced;
    EXPECT_EQ(instruction_set(), hwy::TargetName(target));
  });
  EXPECT_GT(forced, 0);
}

}  // namespace
}  // namespace reticle::testing
