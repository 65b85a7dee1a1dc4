// Patterns that prefill chooses for whole blocks of queries: those at positions [block * size, (block + 1) * size).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/base/function_ref.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// How the queries that stand among the keys fall into blocks. Queries before the first key belong to none.
struct QueryBlocks {
  Index size = 1;
  Index first = 0, count = 0;  // blocks
  QueryBlocks(const AttentionInputs& inputs, Index block_size);
};

/// A causal mask of key runs chosen per block of queries. keys_of(batch, head, runs) appends, for block first + i, runs
/// of p = 1, ascending and disjoint, to runs[i]; what lies after a query's own position is cut off. Called once per
/// head that is wanted, from many threads.
RETICLE_API Mask query_block_mask(const AttentionInputs& inputs, Index block_size,
                                  FunctionRef<void(Index batch, Index head, std::span<std::vector<Run>> runs)> keys_of,
                                  const Context& context);

/// A causal mask of key blocks chosen for every query by itself, once for each of `lists` equal groups of heads (a list
/// per head: inputs.heads(); per KV head: inputs.kv_heads()). choose(row, blocks) appends ascending blocks; row.head
/// counts lists. Called from many threads, not for queries before the first key.
RETICLE_API Mask key_block_mask(const AttentionInputs& inputs, Index block_size, Index lists,
                                FunctionRef<void(RowId row, std::vector<std::int32_t>& blocks)> choose,
                                const Context& context);

/// Appends key blocks, ascending, as runs; neighbours join.
RETICLE_API void append_blocks(std::span<const std::int32_t> blocks, Index size, std::vector<Run>& runs);

/// Means of a head's rows over blocks of positions: row i is of block first + i.
struct BlockMeans {
  /// What a sum is divided by when a block has fewer rows than its size.
  enum class Divisor : std::uint8_t { rows, size };

  std::vector<float> means;         // (blocks, d)
  std::vector<std::uint8_t> empty;  // (blocks): whether none of its rows counts
  Index first = 0, blocks = 0, head_dim = 0;

  /// scores[i] = query . mean i; -infinity where no row counts.
  void score(std::span<const float> query, std::span<float> scores) const;
  std::span<const float> of(Index block) const {
    return std::span(means).subspan(static_cast<std::size_t>((block - first) * head_dim),
                                    static_cast<std::size_t>(head_dim));
  }
};
/// Of the queries of a head that stand among the keys, and of its keys that the attention mask does not forbid to all
/// queries.
RETICLE_API BlockMeans query_block_means(const AttentionInputs& inputs, Index batch, Index head, Index size);
RETICLE_API BlockMeans key_block_means(const AttentionInputs& inputs, Index batch, Index head, Index size,
                                       BlockMeans::Divisor divisor);

}  // namespace reticle
