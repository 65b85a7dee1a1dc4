#include <algorithm>
#include <limits>
#include <string>

#include <reticle/attention/nsa/cuda/block_scores.hpp>
#include <reticle/attention/nsa/cuda/score_block.hpp>
#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/tensors.cuh>

namespace reticle::cuda {
namespace {

template <class T, int head_dim>
struct ScoreKeyBlocks {
  static constexpr int kThreads = kScoreTileThreads;
  using Shared = NsaScoreShared<T, head_dim>;
  static_assert(sizeof(Shared) <= kMaxSharedMemory);
  NsaScoreProblem problem;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index tile) const {
    score_key_blocks<T, head_dim>(block, shared, problem, static_cast<int>(tile));
  }
};

}  // namespace

bool block_scores_serve(const AttentionInputs& inputs, const NsaConfig& config) {
  const DType dtype = inputs.queries.dtype;
  const Index d = inputs.head_dim(), strides = (config.block_size + config.kernel_size) / config.kernel_stride - 1;
  return (dtype == DType::f16 || dtype == DType::bf16) && inputs.keys.dtype == dtype && (d == 64 || d == 128) &&
         inputs.heads() / std::max<Index>(1, inputs.kv_heads()) <= kTileRowCount && strides <= kMaxTaps;
}

void block_scores(const AttentionInputs& inputs, Index first_query, const NsaConfig& config, const float* lse,
                  Index blocks, float* scores, Stream stream) {
  validate_on_current_gpu(inputs);
  config.validate();
  if (!block_scores_serve(inputs, config))
    throw DeviceError("block scores: queries " + inputs.queries.describe() + " and compressed keys " +
                      inputs.keys.describe() +
                      "; on a GPU these are F16 or BF16, head_dim is 64 or 128, a KV head has at most 64 query heads, "
                      "and a block and a window have at most 33 strides");
  constexpr Index kMaxPosition = std::numeric_limits<std::int32_t>::max() / 2;
  if (first_query < 0 || first_query + inputs.queries_length() > kMaxPosition || blocks < 0 ||
      blocks > kMaxPosition / config.block_size)
    throw ValueError("block scores: " + std::to_string(inputs.queries_length()) + " queries from " +
                     std::to_string(first_query) + " on and " + std::to_string(blocks) +
                     " blocks; expected fewer than 2^30 positions");
  require_aligned(inputs.queries, "queries");
  require_aligned(inputs.keys, "keys");
  const NsaScoreProblem problem = nsa_score_problem(inputs, first_query, config, lse, blocks, scores);
  if (blocks == 0) return;
  const auto run = [&]<class T, int head_dim>() {
    launch(ScoreKeyBlocks<T, head_dim>{problem}, problem.tiling.tiles(), stream, "scoring blocks");
  };
  const auto run_type = [&]<class T>() {
    inputs.head_dim() == 64 ? run.template operator()<T, 64>() : run.template operator()<T, 128>();
  };
  inputs.queries.dtype == DType::f16 ? run_type.template operator()<Half>() : run_type.template operator()<BFloat16>();
}

}  // namespace reticle::cuda
