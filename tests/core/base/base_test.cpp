#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <numeric>
#include <stop_token>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/base/context.hpp>
#include <reticle/core/base/error.hpp>

namespace reticle {
namespace {

// Known answers of Random123's kat_vectors for philox4x32-10.
TEST(Philox, ReproducesThePublishedVectors) {
  const auto expect = [](Philox::Block counter, std::uint32_t k0, std::uint32_t k1, Philox::Block expected) {
    const std::uint32_t key[2] = {k0, k1};
    const Philox::Block block = Philox::generate(counter, key);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(block.word[i], expected.word[i]);
  };
  expect({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  expect({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffff, 0xffffffff,
         {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(Philox, StreamsOfDifferentRowsDiffer) {
  std::vector<std::uint32_t> firsts;
  for (std::uint32_t layer = 0; layer < 3; ++layer) {
    for (std::uint32_t head = 0; head < 3; ++head) {
      for (std::uint32_t row = 0; row < 3; ++row) firsts.push_back(Philox(1, layer, 0, head, row).next());
    }
  }
  std::sort(firsts.begin(), firsts.end());
  EXPECT_EQ(std::unique(firsts.begin(), firsts.end()), firsts.end());
}

TEST(Philox, BelowIsUniform) {
  Philox random(5, 0, 0, 0, 0);
  std::vector<int> counts(7);
  for (int i = 0; i < 70000; ++i) ++counts[random.below(7)];
  for (const int count : counts) EXPECT_NEAR(count, 10000, 400);  // 4.3 standard deviations
}

TEST(Philox, NormalNumbersHaveTheMomentsOfTheNormalDistribution) {
  Philox random(6, 0, 0, 0, 0);
  constexpr int kCount = 100000;
  double sum = 0, squares = 0, fourths = 0;
  for (int i = 0; i < kCount; ++i) {
    const double x = static_cast<double>(random.normal());
    sum += x;
    squares += x * x;
    fourths += x * x * x * x;
  }
  EXPECT_NEAR(sum / kCount, 0, 0.015);
  EXPECT_NEAR(squares / kCount, 1, 0.02);
  EXPECT_NEAR(fourths / kCount, 3, 0.15);
}

TEST(ThreadPool, CoversEveryChunkOnceWhateverTheThreads) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const Index count : {0, 1, 7, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
      pool.for_each_chunk(count, 3, [&](Index chunk, Index begin, Index end) {
        EXPECT_EQ(begin, chunk * 3);
        for (Index i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
      });
      for (const auto& times : seen) EXPECT_EQ(times.load(), 1);
    }
  }
}

TEST(ThreadPool, RethrowsTheFirstErrorAndStaysUsable) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.for_each_chunk(100, 1, [](Index, Index, Index) { throw ValueError("no"); }), ValueError);
  std::atomic<int> done{0};
  pool.for_each_chunk(10, 1, [&](Index, Index, Index) { ++done; });
  EXPECT_EQ(done.load(), 10);
}

TEST(ThreadPool, NestedAndConcurrentLoopsFinish) {
  ThreadPool pool(3);
  std::atomic<int> done{0};
  pool.for_each_chunk(8, 1,
                      [&](Index, Index, Index) { pool.for_each_chunk(8, 1, [&](Index, Index, Index) { ++done; }); });
  EXPECT_EQ(done.load(), 64);
  std::vector<std::jthread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int j = 0; j < 50; ++j) pool.for_each_chunk(4, 1, [&](Index, Index, Index) { ++done; });
    });
  }
  callers.clear();
  EXPECT_EQ(done.load(), 64 + 4 * 50 * 4);
}

TEST(ThreadPool, RefusesNumbersOfThreadsThatMakeNoSense) {
  for (const int threads : {-1, 1025, 1000000000}) EXPECT_THROW(ThreadPool{threads}, ValueError) << threads;
  for (const char* text : {"abc", "0", "-2", "1e3", "99999999999"}) {
    setenv("RETICLE_NUM_THREADS", text, 1);
    EXPECT_THROW(ThreadPool{0}, ValueError) << text;
  }
  setenv("RETICLE_NUM_THREADS", "3", 1);
  EXPECT_EQ(ThreadPool(0).threads(), 3);
  unsetenv("RETICLE_NUM_THREADS");
}

TEST(ThreadPool, ForkedProcessesCompute) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer does not follow a fork of several threads";
#endif
  ThreadPool pool(2);
  const auto sum = [](const auto& loop) {
    std::atomic<Index> total{0};
    loop([&](Index, Index begin, Index end) { total += end - begin; });
    return total.load();
  };
  std::atomic<bool> stop{false};
  std::thread busy([&] {  // forks happen while a loop runs
    while (!stop) sum([&](const auto& body) { pool.for_each_chunk(1000, 1, body); });
  });
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // a hang is a failure
      const bool own = sum([&](const auto& body) { Context().for_each_chunk(1000, 10, body); }) == 1000;
      set_threads(2);
      const bool again = sum([&](const auto& body) { Context().for_each_chunk(1000, 10, body); }) == 1000;
      _exit(own && again ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  stop = true;
  busy.join();
}

TEST(ThreadPool, StopsWhenAsked) {
  std::stop_source source;
  Context context(2);
  context.stop = source.get_token();
  std::atomic<int> done{0};
  EXPECT_THROW(context.for_each_chunk(1000, 1,
                                      [&](Index, Index, Index) {
                                        ++done;
                                        source.request_stop();
                                      }),
               Cancelled);
  EXPECT_LE(done.load(), 2);
}

}  // namespace
}  // namespace reticle
