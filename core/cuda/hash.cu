#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/cuda/hash.hpp>
#include <reticle/core/cuda/hash_block.hpp>
#include <reticle/core/cuda/kept_keys.cuh>
#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/tensors.cuh>
#include <reticle/core/ops/hash_codes.hpp>

namespace reticle::cuda {
namespace {

template <class T>
struct CodeVectors {
  static constexpr int kThreads = kHashThreads;
  using Shared = HashShared;
  HashProblem problem;
  int first, parts;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index number) const {
    const auto i = static_cast<int>(number);
    code_vectors<T>(block, shared, problem, i / parts, first + i % parts * kHashVectors);
  }
};

struct ScoreCodes {
  static constexpr int kThreads = kHashThreads;
  HashScoreProblem problem;
  int parts;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Index number) const {
    const auto i = static_cast<int>(number);
    score_codes(block, problem, i / parts, i % parts);
  }
};

/// The linear maps for queries or for keys, in device memory.
class DeviceHash {
 public:
  DeviceHash() = default;
  DeviceHash(const HashMlp& mlp, Stream stream) : activation_(mlp.activation()) {
    for (const HashMlp::Linear& linear : mlp.linear()) {
      const std::vector<float> weights = weights_by_input(linear, mlp.heads());
      maps_.push_back({linear.in, linear.out, Buffer::copy_of(std::span<const float>(weights), stream),
                       Buffer::copy_of(std::span<const float>(linear.bias), stream)});
    }
  }

  /// Computes the codes of vectors [first, end) of `tensor` for all query heads.
  void code(const TensorView& tensor, Index heads, Index first, std::uint64_t* codes, Index capacity,
            Stream stream) const {
    HashProblem problem;
    problem.vectors = tensor.data;
    problem.strides = strides_of(tensor);
    problem.heads = static_cast<int>(heads);
    problem.heads_of_vectors = static_cast<int>(tensor.size(1));
    problem.end = static_cast<int>(tensor.size(2));
    problem.activation = activation_;
    for (const Map& map : maps_)
      problem.layers[problem.layer_count++] = {static_cast<int>(map.in), static_cast<int>(map.out),
                                               map.weights.as<float>(), map.bias.as<float>()};
    problem.codes = codes;
    problem.capacity = capacity;
    const Index parts = (tensor.size(2) - first + kHashVectors - 1) / kHashVectors;
    if (parts <= 0) return;
    dispatch_float(tensor.dtype, "vectors", [&]<class T>() {
      launch(CodeVectors<T>{problem, static_cast<int>(first), static_cast<int>(parts)}, tensor.size(0) * heads * parts,
             stream, "hashing");
    });
  }

 private:
  struct Map {
    Index in, out;
    Buffer weights, bias;
  };
  HashActivation activation_ = HashActivation::relu;
  std::vector<Map> maps_;
};

/// Codes of one layer's keys, with space for all keys.
struct LayerCodes : KeptKeys {
  DeviceHash query, key;
  Buffer codes;
};

}  // namespace

struct HashScorer::State {
  Buffer query_codes, scores;
  KeptByLayer<LayerCodes> codes;
};

float* HashScorer::score(const AttentionInputs& inputs, const Rule& rule, Index rows, Index most_keys, Stream stream) {
  if (state_ == nullptr) state_ = std::make_shared<State>();
  const LearnedHash& hash = *rule.hash;
  auto& [query_codes, scores, codes] = *state_;
  const auto too_wide = [](const HashMlp& mlp) {
    return mlp.layers() > kMaxHashLayers || mlp.head_dim() > kMaxHashWidth ||
           std::ranges::any_of(mlp.linear(), [](const HashMlp::Linear& map) { return map.out > kMaxHashWidth; });
  };
  if (hash.query.heads() != inputs.heads() || hash.query.head_dim() != inputs.head_dim())
    throw ShapeError("hashing: queries " + inputs.queries.describe() + "; the weights are for " +
                     std::to_string(hash.query.heads()) + " heads of " + std::to_string(hash.query.head_dim()));
  if (too_wide(hash.query) || too_wide(hash.key) || inputs.queries.stride(3) != 1 || inputs.keys.stride(3) != 1)
    throw DeviceError("hashing: on a GPU there are at most " + std::to_string(kMaxHashLayers) +
                      " linear maps of width " + std::to_string(kMaxHashWidth) + ", and rows are contiguous");
  const Index keys = inputs.keys_length(), heads = inputs.heads(), words = (hash.query.bits() + 63) / 64;
  const auto room = [&](Index vectors) { return static_cast<std::size_t>(vectors * words) * sizeof(std::uint64_t); };
  LayerCodes& layer = codes.follow(inputs, rule.masker);
  if (layer.seen == 0) {
    layer.query = DeviceHash(hash.query, stream);
    layer.key = DeviceHash(hash.key, stream);
    layer.codes = Buffer(room(inputs.batch() * heads * most_keys), stream);
  }
  if (query_codes.bytes() < room(rows)) query_codes = Buffer(room(rows), stream);
  if (scores.bytes() == 0) scores = Buffer(static_cast<std::size_t>(rows * most_keys) * sizeof(float), stream);
  layer.key.code(inputs.keys, heads, layer.seen, layer.codes.as<std::uint64_t>(), most_keys, stream);
  layer.query.code(inputs.queries, heads, 0, query_codes.as<std::uint64_t>(), inputs.queries_length(), stream);
  HashScoreProblem problem;
  problem.queries = query_codes.as<std::uint64_t>();
  problem.keys = layer.codes.as<std::uint64_t>();
  problem.capacity = most_keys;
  problem.rows = static_cast<int>(inputs.queries_length());
  problem.key_count = static_cast<int>(keys);
  problem.bits = static_cast<int>(hash.query.bits());
  problem.causal = inputs.causal;
  problem.scores = scores.as<float>();
  const Index parts = (keys + kHashThreads - 1) / kHashThreads,
              scored_rows = inputs.batch() * heads * inputs.queries_length();
  launch(ScoreCodes{problem, static_cast<int>(parts)}, scored_rows * parts, stream, "scoring hash codes");
  layer.seen = keys;
  return scores.as<float>();
}

void HashScorer::reset() {
  if (state_ != nullptr) state_->codes.reset();
}

}  // namespace reticle::cuda
