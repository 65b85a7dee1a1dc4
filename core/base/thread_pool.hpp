// Loops over ranges, split at fixed places: what a chunk computes never depends on how many threads there are.
#pragma once

#include <memory>
#include <stop_token>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/function_ref.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

class RETICLE_API ThreadPool {
 public:
  /// `threads` counts the caller; 0 means RETICLE_NUM_THREADS or else every core that this process may use, as far as
  /// threads can be made. ValueError for numbers that are negative or above 1024, for a RETICLE_NUM_THREADS that is no
  /// such number, and when so many cannot be made. In a forked process loops run on the calling thread.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  /// Calls body(chunk, begin, end) for each of the ceil(count / chunk_size) chunks of [0, count); returns when all are
  /// done. The first exception is rethrown here and the chunks not yet begun are dropped; so they are when `stop` is
  /// requested, and Cancelled is thrown. Calls from within a body run on the calling thread.
  void for_each_chunk(Index count, Index chunk_size, FunctionRef<void(Index, Index, Index)> body,
                      const std::stop_token& stop = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace reticle
