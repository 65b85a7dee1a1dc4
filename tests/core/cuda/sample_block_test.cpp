// The GPU's sampling without replacement, run on the CPU.
#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/sample_block.hpp>
#include <reticle/core/cuda/top_k_block.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::cuda {
namespace {

/// The numbers drawn of [0, n), on a block; `rejected` says whether a number of the stream was skipped.
std::vector<std::int32_t> sample_on_block(Index n, double rate, const Philox& random, bool& rejected) {
  const HostBlock block(kTopKThreads);
  SampleShared shared{};
  std::vector<std::int32_t> draws(static_cast<std::size_t>(n), -7), first(draws), found;
  const auto all = [](Index) { return true; };
  const std::int32_t count = count_candidates(block, shared, all, n);
  sample_row(block, shared, all, n, count, static_cast<std::int32_t>(sample_size(rate, n)), random, 0, draws.data(),
             first.data(), [&](int, Index i) { found.push_back(static_cast<std::int32_t>(i)); });
  std::ranges::sort(found);
  rejected = shared.rejected != 0;
  return found;
}

std::vector<std::int32_t> sample_on_cpu(Index n, double rate, Philox random) {
  std::vector<std::int32_t> drawn;
  sample_without_replacement(n, sample_size(rate, n), random, drawn);
  return drawn;
}

TEST(CudaSample, DrawsWhatTheCpuDraws) {
  bool rejected = false;
  for (const Index n : {1, 2, 3, 50, 513, 6000}) {
    for (const double rate : {0.01, 0.3, 0.5, 0.51, 0.97, 1.0}) {
      for (std::uint32_t row = 0; row < 5; ++row) {
        const Philox random(9, 1, 2, 3, row);
        ASSERT_EQ(sample_on_block(n, rate, random, rejected), sample_on_cpu(n, rate, random))
            << n << " candidates, rate " << rate;
      }
    }
  }
}

TEST(CudaSample, ANumberThatTheStreamRejectsMovesTheDrawsAfterIt) {
  constexpr Index kMany = Index{1} << 20;
  const Philox random(1, 0, 0, 0, 0);
  bool rejected = false;
  EXPECT_EQ(sample_on_block(kMany, 0.03, random, rejected), sample_on_cpu(kMany, 0.03, random));
  EXPECT_TRUE(rejected);  // about seven are expected
}

}  // namespace
}  // namespace reticle::cuda
