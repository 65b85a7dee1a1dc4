// Vertical-slash patterns: some keys that every query sees (verticals) and some distances that every query looks back
// (slashes). MInference (Jiang et al. 2024), nano-sparse-attention, sparse-frontier.
#pragma once

#include <span>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/base/function_ref.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// Attention of a head's last `window` queries (all, when there are fewer), summed per key and per distance query -
/// key.
struct VerticalSlashScores {
  std::vector<float> verticals, slashes;  // (keys) each
};
RETICLE_API VerticalSlashScores vertical_slash_scores(const AttentionInputs& inputs, Index batch, Index head,
                                                      Index window);

/// How many of the highest scores are needed for their sum to exceed `share`: the budget of adaptive patterns.
RETICLE_API Index cover(std::span<const float> scores, double share);

/// The pattern of one head.
struct VerticalSlash {
  std::vector<std::int32_t> verticals;  // keys, ascending
  std::vector<std::int32_t> slashes;    // distances, ascending
};
/// The positions of the `count` highest scores, ascending. The first `forced` positions rank before all others,
/// whatever their score, and count towards `count`.
RETICLE_API std::vector<std::int32_t> highest_with_first(std::vector<float> scores, Index count, Index forced);

/// The causal mask of pattern_of(batch, head), which is called once per head that is wanted, from many threads.
/// block_size 1: exactly the keys on a vertical or a slash. Above 1: the keys that MInference's kernel visits for whole
/// blocks of queries, a superset: each slash is widened to block_size keys that end where it leaves the block.
RETICLE_API Mask vertical_slash_mask(const AttentionInputs& inputs,
                                     FunctionRef<VerticalSlash(Index batch, Index head)> pattern_of, Index block_size,
                                     const Context& context);

}  // namespace reticle
