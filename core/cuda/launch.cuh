// Kernels, and the only function that launches them. For .cu files.
//
// A kernel is a small struct that is copied to the device. Its members are its arguments, and it has
//
//   static constexpr int kThreads = ...;          // of a block
//   static constexpr int kBlocks = ...;           // optional: blocks that a multiprocessor must have room for
//   using Shared = ...;                           // optional: shared memory of a block
//   template <class Block>
//   RETICLE_HD void operator()(const Block& block, [Shared& shared,] Index number) const;
//
// which does the work of block `number`. On the emulated device (core/cuda/emulated) blocks are loops on the host.
#pragma once

#include <cstddef>
#include <string>

#include <reticle/core/base/types.hpp>
#include <reticle/core/cuda/block.hpp>
#include <reticle/core/cuda/check.cuh>
#include <reticle/core/cuda/runtime.hpp>

#if !defined(__CUDACC__)
#include <reticle/core/cuda/emulated/device.hpp>
#endif

namespace reticle::cuda {

/// Limits of shared memory per block: without opting in, after opting in on compute capability 8.9, which has the
/// least, and on 9.0.
inline constexpr std::size_t kUnaskedSharedMemory = 48 * 1024, kMaxSharedMemory = 99 * 1024,
                             kMaxSharedMemoryOfHopper = 227 * 1024;

namespace launch_detail {

struct None {};

template <class Kernel>
struct SharedOf {
  using type = None;
};
template <class Kernel>
  requires requires { typename Kernel::Shared; }
struct SharedOf<Kernel> {
  using type = typename Kernel::Shared;
};

template <class Kernel>
inline constexpr bool has_shared = requires { typename Kernel::Shared; };
/// Whether shared memory is allocated dynamically: static memory has a limit, and is aligned to 16 bytes only.
template <class Kernel>
inline constexpr bool is_dynamic = sizeof(typename SharedOf<Kernel>::type) > kUnaskedSharedMemory ||
                                   alignof(typename SharedOf<Kernel>::type) > 16;
/// Bytes of dynamic shared memory. CUDA promises an alignment of 16 bytes only, so larger alignments need extra space.
template <class Kernel>
inline constexpr std::size_t dynamic_bytes =
    !is_dynamic<Kernel>
        ? 0
        : sizeof(typename SharedOf<Kernel>::type) +
              (alignof(typename SharedOf<Kernel>::type) > 16 ? alignof(typename SharedOf<Kernel>::type) : 0);

}  // namespace launch_detail

#if defined(__CUDACC__)

namespace launch_detail {

template <class Kernel>
__device__ void run(const Kernel& kernel) {
  const auto number = static_cast<Index>(blockIdx.x);
  if constexpr (!has_shared<Kernel>) {
    kernel(DeviceBlock(), number);
  } else {
    using Shared = typename Kernel::Shared;
    if constexpr (is_dynamic<Kernel>) {
      extern __shared__ __align__(16) unsigned char memory[];
      constexpr auto kAlignment = static_cast<unsigned>(alignof(Shared));
      unsigned char* aligned = memory;
      if constexpr (kAlignment > 16)
        aligned += kAlignment - static_cast<unsigned>(__cvta_generic_to_shared(memory)) % kAlignment;
      kernel(DeviceBlock(), *reinterpret_cast<Shared*>(aligned), number);
    } else {
      __shared__ Shared shared;
      kernel(DeviceBlock(), shared, number);
    }
  }
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) start(const __grid_constant__ Kernel kernel) {
  run(kernel);
}
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    start_beside_others(const __grid_constant__ Kernel kernel) {
  run(kernel);
}

template <class Kernel>
auto* function_of() {
  if constexpr (requires { Kernel::kBlocks; }) {
    return &start_beside_others<Kernel>;
  } else {
    return &start<Kernel>;
  }
}

}  // namespace launch_detail

#endif

/// Launches `blocks` blocks in the stream's order, without waiting; 0 blocks launch nothing. DeviceError, naming
/// `what`.
template <class Kernel>
void launch(const Kernel& kernel, Index blocks, Stream stream, const char* what) {
  constexpr Index kMaxBlocks = 2147483647;
  static_assert(Kernel::kThreads > 0 && Kernel::kThreads <= 1024 && Kernel::kThreads % kWarp == 0);
  static_assert(launch_detail::dynamic_bytes<Kernel> <= kMaxSharedMemoryOfHopper);
  if (blocks == 0) return;
  if (blocks < 0 || blocks > kMaxBlocks)
    throw DeviceError(std::string("CUDA: ") + what + ": " + std::to_string(blocks) +
                      " blocks; expected fewer than 2^31");
#if defined(__CUDACC__)
  constexpr std::size_t kBytes = launch_detail::dynamic_bytes<Kernel>;
  auto* const function = launch_detail::function_of<Kernel>();
  if constexpr (kBytes > kUnaskedSharedMemory) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)), what);
  }
  function<<<static_cast<unsigned>(blocks), Kernel::kThreads, kBytes, static_cast<cudaStream_t>(stream)>>>(kernel);
  check(cudaGetLastError(), what);
#else
  emulated::enqueue(stream, [kernel, blocks] {
    const HostBlock block(Kernel::kThreads);
    for (Index number = 0; number < blocks; ++number) {
      if constexpr (launch_detail::has_shared<Kernel>) {
        const emulated::SharedMemory<typename Kernel::Shared> shared;  // used by this block only, and not cleared
        kernel(block, *shared, number);
      } else {
        kernel(block, number);
      }
    }
  });
#endif
}

}  // namespace reticle::cuda
