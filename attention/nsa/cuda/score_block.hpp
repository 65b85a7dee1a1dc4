// Block scores on a GPU's tensor cores: how much a block of keys matters to a query, by compressed keys (Native Sparse
// Attention, Yuan et al. 2025, Eq. 8 to 10). The probabilities of compressed attention, whose log-sum-exp is known, are
// recomputed, summed over the query heads of a KV head, and added to the blocks in proportion to what their windows
// share with them. Neither scores nor probabilities are stored. As in attend_tile, a block of threads has a tile of 64
// rows, all heads of a KV head at neighbouring queries, and reads 64 compressed keys at a time. Cost: 2 * 64 * 64 *
// head_dim flops for each 64 compressed keys that a tile sees, and 4 bytes per query and block.
#pragma once

#include <reticle/attention/cuda/backward_block.hpp>
#include <reticle/attention/cuda/plan_block.hpp>
#include <reticle/attention/cuda/tile_products.hpp>
#include <reticle/attention/nsa/config.hpp>
#include <reticle/core/cuda/scored_inputs.hpp>

namespace reticle::cuda {

inline constexpr int kScoreTileThreads = 128;
inline constexpr int kMaxTaps = 32;  // compressed keys that share tokens with a block

struct NsaScoreProblem : ScoredInputs {         // the keys are compressed keys
  Tiling tiling;                                // tiles of kTileRowCount rows with all heads of a KV head
  BandMask visible;                             // compressed keys that queries see
  const float* lse = nullptr;                   // (b, hq, sq), of compressed attention
  int blocks = 0, in_block = 1, in_window = 1;  // strides per block and per window; keys are one stride apart
  float* scores = nullptr;                      // (b, hkv, sq, blocks)

