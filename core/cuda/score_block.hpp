// Scores of decoding on a GPU: the product of a query with every key, written where selection reads it.
//
// A block takes some keys of one row; lanes share a key as in decode_block.hpp. Cost: the bytes of the keys once, 4 per
// score.
#pragma once

#include <limits>

#include <reticle/core/cuda/row_block.hpp>

namespace reticle::cuda {

inline constexpr int kScoreThreads = 128;
inline constexpr int kScoreKeys = 512;  // of a block

struct ScoreProblem {
  const void *queries = nullptr, *keys = nullptr;  // (b, hq, sq, d), (b, hkv, sk, d)
  Strides query_strides, key_strides;
  int heads = 1, kv_heads = 1, rows = 1, key_count = 0;
  float scaling = 1;
  bool causal = false;      // keys after a row's own position score -infinity
  float* scores = nullptr;  // (b * hq * sq, sk)
};

/// Scores of row number `row` with keys [part * kScoreKeys, (part + 1) * kScoreKeys).
template <class T, int head_dim, class Block>
RETICLE_HD void score_part(const Block& block, const ScoreProblem& problem, int row, int part) {
  using Lanes = RowLanes<T, head_dim>;
  constexpr int kGroups = kScoreThreads / Lanes::kCount, kInFlight = 4;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const int head = row / problem.rows % problem.heads, batch = row / problem.rows / problem.heads;
  const int kv_head = head * problem.kv_heads / problem.heads, query = row % problem.rows;
  const Strides &q = problem.query_strides, &k = problem.key_strides;
  const T* const own = static_cast<const T*>(problem.queries) + batch * q.batch + head * q.head + query * q.row;
  const T* const keys = static_cast<const T*>(problem.keys) + batch * k.batch + kv_head * k.head;
  const int position = problem.key_count - problem.rows + query;
  float* const scores = problem.scores + static_cast<Index>(row) * problem.key_count;
  const int end = (part + 1) * kScoreKeys < problem.key_count ? (part + 1) * kScoreKeys : problem.key_count;

  PerThread<Block, FloatShare<T, head_dim>> own_query(block);
  block.each([&](int thread) { own_query[thread].load(own, thread % Lanes::kCount); });
  PerThread<Block, float> products[kInFlight] = {PerThread<Block, float>(block), PerThread<Block, float>(block),
                                                 PerThread<Block, float>(block), PerThread<Block, float>(block)};
  for (int first = part * kScoreKeys; first < end; first += kGroups * kInFlight) {
    unrolled<kInFlight>([&](int i) {
      block.each([&](int thread) {
        const int key = first + i * kGroups + thread / Lanes::kCount;
        RowShare<T, head_dim> share;
        share.load(keys + static_cast<Index>(key < end ? key : end - 1) * k.row, thread % Lanes::kCount);
        products[i][thread] = own_query[thread].product(share);
      });
    });
    unrolled<kInFlight>([&](int i) {
      block.template sum_over<Lanes::kCount>(products[i]);
      block.each([&](int thread) {
        const int key = first + i * kGroups + thread / Lanes::kCount;
        if (thread % Lanes::kCount != 0 || key >= end) return;
        const bool forbidden = problem.causal && key > position;
        scores[key] = forbidden ? -kInfinity : products[i][thread] * problem.scaling;
      });
    });
  }
}

}  // namespace reticle::cuda
