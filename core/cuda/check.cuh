// CUDA's error codes as exceptions. For .cu files.
#pragma once

#include <cuda_runtime.h>
#include <string>

#include <reticle/core/base/error.hpp>

namespace reticle::cuda {

/// DeviceError that says what was attempted, unless it succeeded.
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw DeviceError(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

/// After a launch.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

/// What a block may have of shared memory: on compute capability 8.9, which has least, and on 9.0.
inline constexpr int kMostSharedMemory = 99 * 1024, kMostSharedMemoryOfHopper = 227 * 1024;

/// Before a launch with so many bytes of dynamic shared memory, which are more than kernels have unasked.
template <int bytes, int most = kMostSharedMemory, class Kernel>
void allow_shared_memory(Kernel* kernel, const char* what) {
  static_assert(bytes <= most);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
}

}  // namespace reticle::cuda
