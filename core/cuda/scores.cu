#include <reticle/core/cuda/check.cuh>
#include <reticle/core/cuda/score_block.hpp>
#include <reticle/core/cuda/scores.hpp>
#include <reticle/core/cuda/tensors.cuh>

namespace reticle::cuda {
namespace {

template <class T, int head_dim, int together>
__global__ void __launch_bounds__(kScoreThreads, 5)
    score_kernel(const __grid_constant__ ScoreProblem problem, int parts) {
  score_part<T, head_dim, together>(DeviceBlock(), problem, static_cast<int>(blockIdx.x) / parts,
                                    static_cast<int>(blockIdx.x) % parts);
}

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
  auto* const native = static_cast<cudaStream_t>(stream);
  dispatch_head_dim(inputs.queries.dtype, inputs.head_dim(), [&]<class T, int head_dim>() {
    dispatch_together(together, [&]<int heads>() {
      score_kernel<T, head_dim, heads>
          <<<static_cast<unsigned>(blocks), kScoreThreads, 0, native>>>(problem, static_cast<int>(parts));
    });
  });
  check_launch("scoring");
}

}  // namespace reticle::cuda
