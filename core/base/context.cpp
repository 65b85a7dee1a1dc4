#include <memory>
#include <mutex>
#include <pthread.h>
#include <utility>

#include <reticle/core/base/context.hpp>

namespace reticle {
namespace {

/// What processes share: never destroyed, for threads may run when static objects go.
struct Shared {
  std::mutex mutex;
  std::shared_ptr<ThreadPool> pool;
};
Shared& shared();

/// A forked process makes a pool of its own: threads are not forked, and the lock is not held by anyone there.
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
