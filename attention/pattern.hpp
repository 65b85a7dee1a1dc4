// The forms in which attention accepts a mask: a Mask, or a tensor or band from which a plan is built on the tensors'
// device.
#pragma once

#include <limits>
#include <variant>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle {

/// BOOL or U8 (b, hq, ceil(sq / block_queries), ceil(sk / block_keys)), nonzero where attended, with stride 1 along the
/// keys; a dimension of 1 is shared.
struct AttendedBytes {
  TensorView attended;
  Index block_queries = 1, block_keys = 1;
};

/// Indices of selected blocks of block_size keys, I32 (b, hkv, sq, n), with stride 1 along n: ascending in each row,
/// with -1 as padding at the end; a dimension of 1 is shared. A query sees no key after its position; the last query is
/// at the last key (Native Sparse Attention, Yuan et al. 2025).
struct NumberedKeyBlocks {
  TensorView numbers;
  Index block_size = 64;
};

/// A causal band, the same for all heads. Key c is complete at position c * stride + kernel - 1. Query i, at position
/// first_query + i, sees the last `width` of the keys that are complete at its position. A sliding window has kernel
/// and stride 1; keys compressed from windows have the kernel and stride of their windows.
struct Band {
  Index first_query = 0, kernel = 1, stride = 1;
  Index width = std::numeric_limits<std::int32_t>::max();
};

using Pattern = std::variant<Mask, AttendedBytes, NumberedKeyBlocks, Band>;

/// The pattern as a Mask on the host, for attention of these inputs. Data on a GPU is copied to the host, which waits
/// for context.stream. ShapeError unless the pattern fits the inputs, ValueError for invalid sizes.
RETICLE_API Mask mask_of(const Pattern& pattern, const AttentionInputs& inputs, const Context& context = {});

}  // namespace reticle
