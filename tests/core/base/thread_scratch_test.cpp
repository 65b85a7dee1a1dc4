#include <atomic>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/base/thread_scratch.hpp>

namespace reticle {
namespace {

std::atomic<int> alive = 0;

struct Counted {
  Counted() { ++alive; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  ~Counted() { --alive; }
  std::vector<int> values;
};

Counted& of_this_thread() {
  static thread_local constinit ThreadScratch<Counted> scratch;
  return scratch.get();
}

Counted& another_of_this_thread() {
  static thread_local constinit ThreadScratch<Counted> scratch;
  return scratch.get();
}

TEST(ThreadScratch, IsKeptFromCallToCallAndEndsWithItsThread) {
  const int before = alive;
  std::thread([&] {
    of_this_thread().values = {1, 2, 3};
    EXPECT_EQ(of_this_thread().values.size(), 3u);
    EXPECT_NE(&of_this_thread(), &another_of_this_thread());
    Counted* here = &of_this_thread();
    std::thread([&] {
      EXPECT_NE(&of_this_thread(), here);
      EXPECT_TRUE(of_this_thread().values.empty());
    }).join();
    EXPECT_EQ(alive, before + 2);
  }).join();
  EXPECT_EQ(alive, before);
}

}  // namespace
}  // namespace reticle
