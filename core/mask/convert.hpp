// Masks into other forms, and out of the forms that other systems use.
#pragma once

#include <span>

#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// The same, in the representation that is smallest for what it holds.
RETICLE_API Mask compact(const Mask& mask, const Context& context = {});

/// The same mask in the given representation, sharing kept. ShapeError when it cannot hold the content: bits no p below
/// 1, empty no entry, full no gap.
RETICLE_API Mask convert(const Mask& mask, MaskKind kind, const Context& context = {});
/// The same mask with every row stored.
RETICLE_API Mask unshare(const Mask& mask, const Context& context = {});
/// p of every position, 0 where not attended: (batch, heads, queries, keys).
RETICLE_API Array<float> to_dense(const Mask& mask, const Context& context = {});

/// Rows over the whole logical shape, (batch * heads * queries); p is empty when every p is 1.
RETICLE_API Csr to_csr(const Mask& mask, const Context& context = {});

/// CSR in sparse-attention-hub's form: indices count over the whole tensor, row * keys + key; data is p.
struct FlatCsr {
  Array<Index> ptr, indices;
  Array<float> data;
};
RETICLE_API FlatCsr to_flat_csr(const Mask& mask, const Context& context = {});
/// The reverse. Indices may come in any order within their row, of equal ones the last wins; `data` is empty or
/// aligned, its zeros are dropped. ShapeError when an index is not in its row.
RETICLE_API Mask from_flat_csr(const MaskShape& shape, std::span<const Index> ptr, std::span<const Index> indices,
                               std::span<const float> data = {}, const Context& context = {});

/// The blocks of block_q x block_k positions that hold any entry: CSR over block rows, (batch, heads, ceil(queries /
/// block_q)), with what is stored once in the mask still stored once. This is what tiled kernels, FlexAttention's
/// BlockMask and FlashInfer's BSR want.
struct BlockLists {
  MaskShape shape;  // queries and keys count blocks
  Index block_q = 0, block_k = 0;
  Buffer<Index> row_ptr;
  Buffer<std::int32_t> indices;  // ascending block columns
  Buffer<std::uint8_t> full;     // 1: every position of the block (that exists) is attended with p = 1
};
RETICLE_API BlockLists to_blocks(const Mask& mask, Index block_q, Index block_k, const Context& context = {});

}  // namespace reticle
