// What Thrust sums, on the host.
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/reductions.cuh>

namespace reticle::cuda {
namespace {

TEST(CudaReductions, SumsDoNotOverflowCounts) {
  const std::vector<std::int32_t> counts = {2000000000, 0, 2000000000, 7};
  EXPECT_EQ(sum_of(thrust::host, counts.data(), 4), 4000000007);
  EXPECT_EQ(sum_of(thrust::host, counts.data(), 0), 0);
  std::vector<Index> starts(5, 0);
  running_sums(thrust::host, counts.data(), 4, starts.data());
  EXPECT_EQ(starts, (std::vector<Index>{0, 2000000000, 2000000000, 4000000000, 4000000007}));
}

TEST(CudaReductions, BitsAreCounted) {
  const std::vector<std::uint64_t> words = {~std::uint64_t{0}, 0, 1, std::uint64_t{5} << 61};
  EXPECT_EQ(bits_set(thrust::host, words.data(), 4), 64 + 1 + 2);
}

}  // namespace
}  // namespace reticle::cuda
