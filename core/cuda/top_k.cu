#include <string>

#include <reticle/core/cuda/check.cuh>
#include <reticle/core/cuda/top_k.hpp>
#include <reticle/core/cuda/top_k_block.hpp>

namespace reticle::cuda {
namespace {

__global__ void __launch_bounds__(kTopKThreads)
    top_k_kernel(const float* scores, Index count, int k, std::int32_t* indices, std::int32_t* counts) {
  extern __shared__ __align__(16) unsigned char memory[];
  const Index row = blockIdx.x;
  const float* const own = scores + row * count;
  const int found = top_k_row(
      DeviceBlock(), *reinterpret_cast<TopKShared*>(memory), [own](Index i) { return order_key(own[i]); }, count, k,
      indices + row * k);
  if (threadIdx.x == 0) counts[row] = found;
}

}  // namespace

void top_k(const float* scores, Index rows, Index count, Index k, std::int32_t* indices, std::int32_t* counts,
           Stream stream) {
  constexpr Index kMost = 2147483647;
  if (k < 1 || k > (Index{1} << 20)) throw ValueError("top_k: k is " + std::to_string(k) + "; expected 1 to 2^20");
  if (rows < 0 || count < 0 || rows > kMost || count > kMost)
    throw ValueError("top_k: " + std::to_string(rows) + " rows of " + std::to_string(count) + " are too many");
  if (rows == 0) return;
  allow_shared_memory<sizeof(TopKShared)>(top_k_kernel, "selecting");
  top_k_kernel<<<static_cast<unsigned>(rows), kTopKThreads, sizeof(TopKShared), static_cast<cudaStream_t>(stream)>>>(
      scores, count, static_cast<int>(k), indices, counts);
  check_launch("selecting");
}

}  // namespace reticle::cuda
