// Scores for decoding on a GPU: the product of a query with every key, written to memory for selection.
//
// A block takes some keys, and the query of up to four heads of their KV head; lanes share a key. Cost: the bytes of
// the keys, once for those heads, and 4 per score.
#pragma once

#include <limits>

#include <reticle/core/cuda/scored_inputs.hpp>

namespace reticle::cuda {

inline constexpr int kScoreThreads = 128;
inline constexpr int kScoreKeys = 512;  // keys per block

struct ScoreProblem : ScoredInputs {
  float* scores = nullptr;  // (b * hq * sq, sk); -infinity where causality forbids
};

/// Scores keys [part * kScoreKeys, (part + 1) * kScoreKeys) for row number `row` of (batch, head / together, query).
template <class T, int head_dim, int together, class Block>
RETICLE_HD void score_part(const Block& block, const ScoreProblem& problem, int row, int part) {
  using Lanes = RowLanes<T, head_dim>;
  constexpr int kGroups = kScoreThreads / Lanes::kCount, kInFlight = 4;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const int taken = problem.heads / together, query = row % problem.rows;
  const int head = row / problem.rows % taken * together, batch = row / problem.rows / taken;
  const int kv_head = head * problem.kv_heads / problem.heads;
  const Strides &q = problem.query_strides, &k = problem.key_strides;
  const T* const queries = static_cast<const T*>(problem.queries) + batch * q.batch + head * q.head + query * q.row;
  const T* const keys = static_cast<const T*>(problem.keys) + batch * k.batch + kv_head * k.head;
  const int position = problem.key_count - problem.rows + query;
  const int end = (part + 1) * kScoreKeys < problem.key_count ? (part + 1) * kScoreKeys : problem.key_count;
  const auto scores_of = [&](int h) {
    return problem.scores +
           static_cast<Index>((batch * problem.heads + head + h) * problem.rows + query) * problem.key_count;
  };

  struct Queries {
    FloatShare<T, head_dim> of[extent<together>];
  };
  struct Products {
    float of[extent<together>][kInFlight];
  };
  PerThread<Block, Queries> loaded_queries(block);
  PerThread<Block, Products> products(block);
  block.each([&](int thread) {
    unrolled<together>([&](int h) { loaded_queries[thread].of[h].load(queries + h * q.head, thread % Lanes::kCount); });
  });
  for (int first = part * kScoreKeys; first < end; first += kGroups * kInFlight) {
    unrolled<kInFlight>([&](int i) {
      block.each([&](int thread) {
        const int key = first + i * kGroups + thread / Lanes::kCount;
        RowShare<T, head_dim> share;
        share.load(keys + static_cast<Index>(key < end ? key : end - 1) * k.row, thread % Lanes::kCount);
        unrolled<together>([&](int h) { products[thread].of[h][i] = loaded_queries[thread].of[h].product(share); });
      });
    });
    unrolled<kInFlight>([&](int i) {
      unrolled<together>([&](int h) {
        block.template sum_over<Lanes::kCount>(products, [&](Products& sums) -> float& { return sums.of[h][i]; });
      });
      block.each([&](int thread) {
        const int key = first + i * kGroups + thread / Lanes::kCount;
        if (thread % Lanes::kCount != 0 || key >= end) return;
        const bool forbidden = problem.causal && key > position;
        unrolled<together>(
            [&](int h) { scores_of(h)[key] = forbidden ? -kInfinity : products[thread].of[h][i] * problem.scaling; });
      });
    });
  }
}

}  // namespace reticle::cuda
