// What attention takes for a mask: a Mask, or a rule or a tensor that a plan is made of where the tensors lie.
#pragma once

#include <limits>
#include <variant>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle {

/// BOOL or U8 (b, hq, ceil(sq / block_queries), ceil(sk / block_keys)), not 0 where attended, with stride 1 along the
/// keys; a dimension of 1 shares a pattern.
struct AttendedBytes {
  TensorView attended;
  Index block_queries = 1, block_keys = 1;
};

/// Numbers of selected blocks of block_size keys, I32 (b, hkv, sq, n), with stride 1 along n: ascending in each row, -1
/// for those that are left out, last; a dimension of 1 is shared. A query sees no key after its own position, the last
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

using Pattern = std::variant<Mask, AttendedBytes, NumberedKeyBlocks, Band>;

/// The same as a Mask, for attention of these inputs. What lies on a GPU comes to the host, which waits for
/// context.stream. ShapeError unless it fits, ValueError for sizes that are none.
RETICLE_API Mask mask_of(const Pattern& pattern, const AttentionInputs& inputs, const Context& context = {});

}  // namespace reticle
