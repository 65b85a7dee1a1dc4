// What every operation that does work is handed: threads, seed, a way to stop, a GPU's stream. A cheap value.
#pragma once

#include <memory>
#include <stop_token>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/random.hpp>
#include <reticle/core/base/thread_pool.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

struct RETICLE_API Context {
  /// Runs on the pool that the process shares (made at first use).
  Context();
  /// Runs on `threads` threads of its own.
  explicit Context(int threads);

  std::shared_ptr<ThreadPool> pool;
  std::uint64_t seed = 0;
  std::stop_token stop;
  /// The cudaStream_t that work on a GPU is queued on; null: the default stream.
  void* stream = nullptr;

  void for_each_chunk(Index count, Index chunk_size, FunctionRef<void(Index, Index, Index)> body) const {
    pool->for_each_chunk(count, chunk_size, body, stop);
  }

  Philox random(int layer, Index batch, Index head, Index row) const {
    return {seed, static_cast<std::uint32_t>(layer), static_cast<std::uint32_t>(batch),
            static_cast<std::uint32_t>(head), static_cast<std::uint32_t>(row)};
  }
};

/// The size of the pool that contexts made from now on share; 0: RETICLE_NUM_THREADS or the process's cores. What runs
/// keeps the pool it began with.
RETICLE_API void set_threads(int threads);

}  // namespace reticle
