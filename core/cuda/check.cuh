// CUDA's error codes as exceptions. For .cu files.
#pragma once

#include <cuda_runtime.h>
#include <string>

#include <reticle/core/base/error.hpp>

namespace reticle::cuda {

/// Throws DeviceError that says what was attempted, unless it succeeded.
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // forgets it: the next launch asks for the last error and would report this one
  throw DeviceError(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

}  // namespace reticle::cuda
