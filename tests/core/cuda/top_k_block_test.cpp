// The GPU's top-k, run on the CPU: the same source, its threads taking turns.
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/top_k_block.hpp>
#include <reticle/core/ops/select.hpp>

#include "support/cuda/threaded_block.hpp"

namespace reticle::cuda {
namespace {

std::vector<std::int32_t> on_block(const std::vector<float>& scores, int k, int threads = kTopKThreads) {
  const auto shared = std::make_unique<TopKShared>();
  std::vector<std::int32_t> out(static_cast<std::size_t>(k), -7);
  std::atomic<int> n = -1;
  run_block(threads, *shared, [&](const auto& block) {
    n.store(top_k_row(
                block, *shared, [&](Index i) { return order_key(scores[static_cast<std::size_t>(i)]); },
                static_cast<Index>(scores.size()), k, out.data()),
            std::memory_order_relaxed);
  });
  out.resize(static_cast<std::size_t>(n));
  return out;
}

std::vector<std::int32_t> on_cpu(const std::vector<float>& scores, int k) {
  std::vector<std::int32_t> out;
  top_k(scores, k, out);
  return out;
}

std::vector<float> normal(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw;
  std::vector<float> scores(n);
  for (float& score : scores) score = draw(random);
  return scores;
}

TEST(CudaTopK, SelectsWhatTheCpuSelectsAtAnyLengthAndK) {
  for (const std::size_t n : {1u, 2u, 31u, 511u, 512u, 513u, 2047u, 2049u, 5000u, 40000u}) {
    const std::vector<float> scores = normal(n, static_cast<unsigned>(n));
    for (const int k : {1, 2, 7, 256, 2048, 9000, 50000})
      ASSERT_EQ(on_block(scores, k), on_cpu(scores, k)) << n << " scores, k " << k;
  }
}

TEST(CudaThreads, SelectionWaitsForWhatItReads) {
  const ExecutedBy by_threads(Execution::threads);
  for (const std::size_t n : {100u, 5000u}) {
    const std::vector<float> scores = normal(n, 3);
    for (const int k : {7, 2048}) EXPECT_EQ(on_block(scores, k), on_cpu(scores, k));
  }
  const std::vector<float> equal(9000, 1.5f);
  EXPECT_EQ(on_block(equal, 300), on_cpu(equal, 300));
}

TEST(CudaTopK, EqualScoresGoToTheLowerIndex) {
  std::vector<float> scores(20000, 1.5f);
  EXPECT_EQ(on_block(scores, 300), on_cpu(scores, 300));  // too many for shared memory
  for (std::size_t i = 0; i < scores.size(); i += 3) scores[i] = 2;
  EXPECT_EQ(on_block(scores, 7000), on_cpu(scores, 7000));
  scores.resize(3000);
  EXPECT_EQ(on_block(scores, 1500), on_cpu(scores, 1500));
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = i % 2 == 0 ? 0.0f : -0.0f;
  EXPECT_EQ(on_block(scores, 10), on_cpu(scores, 10));
}

TEST(CudaTopK, NaNAndMinusInfinityAreNeverSelected) {
  std::vector<float> scores = normal(3000, 4);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (i % 3 == 0) scores[i] = -std::numeric_limits<float>::infinity();
    if (i % 7 == 0) scores[i] = std::nanf("");
    if (i % 501 == 1) scores[i] = std::numeric_limits<float>::infinity();
  }
  for (const int k : {1, 5, 100, 3000}) EXPECT_EQ(on_block(scores, k), on_cpu(scores, k)) << k;
  EXPECT_TRUE(on_block(std::vector<float>(50, -std::numeric_limits<float>::infinity()), 5).empty());
  EXPECT_TRUE(on_block(std::vector<float>(20000, std::nanf("")), 5).empty());
}

TEST(CudaTopK, NearlyEqualScoresAreToldApartByTheirLastBits) {
  std::vector<float> scores(30000);
  for (std::size_t i = 0; i < scores.size(); ++i)
    scores[i] = std::bit_cast<float>(0x3F800000u + static_cast<std::uint32_t>((i * 7919) % 30011));
  for (const int k : {1, 777, 29999}) EXPECT_EQ(on_block(scores, k), on_cpu(scores, k)) << k;
}

TEST(CudaTopK, TheNumberOfThreadsDoesNotMatter) {
  const std::vector<float> scores = normal(9000, 9);
  for (const int threads : {32, 128, 1024}) EXPECT_EQ(on_block(scores, 500, threads), on_cpu(scores, 500)) << threads;
}

}  // namespace
}  // namespace reticle::cuda
