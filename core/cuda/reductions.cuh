// Reductions and scans over device memory, with Thrust: none of them is worth its own kernel. On the emulated device
// the standard library's algorithms replace them.
#pragma once

#include <bit>
#include <cstdint>
#include <cuda_runtime.h>

#include <reticle/core/base/types.hpp>
#include <reticle/core/cuda/check.cuh>
#include <reticle/core/cuda/runtime.hpp>

#if defined(__CUDACC__)
#include <thrust/execution_policy.h>
#include <thrust/functional.h>
#include <thrust/system/cuda/execution_policy.h>
#include <thrust/transform_reduce.h>
#include <thrust/transform_scan.h>
#else
#include <functional>
#include <numeric>

#include <reticle/core/cuda/emulated/device.hpp>
#endif

namespace reticle::cuda {

struct Widened {
  RETICLE_HD Index operator()(std::int32_t count) const { return count; }
};
struct BitsSet {
  RETICLE_HD Index operator()(std::uint64_t word) const { return std::popcount(word); }
};

#if defined(__CUDACC__)

/// Allocator for Thrust's temporaries: takes memory from the stream's pool, and returns it in the stream's order.
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

/// The sum of f over n elements of device memory; waits for the result.
template <class T, class F>
Index sum_over(const T* elements, Index n, F f, Stream stream) {
  StreamMemory memory(stream);
  const auto policy = thrust::cuda::par_nosync(memory).on(static_cast<cudaStream_t>(stream));
  return thrust::transform_reduce(policy, elements, elements + n, f, Index{0}, thrust::plus<Index>());
}

/// Sets starts[i + 1] to the sum of the first i + 1 counts; starts[0] is not written.
inline void running_sums(const std::int32_t* counts, Index count, Index* starts, Stream stream) {
  StreamMemory memory(stream);
  const auto policy = thrust::cuda::par_nosync(memory).on(static_cast<cudaStream_t>(stream));
  thrust::transform_inclusive_scan(policy, counts, counts + count, starts + 1, Widened(), thrust::plus<Index>());
}

#else

template <class T, class F>
Index sum_over(const T* elements, Index n, F f, Stream stream) {
  Index sum = 0;
  emulated::enqueue(stream, [&] { sum = std::transform_reduce(elements, elements + n, Index{0}, std::plus<>(), f); });
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for a sum");
  return sum;
}

inline void running_sums(const std::int32_t* counts, Index count, Index* starts, Stream stream) {
  emulated::enqueue(stream, [=] {
    std::transform_inclusive_scan(counts, counts + count, starts + 1, std::plus<>(), Widened(), Index{0});
  });
}

#endif

/// The sum of `count` counts in device memory; waits for it.
inline Index sum_of(const std::int32_t* counts, Index count, Stream stream) {
  return sum_over(counts, count, Widened(), stream);
}

/// The number of bits set in `count` words of device memory; waits for it.
inline Index bits_set(const std::uint64_t* words, Index count, Stream stream) {
  return sum_over(words, count, BitsSet(), stream);
}

}  // namespace reticle::cuda
