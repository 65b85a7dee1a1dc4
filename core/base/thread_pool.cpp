#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <sched.h>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

#include <reticle/core/base/error.hpp>
#include <reticle/core/base/thread_pool.hpp>

namespace reticle {
namespace {

constexpr int kMaxThreads = 1024;

int default_threads() {
  if (const char* text = std::getenv("RETICLE_NUM_THREADS"); text != nullptr && *text != 0) {
    const std::string_view given = text;
    int threads = 0;
    const auto [end, error] = std::from_chars(given.data(), given.data() + given.size(), threads);
    if (error != std::errc() || end != given.data() + given.size() || threads < 1 || threads > kMaxThreads)
      throw ValueError("RETICLE_NUM_THREADS is \"" + std::string(given) + "\"; expected a number in [1, " +
                       std::to_string(kMaxThreads) + "]");
    return threads;
  }
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return std::max(1, CPU_COUNT(&cores));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

thread_local bool inside_body = false;

/// The first throw of a thread allocates memory for its exception state, which fails once memory has run out; so each
/// worker throws once when it starts. The exception thrown here needs no heap memory: the C++ runtime has an emergency
/// reserve.
void throw_once() {
  try {
    throw std::bad_alloc();
  } catch (const std::bad_alloc&) {
    inside_body = false;
  }
}

struct Loop {
  Index count, chunk_size, chunks;
  FunctionRef<void(Index, Index, Index)> body;
  const std::stop_token& stop;
  std::atomic<Index> next{0};
  std::mutex mutex;
  std::exception_ptr error;

  void work() {
    const bool outer = std::exchange(inside_body, true);
    for (Index chunk = next.fetch_add(1); chunk < chunks; chunk = next.fetch_add(1)) {
      try {
        if (stop.stop_requested()) throw Cancelled();
        body(chunk, chunk * chunk_size, std::min(count, (chunk + 1) * chunk_size));
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next.store(chunks);
      }
    }
    inside_body = outer;
  }
};

}  // namespace

struct ThreadPool::State {
  std::mutex caller;  // one loop at a time; a second caller waits
  std::mutex mutex;
  std::condition_variable wake, idle;
  Loop* loop = nullptr;
  std::uint64_t generation = 0;
  int busy = 0;
  bool quit = false;
  const pid_t process = getpid();
  std::vector<std::thread> workers;

  /// True in a forked child, which has none of the workers.
  bool forked() const { return getpid() != process; }

  void stop() {
    {
      const std::lock_guard lock(mutex);
      quit = true;
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
    workers.clear();
  }

  void run_worker() {
    throw_once();
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex);
    for (;;) {
      wake.wait(lock, [&] { return quit || (loop != nullptr && generation != seen); });
      if (quit) return;
      seen = generation;
      Loop* current = loop;
      ++busy;
      lock.unlock();
      current->work();
      lock.lock();
      if (--busy == 0) idle.notify_all();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  if (threads < 0 || threads > kMaxThreads)
    throw ValueError("threads: " + std::to_string(threads) + "; expected a number in [0, " +
                     std::to_string(kMaxThreads) + "]");
  const int wanted = std::min(threads > 0 ? threads : default_threads(), kMaxThreads);
  state_->workers.reserve(static_cast<std::size_t>(wanted) - 1);
  try {
    for (int i = 1; i < wanted; ++i) state_->workers.emplace_back([state = state_.get()] { state->run_worker(); });
  } catch (const std::system_error& error) {
    if (threads == 0) return;  // the default size: fewer threads are acceptable
    const std::size_t made = state_->workers.size() + 1;
    state_->stop();
    throw ValueError("threads: " + std::to_string(threads) + "; only " + std::to_string(made) +
                     " can be started here: " + error.code().message());
  } catch (...) {
    state_->stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (!state_->forked()) {
    state_->stop();
    return;
  }
  // A forked child has no threads to join, and mutexes that the parent's threads held stay locked; so the state is
  // leaked.
  for (std::thread& worker : state_->workers) worker.detach();
  static_cast<void>(state_.release());
}

int ThreadPool::threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::for_each_chunk(Index count, Index chunk_size, FunctionRef<void(Index, Index, Index)> body,
                                const std::stop_token& stop) {
  if (count <= 0) return;
  const Index size = std::max<Index>(1, chunk_size);
  Loop loop{count, size, (count - 1) / size + 1, body, stop};
  if (inside_body || loop.chunks == 1 || state_->workers.empty() || state_->forked()) {
    loop.work();
  } else {
    const std::lock_guard one_at_a_time(state_->caller);
    {
      const std::lock_guard lock(state_->mutex);
      state_->loop = &loop;
      ++state_->generation;
    }
    state_->wake.notify_all();
    loop.work();
    std::unique_lock lock(state_->mutex);
    state_->loop = nullptr;  // workers that wake late find no loop
    state_->idle.wait(lock, [&] { return state_->busy == 0; });
  }
  if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace reticle
