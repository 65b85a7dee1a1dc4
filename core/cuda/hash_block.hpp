// Learned hash codes on a GPU, as in core/ops/hash_codes.hpp: an MLP for each query head turns vectors into sign bits,
// and a key's score is the number of bits that agree with the query's minus the number that differ. Coding reads the
// weights once for eight vectors, and only new keys are coded; scoring reads bits / 8 bytes per key and query head,
// where exact scores read the key.
#pragma once

#include <bit>
#include <limits>
#include <vector>

#include <reticle/core/cuda/row_block.hpp>
#include <reticle/core/ops/hash_codes.hpp>

namespace reticle::cuda {

inline constexpr int kHashThreads = 128;
inline constexpr int kHashVectors = 8;     // vectors that a block codes
inline constexpr int kMaxHashWidth = 512;  // largest head_dim and largest output of a linear map
inline constexpr int kMaxHashLayers = 8;

/// A linear map: weights (hq, in, out), in which neighbouring threads read neighbouring elements, and bias (hq, out).
struct HashLayer {
  int in = 0, out = 0;
  const float *weights = nullptr, *bias = nullptr;
};

/// A map's weights in this layout, on the host.
inline std::vector<float> weights_by_input(const HashMlp::Linear& map, Index heads) {
  std::vector<float> weights;
  weights.reserve(map.weights.size());
  for (Index head = 0; head < heads; ++head) {
    for (Index i = 0; i < map.in; ++i) {
      for (Index o = 0; o < map.out; ++o)
        weights.push_back(map.weights[static_cast<std::size_t>((head * map.out + o) * map.in + i)]);
    }
  }
  return weights;
}

struct HashProblem {
  const void* vectors = nullptr;  // (b, h, n, d), where h divides the number of query heads
  Strides strides;
  int heads = 1, heads_of_vectors = 1, end = 0;  // query heads; vectors before `end` are coded
  HashLayer layers[kMaxHashLayers];
  int layer_count = 0;
  HashActivation activation = HashActivation::relu;
  std::uint64_t* codes = nullptr;  // (b, hq, capacity, words)
  Index capacity = 0;

  RETICLE_HD int bits() const { return layers[layer_count - 1].out; }
  RETICLE_HD int words() const { return (bits() + 63) / 64; }
};

/// Shared memory of a block: vectors before and after a linear map.
struct HashShared {
  float values[2][kHashVectors][kMaxHashWidth];
};

/// Codes vectors [first, first + kHashVectors) for (batch, query head) number `number`.
template <class T, class Block>
RETICLE_HD void code_vectors(const Block& block, HashShared& shared, const HashProblem& problem, int number,
                             int first) {
  const int head = number % problem.heads, batch = number / problem.heads;
  const T* const vectors = static_cast<const T*>(problem.vectors) + batch * problem.strides.batch +
                           head * problem.heads_of_vectors / problem.heads * problem.strides.head;
  const int count = problem.end - first < kHashVectors ? problem.end - first : kHashVectors;
  block.each([&](int thread) {
    const int d = problem.layers[0].in;
    for (int i = thread; i < kHashVectors * d; i += kHashThreads) {
      const int vector = i / d, e = i % d;
      shared.values[0][vector][e] =
          vector < count ? widened(vectors[static_cast<Index>(first + vector) * problem.strides.row + e]) : 0;
    }
  });
  block.sync();
  for (int i = 0; i < problem.layer_count; ++i) {
    const HashLayer& layer = problem.layers[i];
    const bool last = i + 1 == problem.layer_count;
    const auto& from = shared.values[i % 2];
    auto& to = shared.values[(i + 1) % 2];
    block.each([&](int thread) {
      for (int out = thread; out < layer.out; out += kHashThreads) {
        float sums[kHashVectors] = {};
        const float* const weights = layer.weights + static_cast<Index>(head) * layer.in * layer.out + out;
        for (int in = 0; in < layer.in; ++in) {
          const float weight = weights[static_cast<Index>(in) * layer.out];
          unrolled<kHashVectors>([&](int vector) { sums[vector] += weight * from[vector][in]; });
        }
        const float bias = layer.bias[head * layer.out + out];
        unrolled<kHashVectors>([&](int vector) {
          const float sum = sums[vector] + bias;
          to[vector][out] = last ? sum : hash_activation(problem.activation, sum);
        });
      }
    });
    block.sync();
  }
  block.each([&](int thread) {
    const int bits = problem.bits(), words = problem.words();
    const auto& outputs = shared.values[problem.layer_count % 2];
    for (int i = thread; i < count * words; i += kHashThreads) {
      const int vector = i / words, word = i % words;
      std::uint64_t code = 0;
      for (int bit = word * 64; bit < bits && bit < (word + 1) * 64; ++bit) {
        if (outputs[vector][bit] > 0) code |= std::uint64_t{1} << (bit % 64);
      }
      problem.codes[(number * problem.capacity + first + vector) * words + word] = code;
    }
  });
}

struct HashScoreProblem {
  const std::uint64_t *queries = nullptr, *keys = nullptr;  // (b, hq, sq, words), (b, hq, capacity, words)
  Index capacity = 0;
  int rows = 1, key_count = 0, bits = 0;  // rows: queries of a head
  bool causal = false;                    // keys after a row's own position score -infinity
  float* scores = nullptr;                // (b * hq * sq, sk)
};

/// Scores keys [part * kHashThreads, (part + 1) * kHashThreads) for row number `row`.
template <class Block>
RETICLE_HD void score_codes(const Block& block, const HashScoreProblem& problem, int row, int part) {
  const int words = (problem.bits + 63) / 64, position = problem.key_count - problem.rows + row % problem.rows;
  const std::uint64_t* const query = problem.queries + static_cast<Index>(row) * words;
  const std::uint64_t* const keys = problem.keys + row / problem.rows * problem.capacity * words;
  block.each([&](int thread) {
    const int key = part * kHashThreads + thread;
    if (key >= problem.key_count) return;
    int different = 0;
    for (int word = 0; word < words; ++word)
      different += std::popcount(query[word] ^ keys[static_cast<Index>(key) * words + word]);
    const bool forbidden = problem.causal && key > position;
    problem.scores[static_cast<Index>(row) * problem.key_count + key] =
        forbidden ? -std::numeric_limits<float>::infinity() : static_cast<float>(problem.bits - 2 * different);
  });
}

}  // namespace reticle::cuda
