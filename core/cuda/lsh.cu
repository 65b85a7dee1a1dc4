#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/cuda/check.cuh>
#include <reticle/core/cuda/lsh.hpp>
#include <reticle/core/cuda/lsh_block.hpp>
#include <reticle/core/cuda/tensors.cuh>

namespace reticle::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kLshThreads)
    average_kernel(const __grid_constant__ LshProblem problem, int parts, int first, int end) {
  __shared__ double sums[kLshThreads];
  average_keys<T>(DeviceBlock(), sums, problem, static_cast<int>(blockIdx.x) / parts,
                  static_cast<int>(blockIdx.x) % parts, first, end);
}

template <class T>
__global__ void __launch_bounds__(kLshThreads)
    norm_kernel(const __grid_constant__ LshProblem problem, int first, int parts) {
  keep_largest_norm<T>(DeviceBlock(), problem, static_cast<int>(blockIdx.x) / parts, first,
                       static_cast<int>(blockIdx.x) % parts);
}

template <class T, bool of_keys>
__global__ void __launch_bounds__(kLshThreads)
    sign_kernel(const __grid_constant__ LshProblem problem, int first, int end, int parts, int panels) {
  __shared__ LshShared shared;
  const int number = static_cast<int>(blockIdx.x) / panels;
  code_by_signs<T, of_keys>(DeviceBlock(), shared, problem, number / parts, first + number % parts * kLshVectors, end,
                            static_cast<int>(blockIdx.x) % panels);
}

template <class T>
__global__ void __launch_bounds__(kLshThreads) collision_kernel(const __grid_constant__ LshProblem problem, int parts) {
  __shared__ float query[kMostLshDim];
  score_collisions<T>(DeviceBlock(), query, problem, static_cast<int>(blockIdx.x) / parts,
                      static_cast<int>(blockIdx.x) % parts);
}

/// What is kept of one layer's keys, with room for all.
struct LayerCollisions {
  const LshRecipe* of = nullptr;
  Index batch = 0, kv_heads = 0, head_dim = 0;
  Buffer projections, means, largest, codes;
  Index seen = 0;
};

Index blocks_for(Index count, Index each) { return (count + each - 1) / each; }

}  // namespace

struct CollisionScorer::State {
  Buffer query_codes, scores;
  std::map<int, LayerCollisions> layers;
};

float* CollisionScorer::score(const AttentionInputs& inputs, const LshRecipe& recipe, Index rows, Index most_keys,
                              const std::uint8_t* reachable, Stream stream) {
  if (state_ == nullptr) state_ = std::make_shared<State>();
  const Index keys = inputs.keys_length(), matrices = inputs.batch() * inputs.kv_heads(), d = inputs.head_dim();
  if (d > kMostLshDim || inputs.queries.stride(3) != 1 || inputs.keys.stride(3) != 1 ||
      inputs.queries.dtype != inputs.keys.dtype || inputs.extra("projection"))
    throw DeviceError("hashing: queries " + inputs.queries.describe() + " and keys " + inputs.keys.describe() +
                      "; on a GPU a head_dim is at most " + std::to_string(kMostLshDim) +
                      ", rows are contiguous, tensors have one dtype, and projections are not given");
  LshProblem problem = lsh_problem(inputs, recipe);
  problem.reachable = reachable;
  LayerCollisions& layer = state_->layers[inputs.layer];
  if (layer.of != &recipe || layer.head_dim != d) layer = {&recipe, 0, 0, d};
  if (layer.batch != inputs.batch() || layer.kv_heads != inputs.kv_heads() || layer.seen > keys) {
    layer.batch = inputs.batch();
    layer.kv_heads = inputs.kv_heads();
    layer.codes =
        Buffer(static_cast<std::size_t>(matrices * most_keys * problem.words()) * sizeof(std::uint64_t), stream);
    layer.seen = 0;
  }
  const Index first = std::min(recipe.mean_skips_first, keys), end = std::max(first, keys - recipe.mean_skips_last);
  const bool begins = layer.seen == 0;
  if (begins) {
    if (layer.projections.bytes() == 0) {
      const std::vector<float> projections = projections_by_element(recipe, d, inputs.layer);
      layer.projections = Buffer::copy_of(std::span<const float>(projections), stream);
    }
    layer.means = Buffer::zeros(static_cast<std::size_t>(matrices * d) * sizeof(float), stream);
    layer.largest = Buffer::zeros(static_cast<std::size_t>(inputs.batch()) * sizeof(std::uint32_t), stream);
  }
  const auto room = [&](Index codes) {
    return static_cast<std::size_t>(codes * problem.words()) * sizeof(std::uint64_t);
  };
  if (state_->query_codes.bytes() < room(rows)) state_->query_codes = Buffer(room(rows), stream);
  if (state_->scores.bytes() == 0)
    state_->scores = Buffer(static_cast<std::size_t>(rows * most_keys) * sizeof(float), stream);
  problem.projections = layer.projections.as<float>();
  problem.means = layer.means.as<float>();
  problem.largest = layer.largest.as<std::uint32_t>();
  problem.key_codes = layer.codes.as<std::uint64_t>();
  problem.codes = state_->query_codes.as<std::uint64_t>();
  problem.capacity = most_keys;
  problem.scores = state_->scores.as<float>();
  const Index scored_rows = inputs.batch() * inputs.heads() * inputs.queries_length(), fresh = keys - layer.seen,
              panels = blocks_for(problem.signs(), kLshThreads);
  const auto grid = [](Index blocks) { return static_cast<unsigned>(blocks); };
  auto* const native = static_cast<cudaStream_t>(stream);
  dispatch_float(inputs.keys.dtype, "keys", [&]<class T>() {
    if (begins && recipe.center && first < end) {
      const Index parts = blocks_for(d, kMeanElements);
      average_kernel<T><<<grid(matrices * parts), kLshThreads, 0, native>>>(
          problem, static_cast<int>(parts), static_cast<int>(first), static_cast<int>(end));
    }
    if (fresh > 0) {
      const auto seen = static_cast<int>(layer.seen);
      // Norms first: codes depend on the largest of the sequence.
      Index parts = blocks_for(fresh, kLshThreads);
      norm_kernel<T><<<grid(matrices * parts), kLshThreads, 0, native>>>(problem, seen, static_cast<int>(parts));
      parts = blocks_for(fresh, kLshVectors);
      sign_kernel<T, true><<<grid(matrices * parts * panels), kLshThreads, 0, native>>>(
          problem, seen, static_cast<int>(keys), static_cast<int>(parts), static_cast<int>(panels));
    }
    const Index coded = blocks_for(scored_rows, kLshVectors), parts = blocks_for(keys, kLshThreads);
    sign_kernel<T, false><<<grid(coded * panels), kLshThreads, 0, native>>>(
        problem, 0, static_cast<int>(scored_rows), static_cast<int>(coded), static_cast<int>(panels));
    collision_kernel<T><<<grid(scored_rows * parts), kLshThreads, 0, native>>>(problem, static_cast<int>(parts));
  });
  check_launch("scoring collisions");
  layer.seen = keys;
  return problem.scores;
}

void CollisionScorer::reset() {
  if (state_ == nullptr) return;
  for (auto& [number, layer] : state_->layers) layer.seen = 0;
}

}  // namespace reticle::cuda
