#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/cuda/kept_keys.cuh>
#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/lsh.hpp>
#include <reticle/core/cuda/lsh_block.hpp>
#include <reticle/core/cuda/tensors.cuh>
#include <reticle/core/ops/lsh.hpp>

namespace reticle::cuda {
namespace {

template <class T>
struct AverageKeys {
  static constexpr int kThreads = kLshThreads;
  using Shared = double[kLshThreads];
  LshProblem problem;
  int parts, first, end;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& sums, Index number) const {
    const auto i = static_cast<int>(number);
    average_keys<T>(block, sums, problem, i / parts, i % parts, first, end);
  }
};

template <class T>
struct KeepLargestNorm {
  static constexpr int kThreads = kLshThreads;
  LshProblem problem;
  int first, parts;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Index number) const {
    const auto i = static_cast<int>(number);
    keep_largest_norm<T>(block, problem, i / parts, first, i % parts);
  }
};

template <class T, bool of_keys>
struct CodeBySigns {
  static constexpr int kThreads = kLshThreads;
  using Shared = LshShared;
  LshProblem problem;
  int first, end, parts, panels;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index number) const {
    const int part = static_cast<int>(number) / panels, panel = static_cast<int>(number) % panels;
    code_by_signs<T, of_keys>(block, shared, problem, part / parts, first + part % parts * kLshVectors, end, panel);
  }
};

template <class T>
struct ScoreCollisions {
  static constexpr int kThreads = kLshThreads;
  using Shared = float[kMaxLshDim];
  LshProblem problem;
  int parts;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& query, Index number) const {
    const auto i = static_cast<int>(number);
    score_collisions<T>(block, query, problem, i / parts, i % parts);
  }
};

/// Data about one layer's keys, with space for all keys.
struct LayerCollisions : KeptKeys {
  Buffer projections, means, largest, codes;
};

Index blocks_for(Index count, Index each) { return (count + each - 1) / each; }

}  // namespace

struct CollisionScorer::State {
  Buffer query_codes, scores;
  KeptByLayer<LayerCollisions> layers;
};

float* CollisionScorer::score(const AttentionInputs& inputs, const Rule& rule, Index rows, Index most_keys,
                              const std::uint8_t* reachable, Stream stream) {
  if (state_ == nullptr) state_ = std::make_shared<State>();
  const LshRecipe& recipe = *rule.lsh;
  const Index keys = inputs.keys_length(), matrices = inputs.batch() * inputs.kv_heads(), d = inputs.head_dim();
  if (d > kMaxLshDim || inputs.queries.stride(3) != 1 || inputs.keys.stride(3) != 1 ||
      inputs.queries.dtype != inputs.keys.dtype || inputs.extra("projection"))
    throw DeviceError("hashing: queries " + inputs.queries.describe() + " and keys " + inputs.keys.describe() +
                      "; on a GPU a head_dim is at most " + std::to_string(kMaxLshDim) +
                      ", rows are contiguous, tensors have one dtype, and projections are not given");
  LshProblem problem = lsh_problem(inputs, recipe);
  problem.reachable = reachable;
  LayerCollisions& layer = state_->layers.follow(inputs, rule.masker);
  const Index first = std::min(recipe.mean_skips_first, keys), end = std::max(first, keys - recipe.mean_skips_last);
  const bool begins = layer.seen == 0;
  if (begins) {
    const std::vector<float> projections = projections_by_element(recipe, d, inputs.layer);
    layer.projections = Buffer::copy_of(std::span<const float>(projections), stream);
    layer.codes =
        Buffer(static_cast<std::size_t>(matrices * most_keys * problem.words()) * sizeof(std::uint64_t), stream);
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
  constexpr const char* kWhat = "scoring collisions";
  dispatch_float(inputs.keys.dtype, "keys", [&]<class T>() {
    if (begins && recipe.center && first < end) {
      const Index parts = blocks_for(d, kMeanElements);
      launch(AverageKeys<T>{problem, static_cast<int>(parts), static_cast<int>(first), static_cast<int>(end)},
             matrices * parts, stream, kWhat);
    }
    if (fresh > 0) {
      const auto seen = static_cast<int>(layer.seen);
      // Norms are computed first: codes depend on the largest norm of the sequence.
      Index parts = blocks_for(fresh, kLshThreads);
      launch(KeepLargestNorm<T>{problem, seen, static_cast<int>(parts)}, matrices * parts, stream, kWhat);
      parts = blocks_for(fresh, kLshVectors);
      launch(CodeBySigns<T, true>{problem, seen, static_cast<int>(keys), static_cast<int>(parts),
                                  static_cast<int>(panels)},
             matrices * parts * panels, stream, kWhat);
    }
    const Index coded = blocks_for(scored_rows, kLshVectors), parts = blocks_for(keys, kLshThreads);
    launch(CodeBySigns<T, false>{problem, 0, static_cast<int>(scored_rows), static_cast<int>(coded),
                                 static_cast<int>(panels)},
           coded * panels, stream, kWhat);
    launch(ScoreCollisions<T>{problem, static_cast<int>(parts)}, scored_rows * parts, stream, kWhat);
  });
  layer.seen = keys;
  return problem.scores;
}

void CollisionScorer::reset() {
  if (state_ != nullptr) state_->layers.reset();
}

}  // namespace reticle::cuda
