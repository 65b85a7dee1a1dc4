#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/nsa/config.hpp>
#include <reticle/core/base/error.hpp>

#include "support/message_of.hpp"
#include "support/nsa.hpp"

namespace reticle::testing {
namespace {

TEST(NsaConfig, SaysWhichRuleABadValueBreaks) {
  const auto message = [](const NsaConfig& config) { return message_of<ConfigError>([&] { config.validate(); }); };
  EXPECT_EQ(message({}), "nothing was thrown");
  EXPECT_EQ(message({.kernel_stride = 15}), "kernel_stride: 15; expected a divisor of kernel_size, 32");
  EXPECT_EQ(message({.block_size = 40}), "block_size: 40; expected a multiple of kernel_stride, 16");
  EXPECT_EQ(message({.topk = 2}), "topk: 2; expected at least init_blocks + local_blocks, 3");
  EXPECT_EQ(message({.local_blocks = 0}), "local_blocks: 0; expected a number in [1, 2^24]");
  EXPECT_EQ(message({.window_size = -1}), "window_size: -1; expected a number in [0, 2^24]");
  EXPECT_EQ(message({.kernel_size = 0}), "kernel_size: 0; expected a number in [1, 2^24]");
  EXPECT_EQ(message({.init_blocks = -1}), "init_blocks: -1; expected a number in [0, 2^24]");
}

TEST(NsaConfig, TakesTheLeastOfEverything) {
  const NsaConfig least{.kernel_size = 1,
                        .kernel_stride = 1,
                        .block_size = 1,
                        .topk = 1,
                        .init_blocks = 0,
                        .local_blocks = 1,
                        .window_size = 0};
  EXPECT_NO_THROW(least.validate());
  EXPECT_EQ(least.compressed_length(3), 3);
}

TEST(NsaConfig, AWindowCountsOnceAllOfItIsThere) {
  const std::vector<std::pair<Index, Index>> lengths = {{0, 0}, {7, 0}, {8, 1}, {11, 1}, {12, 2}, {100, 24}};
  for (const auto& [tokens, compressed] : lengths)
    EXPECT_EQ(kSmallNsa.compressed_length(tokens), compressed) << tokens << " tokens";
}

}  // namespace
}  // namespace reticle::testing
