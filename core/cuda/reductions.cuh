// Sums over device memory, by Thrust: nothing here is worth a kernel of its own. Written against an execution policy,
// so that tests run them on the host.
#pragma once

#include <bit>
#include <cuda_runtime.h>
#include <thrust/execution_policy.h>
#include <thrust/functional.h>
#include <thrust/system/cuda/execution_policy.h>
#include <thrust/transform_reduce.h>
#include <thrust/transform_scan.h>

#include <reticle/core/base/types.hpp>
#include <reticle/core/cuda/check.cuh>
#include <reticle/core/cuda/runtime.hpp>

namespace reticle::cuda {

/// Where Thrust's temporaries come from: the stream's pool, and back to it in its order.
class StreamMemory {
 public:
  using value_type = char;

  explicit StreamMemory(Stream stream) : stream_(static_cast<cudaStream_t>(stream)) {}
  char* allocate(std::ptrdiff_t bytes) {
    void* memory = nullptr;
    check(cudaMallocAsync(&memory, static_cast<std::size_t>(bytes), stream_), "allocating device memory");
    return static_cast<char*>(memory);
  }
  void deallocate(char* memory, std::size_t) { cudaFreeAsync(memory, stream_); }

 private:
  cudaStream_t stream_;
};

/// Runs on the stream; waits only for what is returned to the host.
inline auto on_stream(StreamMemory& memory, Stream stream) {
  return thrust::cuda::par_nosync(memory).on(static_cast<cudaStream_t>(stream));
}

struct Widened {
  __host__ __device__ Index operator()(std::int32_t count) const { return count; }
};
struct BitsSet {
  __host__ __device__ Index operator()(std::uint64_t word) const { return std::popcount(word); }
};

template <class Policy>
Index sum_of(const Policy& policy, const std::int32_t* counts, Index count) {
  return thrust::transform_reduce(policy, counts, counts + count, Widened(), Index{0}, thrust::plus<Index>());
}

/// Bits that are set in so many words.
template <class Policy>
Index bits_set(const Policy& policy, const std::uint64_t* words, Index count) {
  return thrust::transform_reduce(policy, words, words + count, BitsSet(), Index{0}, thrust::plus<Index>());
}

/// starts[i + 1] becomes the sum of the first i + 1 counts; starts[0] stays.
template <class Policy>
void running_sums(const Policy& policy, const std::int32_t* counts, Index count, Index* starts) {
  thrust::transform_inclusive_scan(policy, counts, counts + count, starts + 1, Widened(), thrust::plus<Index>());
}

}  // namespace reticle::cuda