  /// Block j shares tokens with compressed keys [j * in_block - in_window + 1, (j + 1) * in_block), taps() in number.
  RETICLE_HD int taps() const { return in_block + in_window - 1; }
  /// How many strides a block and the `tap`-th of these keys have in common.
  RETICLE_HD int overlap(int tap) const {
    const int first = tap - in_block + 1 > 0 ? tap - in_block + 1 : 0, last = tap < in_window ? tap : in_window - 1;
    return last - first + 1;
  }
};

inline NsaScoreProblem nsa_score_problem(const AttentionInputs& inputs, Index first_query, const NsaConfig& config,
                                         const float* lse, Index blocks, float* scores) {
  NsaScoreProblem problem{ScoredInputs::of(inputs)};
  problem.tiling = Tiling::of({inputs.batch(), inputs.heads(), inputs.queries_length(), inputs.keys_length()},
                              inputs.kv_heads(), kTileRowCount);
  problem.visible.first_query = static_cast<int>(first_query);
  problem.visible.kernel = static_cast<int>(config.kernel_size);
  problem.visible.stride = static_cast<int>(config.kernel_stride);
  problem.visible.queries = static_cast<int>(inputs.queries_length());
  problem.visible.keys = static_cast<int>(inputs.keys_length());
  problem.lse = lse;
  problem.blocks = static_cast<int>(blocks);
  problem.in_block = static_cast<int>(config.block_size / config.kernel_stride);
  problem.in_window = static_cast<int>(config.kernel_size / config.kernel_stride);
  problem.scores = scores;
  return problem;
}

/// Shared memory of a block.
template <class T, int head_dim>
struct NsaScoreShared {
  static constexpr int kRow = head_dim + 8;
  alignas(16) T queries[extent<kTileRowCount * kRow>];
  alignas(16) T keys[2][extent<kKeyBlock * kRow>];
  float p[kTileRowCount][kKeyBlock + 1];
  // For each query, summed over its heads: the last keys of the previous step, then those of this step.
  float sums[kTileRowCount][kMaxTaps + kKeyBlock + 1];
};

/// Computes the scores for tile number `number` of the tiling.
template <class T, int head_dim, class Block>
RETICLE_HD void score_key_blocks(const Block& block, NsaScoreShared<T, head_dim>& shared,
                                 const NsaScoreProblem& problem, int number) {
  constexpr int kTiles = kKeyBlock / 8;
  struct Products {
    float of[kTiles][4];
  };
  const Tile tile = problem.tiling.at(number);
  const int kv_head = tile.first_head * problem.kv_heads / problem.heads, queries = tile.rows / tile.heads;
  const Strides &q = problem.query_strides, &k = problem.key_strides;
  const T* const batch_queries = static_cast<const T*>(problem.queries) + tile.batch * q.batch;
  const T* const keys = static_cast<const T*>(problem.keys) + tile.batch * k.batch + kv_head * k.head;
  const int before = problem.taps() - 1;
  const int seen = (problem.visible.end(tile.first_query + queries - 1) + kKeyBlock - 1) / kKeyBlock,
            steps = (problem.blocks * problem.in_block + kKeyBlock - 1) / kKeyBlock;

  const auto fetch = [&](int step) {
    copy_rows<head_dim, kKeyBlock, kScoreTileThreads>(block, shared.keys[step % 2], [&](int row) {
      const int key = step * kKeyBlock + row;
      const bool there = key < problem.visible.keys;
      return SourceRow<T>{there ? keys + key * k.row : keys, there};
    });
    block.commit();
  };
  copy_rows<head_dim, kTileRowCount, kScoreTileThreads>(block, shared.queries, [&](int row) {
    const bool there = row < tile.rows;
    const int from = there ? row : 0;
    return SourceRow<T>{batch_queries + tile.head_of(from) * q.head + tile.query_of(from) * q.row, there};
  });
  block.commit();
  if (seen > 0) fetch(0);
  block.each([&](int thread) {
    for (int i = thread; i < queries * before; i += kScoreTileThreads) shared.sums[i / before][i % before] = 0;
  });

  struct OwnRows {
    float log_sum[2] = {};
    int end[2] = {};
  };
  PerThread<Block, OwnRows> rows(block);
  block.each([&](int thread) {
    unrolled<2>([&](int half) {
      const int row = tile_row(thread, half);
      if (row >= tile.rows) return;
      const int query = tile.query_of(row);
      const Index at = (static_cast<Index>(tile.batch) * problem.heads + tile.head_of(row)) * problem.rows;
      rows[thread].log_sum[half] = log_sum_of(problem.lse[at + query]);
      rows[thread].end[half] = problem.visible.end(query);
    });
  });

  PerThread<Block, Products> products(block);
  for (int step = 0; step < steps; ++step) {
    const int first = step * kKeyBlock;
    if (step < seen) {
      if (step + 1 < seen) {
        fetch(step + 1);
        block.template wait<1>();
      } else {
        block.template wait<0>();
      }
      block.sync();
      multiply_rows<head_dim, kTiles>(block, products, shared.queries, shared.keys[step % 2]);
      block.each([&](int thread) {
        unrolled<2>([&](int half) {
          const int row = tile_row(thread, half);
          unrolled<kTiles>([&](int of) {
            unrolled<2>([&](int e) {
              const int column = of * 8 + thread % 4 * 2 + e;
              const float score = products[thread].of[of][half * 2 + e] * problem.scaling * kLog2E;
              shared.p[row][column] =
                  first + column < rows[thread].end[half] ? power_of_2(score - rows[thread].log_sum[half]) : 0;
            });
          });
        });
      });
      block.sync();
    }
    block.each([&](int thread) {
      for (int i = thread; i < queries * kKeyBlock; i += kScoreTileThreads) {
        const int query = i / kKeyBlock, column = i % kKeyBlock;
        float sum = 0;
        for (int head = 0; step < seen && head < tile.heads; ++head) sum += shared.p[query * tile.heads + head][column];
        shared.sums[query][before + column] = sum;
      }
    });
    block.sync();
    // Blocks whose last compressed key is among the keys of this step.
    const int from = first / problem.in_block, last = (first + kKeyBlock) / problem.in_block,
              end = last < problem.blocks ? last : problem.blocks;
    block.each([&](int thread) {
      for (int i = thread; i < queries * (end - from); i += kScoreTileThreads) {
        const int query = i / (end - from), number_of = from + i % (end - from);
        // Index of the block's first key in `sums`, which begins with key first - before.
        const int at = (number_of + 1) * problem.in_block - 1 - first;
        float score = 0;
        for (int tap = 0; tap <= before; ++tap)
          score += static_cast<float>(problem.overlap(tap)) * shared.sums[query][at + tap];
        const Index row = (static_cast<Index>(tile.batch) * problem.kv_heads + kv_head) * problem.rows;
        problem.scores[(row + tile.first_query + query) * problem.blocks + number_of] = score;
      }
    });
    block.sync();
    block.each([&](int thread) {
      for (int i = thread; i < queries * before; i += kScoreTileThreads)
        shared.sums[i / before][i % before] = shared.sums[i / before][i % before + kKeyBlock];
    });
    block.sync();
  }
  if (seen == 0) block.template wait<0>();
}

}  // namespace reticle::cuda
