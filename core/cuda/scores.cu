#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/score_block.hpp>
#include <reticle/core/cuda/scores.hpp>
#include <reticle/core/cuda/tensors.cuh>

namespace reticle::cuda {
namespace {

template <class T, int head_dim, int together>
struct Score {
  static constexpr int kThreads = kScoreThreads, kBlocks = 5;
  ScoreProblem problem;
  int parts;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Index number) const {
    const auto i = static_cast<int>(number);
    score_part<T, head_dim, together>(block, problem, i / parts, i % parts);
  }
};

}  // namespace

void dot_scores(const AttentionInputs& inputs, float* scores, Stream stream) {
  validate_on_current_gpu(inputs);
  require_aligned(inputs.queries, "queries");
  require_aligned(inputs.keys, "keys");
  if (inputs.keys.dtype != inputs.queries.dtype) throw DeviceError("keys: on a GPU all tensors have one dtype");
  const ScoreProblem problem{ScoredInputs::of(inputs), scores};
  const Index parts = (inputs.keys_length() + kScoreKeys - 1) / kScoreKeys;
  if (inputs.batch() * inputs.heads() * inputs.queries_length() * parts == 0) return;
  const int together = heads_taken_together(inputs.group());
  const Index blocks = inputs.batch() * (inputs.heads() / together) * inputs.queries_length() * parts;
  dispatch_head_dim(inputs.queries.dtype, inputs.head_dim(), [&]<class T, int head_dim>() {
    dispatch_together(together, [&]<int heads>() {
      launch(Score<T, head_dim, heads>{problem, static_cast<int>(parts)}, blocks, stream, "scoring");
    });
  });
}

}  // namespace reticle::cuda
