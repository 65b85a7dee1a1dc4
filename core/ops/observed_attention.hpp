// Exact attention probabilities, from which prefill patterns and KV compression choose.
#pragma once

#include <span>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/function_ref.hpp>

namespace reticle {

/// exp(x - max) / sum, in place. NaN and -infinity become 0; so does everything in a row without any other score.
RETICLE_API void softmax(std::span<float> scores);

/// Calls row(query, probabilities) for queries [first, end) of one head, ascending: the softmax over all keys that the
/// attention mask and causality leave. Causality applies even if the inputs are not causal. Workspace: kQueriesPerPass
/// rows.
RETICLE_API void for_each_attention_row(const AttentionInputs& inputs, Index batch, Index head, Index first, Index end,
                                        FunctionRef<void(Index query, std::span<const float> probabilities)> row);

/// The softmax of one query over the listed keys, aligned with them.
RETICLE_API void attend_to(const AttentionInputs& inputs, RowId row, std::span<const std::int32_t> keys,
                           std::vector<float>& probabilities);

enum class Pooling : std::uint8_t { avg, max };

/// Parameters of the importance of a prompt's keys, derived from the attention of its last queries (SnapKV, Li et al.
/// 2024).
struct Importance {
  enum class Reduce : std::uint8_t { sum, max };
  Index window = 64;               // last queries that count; all when there are fewer
  Index kernel_size = 7;           // odd; pooling over neighbours keeps keys in contiguous pieces
  Pooling pooling = Pooling::avg;  // avg divides by kernel_size at the edges, too
  Reduce reduce = Reduce::sum;     // over the queries, then over the heads
  bool pool_window = true;         // whether the window's keys count (and leak into their neighbours)
};
/// The importance of each key, (keys), over query heads [head, head + heads).
RETICLE_API std::vector<float> importance_of_keys(const AttentionInputs& inputs, Index batch, Index head, Index heads,
                                                  const Importance& rule);

}  // namespace reticle
