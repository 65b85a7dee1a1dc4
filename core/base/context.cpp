#include <memory>
#include <mutex>
#include <pthread.h>
#include <utility>

#include <reticle/core/base/context.hpp>

namespace reticle {
namespace {

/// The process-wide pool. Leaked on purpose: workers may outlive static destruction.
struct Shared {
  std::mutex mutex;
  std::shared_ptr<ThreadPool> pool;
};
Shared& shared();

/// Runs in a forked child, with the mutex locked by the fork handler. Threads are not forked, so the child abandons the
/// parent's pool (leaked: its threads cannot be joined) and makes one of its own at first use.
void leave_pool_to_parent() {
  static_cast<void>(new std::shared_ptr<ThreadPool>(std::move(shared().pool)));
  shared().mutex.unlock();
}

Shared& shared() {
  static Shared& instance = *[] {
    pthread_atfork([] { shared().mutex.lock(); }, [] { shared().mutex.unlock(); }, leave_pool_to_parent);
    return new Shared;
  }();
  return instance;
}

std::shared_ptr<ThreadPool> process_pool() {
  const std::lock_guard lock(shared().mutex);
  if (!shared().pool) shared().pool = std::make_shared<ThreadPool>();
  return shared().pool;
}

}  // namespace

Context::Context() : pool(process_pool()) {}
Context::Context(int threads) : pool(std::make_shared<ThreadPool>(threads)) {}

void set_threads(int threads) {
  auto pool = std::make_shared<ThreadPool>(threads);
  const std::lock_guard lock(shared().mutex);
  shared().pool.swap(pool);
}

}  // namespace reticle
