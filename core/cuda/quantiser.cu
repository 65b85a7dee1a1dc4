#include <span>
#include <string>
#include <vector>

#include <reticle/core/cuda/kept_keys.cuh>
#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/quantiser.hpp>
#include <reticle/core/cuda/quantiser_block.hpp>
#include <reticle/core/cuda/tensors.cuh>
#include <reticle/core/ops/product_quantiser.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle::cuda {
namespace {

template <class T>
struct EncodeKeys {
  static constexpr int kThreads = kQuantiserThreads;
  EncodeProblem problem;
  int first, steps;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Index number) const {
    const auto i = static_cast<int>(number);
    encode_keys<T>(block, problem, i / steps, first, i % steps);
  }
};

template <class T>
struct ScoreByTable {
  static constexpr int kThreads = kQuantiserThreads;
  using Shared = float[kMaxTableEntries];
  TableScoreProblem problem;
  int parts;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& table, Index number) const {
    const auto i = static_cast<int>(number);
    score_by_table<T>(block, table, problem, i / parts, i % parts);
  }
};

/// Copies one head's keys to the host; waits for the stream.
Tensor keys_of_head(const TensorView& keys, Index batch, Index kv_head, Stream stream) {
  Tensor copy(keys.dtype, {keys.size(2), keys.size(3)});
  const auto element = static_cast<std::size_t>(size_of(keys.dtype)),
             row = static_cast<std::size_t>(keys.size(3)) * element;
  const auto* const from =
      static_cast<const char*>(keys.data) + (batch * keys.stride(0) + kv_head * keys.stride(1)) * size_of(keys.dtype);
  check(cudaMemcpy2DAsync(copy.data(), row, from, static_cast<std::size_t>(keys.stride(2)) * element, row,
                          static_cast<std::size_t>(keys.size(2)), cudaMemcpyDeviceToHost,
                          static_cast<cudaStream_t>(stream)),
        "copying keys");
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for the device");
  return copy;
}

/// Codebooks and codes of one layer, with space for all keys.
struct QuantisedLayer : KeptKeys {
  Buffer centroids, lifts, radii, codes;
  Index count = 0;
};

}  // namespace

struct QuantisedScorer::State {
  Buffer scores;
  KeptByLayer<QuantisedLayer> layers;
};

float* QuantisedScorer::score(const AttentionInputs& inputs, const Rule& rule, Index rows, Index most_keys,
                              const std::uint8_t* reachable, Stream stream) {
  if (state_ == nullptr) state_ = std::make_shared<State>();
  const PqRecipe& recipe = *rule.quantiser;
  const Index keys = inputs.keys_length(), matrices = inputs.batch() * inputs.kv_heads(), d = inputs.head_dim();
  if (recipe.parts * recipe.centroids > kMaxTableEntries || inputs.queries.stride(3) != 1 ||
      inputs.keys.stride(3) != 1 || inputs.queries.dtype != inputs.keys.dtype)
    throw DeviceError("quantising: " + std::to_string(recipe.parts) + " parts of " + std::to_string(recipe.centroids) +
                      " centroids, queries " + inputs.queries.describe() + " and keys " + inputs.keys.describe() +
                      "; on a GPU a table has at most " + std::to_string(kMaxTableEntries) +
                      " entries, rows are contiguous, and tensors have one dtype");
  QuantisedLayer& layer = state_->layers.follow(inputs, rule.masker);
  if (layer.seen == 0 && keys > recipe.init_offset) {
    PackedCodebooks packed;
    std::vector<std::uint8_t> counts(reachable == nullptr ? 0 : static_cast<std::size_t>(matrices * keys));
    if (!counts.empty())
      check(cudaMemcpyAsync(counts.data(), reachable, counts.size(), cudaMemcpyDeviceToHost,
                            static_cast<cudaStream_t>(stream)),
            "copying the reachable keys");  // keys_of_head waits for this copy
    for (Index head = 0; head < matrices; ++head) {
      const Tensor head_keys = keys_of_head(inputs.keys, head / inputs.kv_heads(), head % inputs.kv_heads(), stream);
      const ProductQuantiser quantiser = recipe.train(head_keys.view(), inputs.layer, head, [&](Index key) {
        return counts.empty() || counts[static_cast<std::size_t>(head * keys + key)] != 0;
      });
      layer.count = quantiser.centroids();
      packed.add(quantiser);
    }
    layer.centroids = Buffer::copy_of(std::span<const float>(packed.centroids), stream);
    layer.lifts = Buffer::copy_of(std::span<const float>(packed.lifts), stream);
    layer.radii = Buffer::copy_of(std::span<const float>(packed.radii), stream);
    layer.codes = Buffer(static_cast<std::size_t>(matrices * most_keys * recipe.parts) * sizeof(std::uint16_t), stream);
  }
  if (state_->scores.bytes() == 0)
    state_->scores = Buffer(static_cast<std::size_t>(rows * most_keys) * sizeof(float), stream);
  const Codebooks books{layer.centroids.as<float>(),    layer.lifts.as<float>(),       layer.radii.as<float>(),
                        static_cast<int>(recipe.parts), static_cast<int>(layer.count), static_cast<int>(d)};
  const EncodeProblem encoding = encode_problem(inputs, books, layer.codes.as<std::uint16_t>(), most_keys);
  const TableScoreProblem problem =
      table_score_problem(inputs, encoding, recipe.init_offset, state_->scores.as<float>());
  const Index steps = ((keys - layer.seen) * recipe.parts + kQuantiserThreads - 1) / kQuantiserThreads;
  const Index parts = (keys + kQuantisedKeys - 1) / kQuantisedKeys,
              scored_rows = inputs.batch() * inputs.heads() * inputs.queries_length();
  dispatch_float(inputs.keys.dtype, "keys", [&]<class T>() {
    if (layer.count > 0)
      launch(EncodeKeys<T>{encoding, static_cast<int>(layer.seen), static_cast<int>(steps)}, matrices * steps, stream,
             "quantising keys");
    launch(ScoreByTable<T>{problem, static_cast<int>(parts)}, scored_rows * parts, stream, "scoring quantised keys");
  });
  if (layer.count > 0) layer.seen = keys;
  return problem.scores;
}

void QuantisedScorer::reset() {
  if (state_ != nullptr) state_->layers.reset();
}

}  // namespace reticle::cuda
