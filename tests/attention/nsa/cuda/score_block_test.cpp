// The GPU's scores of blocks of keys, run on the CPU: those of compressed attention there.
#include <array>
#include <cmath>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/nsa/compressed_attention.hpp>
#include <reticle/attention/nsa/cuda/score_block.hpp>

#include "support/cuda/problem.hpp"
#include "support/cuda/threaded_block.hpp"

namespace reticle::cuda {
namespace {

template <class T, int head_dim>
void compare_with_cpu(const NsaConfig& config, Index heads, Index kv_heads, Index queries, Index first_query,
                      double tolerance) {
  const Index tokens = first_query + queries;
  Case c{1, heads, kv_heads, queries, config.compressed_length(tokens)};
  const Problem<T> drawn(c, head_dim);
  const Tensor q = by_token(drawn.inputs.queries), k = by_token(drawn.inputs.keys);
  const Tensor expected = block_scores(q, k, first_query, drawn.inputs.scaling, config);
  const CompressedAttention attended = compressed_attention(q, k, k, first_query, drawn.inputs.scaling, config);
  const auto blocks = expected.view().size(2);
  std::vector<float> scores(static_cast<std::size_t>(kv_heads * queries * blocks), std::nanf(""));
  const NsaScoreProblem problem =
      nsa_score_problem(drawn.inputs, first_query, config, attended.lse.span<float>().data(), blocks, scores.data());
  const auto shared = std::make_unique<NsaScoreShared<T, head_dim>>();
  for (int tile = 0; tile < problem.tiling.tiles(); ++tile)
    run_block(kScoreTileThreads, *shared,
              [&](const auto& block) { score_key_blocks<T, head_dim>(block, *shared, problem, tile); });
  const auto wanted = expected.span<float>();
  for (std::size_t i = 0; i < scores.size(); ++i)
    ASSERT_NEAR(scores[i], wanted[i], tolerance * (1 + std::abs(wanted[i]))) << "score " << i << " of " << blocks;
}

TEST(CudaNsaScores, AreThoseOfTheCpu) {
  for (const Index group : {1, 3, 16, 64}) compare_with_cpu<Half, 64>({}, 2 * group, 2, 70, 1000, 1e-3);
  compare_with_cpu<BFloat16, 128>({}, 8, 2, 300, 0, 1e-3);
  compare_with_cpu<BFloat16, 128>({}, 8, 2, 3, 4100, 1e-3);
}

TEST(CudaNsaScores, WindowsAndBlocksOfAnyStrides) {
  NsaConfig config;
  for (const auto& [kernel, stride, block] :
       {std::array<Index, 3>{16, 16, 16}, {16, 16, 64}, {48, 16, 48}, {8, 1, 25}, {32, 1, 1}, {40, 8, 216}}) {
    config.kernel_size = kernel;
    config.kernel_stride = stride;
    config.block_size = block;
    compare_with_cpu<Half, 64>(config, 4, 2, 90, 200, 1e-3);
  }
}

TEST(CudaNsaScores, QueriesThatSeeNoWindowScoreNothing) {
  compare_with_cpu<Half, 64>({}, 4, 2, 40, 0, 1e-3);
  compare_with_cpu<Half, 64>({}, 4, 2, 5, 0, 1e-3);
}

TEST(CudaThreads, ScoringBlocksWaitsForWhatItReads) {
  for (const Execution how : {Execution::threads, Execution::threads_late}) {
    const ExecutedBy threads(how);
    compare_with_cpu<Half, 64>({}, 4, 2, 20, 3000, 1e-3);
  }
}

}  // namespace
}  // namespace reticle::cuda
