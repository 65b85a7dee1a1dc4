// Attention over compressed keys, and the selection of blocks of keys by its probabilities.
#pragma once

#include <span>

#include <reticle/attention/nsa/config.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle {

/// The blocks that queries select, for each KV head: ascending, with -1 as padding on the right.
struct RETICLE_API SelectedBlocks {
  Index kv_heads = 0, queries = 0, width = 0;
  Array<std::int32_t> indices;  // (kv_heads, queries, width)

  /// From any lists of blocks (kv_heads, queries, width): negative numbers are ignored, repeated ones count once.
  static SelectedBlocks from_lists(Index kv_heads, Index queries, Index width, std::span<const std::int32_t> lists);

  std::span<const std::int32_t> of(Index kv_head, Index query) const {
    return {indices.data() + (kv_head * queries + query) * width, static_cast<std::size_t>(width)};
  }
};

struct CompressedAttention {
  Tensor output;  // (n, heads, dv) F32; 0 where a query sees no compressed token
  Tensor lse;     // (heads, n) F32, natural log; -infinity where a query sees no compressed token
  SelectedBlocks blocks;
};

/// For queries `first_query`, `first_query` + 1, ... of one sequence: queries (n, heads, d), compressed keys and values
/// (m, kv_heads, d | dv), F32. The query at position t sees compressed token i when its whole window, [i * stride, i *
/// stride + kernel), lies at or before t. The score of a block is the sum, over the query heads of its KV head and over
/// compressed tokens, of the token's probability times the number of stride-long chunks that its window shares with the
/// block. Of the blocks up to its own, a query selects the first init_blocks and the last local_blocks, and then those
/// of the highest scores, up to topk in all (ties to the lower index). The score matrix is never stored: workspace is
/// 256 bytes per compressed token and thread. ShapeError, naming the tensors. Source: NSA, Eq. 9 to 12, aligned as
/// native-sparse-attention-triton does.
RETICLE_API CompressedAttention compressed_attention(const TensorView& queries, const TensorView& keys,
                                                     const TensorView& values, Index first_query, float scaling,
                                                     const NsaConfig& config, const Context& context = {});

/// The block scores alone, (kv_heads, n, blocks up to the last query's) F32, without forced blocks: for pictures and
/// tests.
RETICLE_API Tensor block_scores(const TensorView& queries, const TensorView& keys, Index first_query, float scaling,
                                const NsaConfig& config, const Context& context = {});

/// The compressed tokens that queries see, as a mask (1, heads, n, m).
RETICLE_API Mask compressed_mask(Index heads, Index queries, Index compressed, Index first_query,
                                 const NsaConfig& config);
/// The tokens up to each query's own that lie in its selected blocks, for one KV head: (1, heads, n, keys).
RETICLE_API Mask selected_mask(const SelectedBlocks& blocks, Index kv_head, Index heads, Index keys, Index first_query,
                               Index block_size, const Context& context = {});
/// The query's own token and the window_size tokens before it: (1, heads, n, keys). Used in training and in decoding.
RETICLE_API Mask window_mask(Index heads, Index queries, Index keys, Index first_query, Index window_size,
                             const Context& context = {});

}  // namespace reticle
