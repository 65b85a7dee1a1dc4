// Prefill patterns that are chosen for whole blocks of queries: those at positions [block * size, (block + 1) * size).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/base/function_ref.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// The division of the queries with positions among the keys into blocks. Queries before the first key belong to no
/// block.
struct QueryBlocks {
  Index size = 1;
  Index first = 0, count = 0;  // blocks
  QueryBlocks(const AttentionInputs& inputs, Index block_size);
};

/// A causal mask of key runs chosen per block of queries. keys_of(batch, head, runs) appends, for block first + i, runs
/// of p = 1, ascending and disjoint, to runs[i]; keys after a query's position are cut off. Called once per head that
/// is wanted, from many threads.
RETICLE_API Mask query_block_mask(const AttentionInputs& inputs, Index block_size,
                                  FunctionRef<void(Index batch, Index head, std::span<std::vector<Run>> runs)> keys_of,
                                  const Context& context);

/// A causal mask of key blocks chosen for each query separately, once for each of `lists` equal groups of heads (a list
/// per head: inputs.heads(); per KV head: inputs.kv_heads()). choose(row, blocks) appends ascending blocks; row.head is
/// the number of the list. Called from many threads, not for queries before the first key.
RETICLE_API Mask key_block_mask(const AttentionInputs& inputs, Index block_size, Index lists,
                                FunctionRef<void(RowId row, std::vector<std::int32_t>& blocks)> choose,
                                const Context& context);

/// Appends ascending key blocks as runs; adjacent blocks are joined.
RETICLE_API void append_blocks(std::span<const std::int32_t> blocks, Index size, std::vector<Run>& runs);

/// Means of a head's rows over blocks of positions: mean i belongs to block first + i.
struct BlockMeans {
  /// The divisor of the sum of a block that has fewer rows than its size.
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
/// Means of a head's queries that have positions among the keys, and of its keys without those that the attention mask
/// forbids to all queries.
RETICLE_API BlockMeans query_block_means(const AttentionInputs& inputs, Index batch, Index head, Index size);
RETICLE_API BlockMeans key_block_means(const AttentionInputs& inputs, Index batch, Index head, Index size,
                                       BlockMeans::Divisor divisor);

}  // namespace reticle
