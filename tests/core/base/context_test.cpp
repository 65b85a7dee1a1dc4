#include <atomic>
#include <cstdint>
#include <stop_token>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>

#include <reticle/core/base/context.hpp>
#include <reticle/core/base/error.hpp>

namespace reticle {
namespace {

TEST(Context, SharesThePoolOfTheProcessUntilItsSizeIsSet) {
  const Context before;
  EXPECT_EQ(before.pool, Context().pool);
  EXPECT_NE(Context(2).pool, Context(2).pool) << "of its own";
  set_threads(3);
  EXPECT_EQ(Context().pool->threads(), 3);
  EXPECT_EQ(Context().pool, Context().pool);
  EXPECT_NE(before.pool, Context().pool) << "what was made before keeps its pool";
  set_threads(before.pool->threads());
}

TEST(Context, ANumberOfThreadsThatIsRefusedLeavesThePool) {
  const Context before;
  EXPECT_THROW(set_threads(-1), ValueError);
  EXPECT_EQ(Context().pool, before.pool);
}

TEST(Context, DrawsTheSameForARowWhateverWasDrawnForOthers) {
  Context context(1);
  context.seed = 5;
  Philox first = context.random(1, 2, 3, 4);
  const std::uint32_t word = first.next();
  EXPECT_EQ(context.random(1, 2, 3, 4).next(), word);
  EXPECT_EQ(Philox(5, 1, 2, 3, 4).next(), word);
  context.seed = 6;
  EXPECT_NE(context.random(1, 2, 3, 4).next(), word);
}

TEST(Context, ForkedProcessesCompute) {
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
  std::thread busy([&] {  // so that the fork happens while a loop runs
    while (!stop) sum([&](const auto& body) { pool.for_each_chunk(1000, 1, body); });
  });
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // turns a hang into a failure
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

TEST(Context, StopsWhenAsked) {
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
