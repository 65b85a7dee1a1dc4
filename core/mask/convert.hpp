// Converts masks between representations, and to and from the formats of other systems.
#pragma once

#include <span>

#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// The same mask in the smallest representation for its content.
RETICLE_API Mask compact(const Mask& mask, const Context& context = {});

/// The same mask in the given representation, with the same sharing. ShapeError when that cannot hold the content: bits
/// cannot hold a p below 1, empty an entry, full a gap.
RETICLE_API Mask convert(const Mask& mask, MaskKind kind, const Context& context = {});
/// The same mask with every row stored.
RETICLE_API Mask unshare(const Mask& mask, const Context& context = {});
/// p of every position, 0 where not attended: (batch, heads, queries, keys).
RETICLE_API Array<float> to_dense(const Mask& mask, const Context& context = {});

/// CSR with a row for each logical row, (batch * heads * queries); p is empty when every p is 1.
RETICLE_API Csr to_csr(const Mask& mask, const Context& context = {});

/// CSR in sparse-attention-hub's format: indices are flat positions in the whole tensor, row * keys + key; data is p.
struct FlatCsr {
  Array<Index> ptr, indices;
  Array<float> data;
};
RETICLE_API FlatCsr to_flat_csr(const Mask& mask, const Context& context = {});
/// The inverse of to_flat_csr. Indices may come in any order within their row; the last of equal indices wins. `data`
/// is empty or aligned with them; zeros are dropped. ShapeError when an index is not in its row.
RETICLE_API Mask from_flat_csr(const MaskShape& shape, std::span<const Index> ptr, std::span<const Index> indices,
                               std::span<const float> data = {}, const Context& context = {});

/// The blocks of block_q x block_k positions that hold any entry: CSR over block rows, (batch, heads, ceil(queries /
/// block_q)). Batches and heads that the mask shares stay shared. Tiled kernels, FlexAttention's BlockMask and
/// FlashInfer's BSR take this format.
struct BlockLists {
  MaskShape shape;  // queries and keys count blocks
  Index block_q = 0, block_k = 0;
  Buffer<Index> row_ptr;
  Buffer<std::int32_t> indices;  // ascending block columns
  Buffer<std::uint8_t> full;     // 1: every position of the block (that exists) is attended with p = 1
};
RETICLE_API BlockLists to_blocks(const Mask& mask, Index block_q, Index block_k, const Context& context = {});

}  // namespace reticle
