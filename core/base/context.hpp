// The execution context that every operation takes: threads, seed, stop token, CUDA stream. Cheap to copy.
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
  /// Runs on a new pool of `threads` threads.
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

/// Sets the size of the process-wide pool for contexts made from now on; 0: RETICLE_NUM_THREADS or the number of cores
/// that the process may use. Existing contexts keep their pool.
RETICLE_API void set_threads(int threads);

}  // namespace reticle
