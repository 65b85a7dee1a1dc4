// Parallel loops over ranges, split at fixed places: what a chunk computes never depends on the number of threads.
#pragma once

#include <memory>
#include <stop_token>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/function_ref.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

class RETICLE_API ThreadPool {
 public:
  /// `threads` includes the caller; 0 means RETICLE_NUM_THREADS, or else one thread per core that this process may use,
  /// or fewer if the system cannot start that many. ValueError if the number is negative or above 1024, if
  /// RETICLE_NUM_THREADS is not a number in [1, 1024], and if that many threads cannot be started. In a forked child,
  /// loops run on the calling thread.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  /// Calls body(chunk, begin, end) for each of the ceil(count / chunk_size) chunks of [0, count); returns when all are
  /// done. The first exception is rethrown here, and chunks that have not begun are dropped; the same happens when
  /// `stop` is requested, with Cancelled. Calls from within a body run on the calling thread.
  void for_each_chunk(Index count, Index chunk_size, FunctionRef<void(Index, Index, Index)> body,
                      const std::stop_token& stop = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace reticle
