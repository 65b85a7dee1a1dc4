// What is summed over device memory.
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/reductions.cuh>

namespace reticle::cuda {
namespace {

class CudaReductions : public ::testing::Test {
 protected:
  void SetUp() override {
    if (device_count() == 0) GTEST_SKIP() << "no GPU: " << why_unavailable();
  }
};

TEST_F(CudaReductions, SumsDoNotOverflowCounts) {
  const std::vector<std::int32_t> counts = {2000000000, 0, 2000000000, 7};
  const Buffer on_device = Buffer::copy_of(std::span<const std::int32_t>(counts), nullptr);
  EXPECT_EQ(sum_of(on_device.as<std::int32_t>(), 4, nullptr), 4000000007);
  EXPECT_EQ(sum_of(on_device.as<std::int32_t>(), 0, nullptr), 0);
  const Buffer starts = Buffer::zeros(5 * sizeof(Index), nullptr);
  running_sums(on_device.as<std::int32_t>(), 4, starts.as<Index>(), nullptr);
  std::vector<Index> found(5);
  starts.copy_to(found.data(), nullptr);
  EXPECT_EQ(found, (std::vector<Index>{0, 2000000000, 2000000000, 4000000000, 4000000007}));
}

TEST_F(CudaReductions, BitsAreCounted) {
  const std::vector<std::uint64_t> words = {~std::uint64_t{0}, 0, 1, std::uint64_t{5} << 61};
  const Buffer on_device = Buffer::copy_of(std::span<const std::uint64_t>(words), nullptr);
  EXPECT_EQ(bits_set(on_device.as<std::uint64_t>(), 4, nullptr), 64 + 1 + 2);
}

}  // namespace
}  // namespace reticle::cuda
