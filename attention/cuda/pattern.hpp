// Masks that lie in device memory, in the forms that a plan is made of there.
#pragma once

#include <limits>
#include <variant>

#include <reticle/core/cuda/mask.hpp>
#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle::cuda {

/// BOOL or U8 (b, hq, ceil(sq / block_queries), ceil(sk / block_keys)) in device memory, not 0 where attended, with
/// stride 1 along the keys; a dimension of 1 shares a pattern.
struct AttendedBytes {
  TensorView attended;
  Index block_queries = 1, block_keys = 1;
};

/// Numbers of selected blocks of block_size keys, I32 (b, hkv, sq, n) in device memory, with stride 1 along n:
/// ascending in each row, -1 for those that are not needed, last. A query sees no key after its own position, the last
/// query being at the last key (Native Sparse Attention, Yuan et al. 2025).
struct NumberedKeyBlocks {
  TensorView numbers;
  Index block_size = 64;
};

/// Keys that end where a query does, the same for all heads. Key c is complete at position c * stride + kernel - 1; a
/// query, query 0 being at first_query, sees those that are complete at its own position, and of them the last `width`.
/// A sliding window has kernel and stride 1, keys that were compressed from windows those of their windows.
struct Band {
  Index first_query = 0, kernel = 1, stride = 1;
  Index width = std::numeric_limits<std::int32_t>::max();
};

using DevicePattern = std::variant<AttendedBytes, NumberedKeyBlocks, Band, DeviceMask>;

}  // namespace reticle::cuda
