#include <atomic>
#include <cstdlib>
#include <stop_token>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/base/error.hpp>
#include <reticle/core/base/thread_pool.hpp>

namespace reticle {
namespace {

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

TEST(ThreadPool, DropsChunksOnceAStopIsRequested) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    std::stop_source source;
    std::atomic<int> done{0};
    EXPECT_THROW(pool.for_each_chunk(
                     1000, 1,
                     [&](Index, Index, Index) {
                       ++done;
                       source.request_stop();
                     },
                     source.get_token()),
                 Cancelled);
    EXPECT_LE(done.load(), threads);
    done = 0;
    EXPECT_THROW(pool.for_each_chunk(
                     10, 1, [&](Index, Index, Index) { ++done; }, source.get_token()),
                 Cancelled);
    EXPECT_EQ(done.load(), 0) << "a stop that was requested before";
  }
}

}  // namespace
}  // namespace reticle
