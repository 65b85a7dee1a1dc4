// Attention over compressed keys, and the block scores computed from its probabilities. Internal to
// compressed_attention.
#pragma once

#include <span>
#include <vector>

#include <reticle/attention/plan.hpp>

namespace reticle {

/// How much each compressed token near a block contributes to its score: block j gets the sum over o of overlap[o] *
/// probability of compressed token j * per_block - lead + o.
struct BlockOverlap {
  Index per_block = 1, lead = 0;
  std::vector<float> overlap;
};

/// Up to kTileRows rows; each `heads` consecutive rows are the heads of one query.
struct ScoreTile {
  Index rows = 0, heads = 1, head_dim = 0, value_dim = 0;
  /// Elements between rows of the arrays below: `rows`, rounded up to the widest vectors.
  Index stride() const { return (rows + 15) / 16 * 16; }
  const float* queries = nullptr;  // (head_dim, stride), scaled
  const float* keys = nullptr;     // (count, head_dim)
  Index key_stride = 0;
  const float* values = nullptr;  // (count, value_dim)
  Index value_stride = 0;
  Index count = 0;
  const std::int32_t* visible = nullptr;  // (stride): row r sees keys [0, visible[r]); at most `count`
  float* weights = nullptr;               // (count, stride), workspace
  float* output = nullptr;                // (value_dim, stride)
  float* lse = nullptr;                   // (stride)
};

/// Computes softmax attention of a tile; then adds, for each query q of the tile and each block j < blocks, the
/// probabilities of its heads to scores[q * stride + j], weighted by `overlap`. blocks = 0: attention only.
void attend_and_score(const ScoreTile& tile, const BlockOverlap& overlap, Index blocks, float* scores, Index stride);

}  // namespace reticle
