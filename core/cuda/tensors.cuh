// Checks and dispatch for the tensors that kernels read. For .cu files.
#pragma once

#include <string>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/error.hpp>
#include <reticle/core/cuda/check.cuh>
#include <reticle/core/cuda/row_block.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/cuda/tensor.hpp>
#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle::cuda {

/// DeviceError, naming the tensor, unless its rows are contiguous and can be read 16 bytes at a time.
inline void require_aligned(const TensorView& view, const char* name) {
  const auto element = static_cast<std::uintptr_t>(size_of(view.dtype));
  bool aligned = view.stride(3) == 1 && reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0;
  for (int dim = 0; dim < 3; ++dim)
    aligned &= view.size(dim) < 2 || static_cast<std::uintptr_t>(view.stride(dim)) * element % 16 == 0;
  if (!aligned)
    throw DeviceError(std::string(name) + ": " + view.describe() +
                      "; expected contiguous rows that are aligned to 16 bytes");
}

/// Calls body.template operator()<T, head_dim>() for the sizes that kernels are compiled for; DeviceError for others.
template <class Body>
void dispatch_head_dim(DType dtype, Index head_dim, Body&& body) {
  dispatch_float(dtype, "queries", [&]<class T>() {
    if (head_dim == 64) return body.template operator()<T, 64>();
    if (head_dim == 128) return body.template operator()<T, 128>();
    if (head_dim == 256) return body.template operator()<T, 256>();
    throw DeviceError("head_dim is " + std::to_string(head_dim) + "; on a GPU it is 64, 128 or 256");
  });
}

}  // namespace reticle::cuda
