// Prefill on a GPU: attention of tiles of rows over blocks of keys on the tensor cores, for devices and inputs that
// wide_tile_block.hpp does not support.
//
// One block of threads takes one tile: 64 rows that share a KV head, four warps of 16 rows each. Rows are the query
// heads of a group at neighbouring queries, so that a tile is full even when there are few queries. The plan lists
// blocks of 64 keys that some row attends to. A block that all rows attend to fully needs no bits; in other blocks
// every row has 64 bits, and for sampled keys a number that is added to their scores. While the products of a block are
// computed, the next one is copied into shared memory. Scores never leave registers: the first product leaves them in
// the layout that the second one reads, in pairs of columns (FlashAttention-2, Dao 2023). Cost: 4 * 64 * 64 * head_dim
// flops per block of keys, and 256 * head_dim bytes of keys and values from the cache.
#pragma once

#include <reticle/attention/cuda/decode_block.hpp>
#include <reticle/attention/cuda/tile_products.hpp>
#include <reticle/attention/cuda/tiles.hpp>

namespace reticle::cuda {

inline constexpr int kTileThreads = 128;

/// Fields as in DecodeProblem. The kernel's T is Half or BFloat16.
struct TileProblem {
  const void *queries = nullptr, *keys = nullptr, *values = nullptr;
  Strides query_strides, key_strides, value_strides;
  int heads = 1, kv_heads = 1, rows = 1, key_count = 0;
  TileLists plan;
  BiasView bias;
  const float* sink_logits = nullptr;
  float scaling = 1, soft_cap = 0;
  void* output = nullptr;  // (b, hq, sq, d), contiguous
  float* lse = nullptr;    // (b, hq, sq)
};

/// A thread's scores of a block of keys, or their weights, in the layout of the tensor cores: of its warp's 16 rows a
/// thread holds rows lane / 4 and lane / 4 + 8, called halves, and of every 8 keys number lane % 4 * 2 and the next.
struct TileScores {
  float of[extent<kKeyBlock / 8>][4];
};
/// A thread's weighted values, in the same layout.
template <int head_dim>
struct TileOutput {
  float of[extent<head_dim / 8>][4] = {};
};
/// The softmax so far of a thread's two rows; `sum` is the thread's share of it. The weighted values must be multiplied
/// by `factor` before the weights of the last block are added.
struct RowStates {
  float max[2] = {kNone, kNone}, sum[2] = {}, highest[2] = {}, factor[2] = {};
};

/// Turns the products of a block of keys into weights. `biased`: whether problem.bias is added.
template <bool biased, class Block>
RETICLE_HD void weigh(const Block& block, const TileProblem& problem, const Tile& tile, const KeyBlock& keys,
                      PerThread<Block, TileScores>& scores, PerThread<Block, RowStates>& states) {
  constexpr int kScoreTiles = kKeyBlock / 8;
  block.each([&](int thread) {
    TileScores& thread_scores = scores[thread];
    const auto each_score = [&](auto&& f) {
      unrolled<kScoreTiles>(
          [&](int tile_of) { unrolled<4>([&](int e) { f(thread_scores.of[tile_of][e], tile_of, e); }); });
    };
    if (problem.soft_cap > 0) {
      each_score([&](float& score, int, int) { score = scaled(score, problem.scaling, problem.soft_cap); });
    } else {
      const float scaling = problem.scaling * kLog2E;
      each_score([&](float& score, int, int) { score *= scaling; });
    }
    if constexpr (biased) {
      unrolled<2>([&](int half) {
        const int row = tile_row(thread, half), first = keys.first_key + thread % 4 * 2;
        if (row >= tile.rows) return;
        const float* const bias = problem.bias.row(tile.batch, tile.head_of(row), tile.query_of(row));
        unrolled<kScoreTiles>([&](int tile_of) {
          unrolled<2>([&](int e) {
            const int key = first + tile_of * 8 + e;
            if (key < problem.key_count) thread_scores.of[tile_of][half * 2 + e] += kLog2E * problem.bias.of(bias, key);
          });
        });
      });
    }
    if (keys.bits >= 0) {
      unrolled<2>([&](int half) {
        const std::uint64_t attended = problem.plan.word(tile, keys, tile_row(thread, half)) >> (thread % 4 * 2);
        unrolled<kScoreTiles>([&](int tile_of) {
          unrolled<2>([&](int e) {
            if ((attended & std::uint64_t{1} << (tile_of * 8 + e)) == 0)
              thread_scores.of[tile_of][half * 2 + e] = kNone;
          });
        });
      });
    }
    if (keys.weights >= 0) {
      unrolled<2>([&](int half) {
        const RowWeights weights = problem.plan.weights_of(tile, keys, tile_row(thread, half));
        const std::uint64_t sampled = weights.sampled >> (thread % 4 * 2);
        unrolled<kScoreTiles>([&](int tile_of) {
          unrolled<2>([&](int e) {
            if ((sampled & std::uint64_t{1} << (tile_of * 8 + e)) != 0)
              thread_scores.of[tile_of][half * 2 + e] += weights.added;
          });
        });
      });
    }
    unrolled<2>([&](int half) { states[thread].highest[half] = kNone; });
    each_score([&](float& score, int, int e) {
      float& highest = states[thread].highest[e / 2];
      highest = score > highest ? score : highest;
    });
  });
  unrolled<2>([&](int half) {
    block.template max_over<4>(states, [half](RowStates& state) -> float& { return state.highest[half]; });
  });
  block.each([&](int thread) {
    RowStates& state = states[thread];
    unrolled<2>([&](int half) {
      const float before = state.max[half], now = state.highest[half] > before ? state.highest[half] : before;
      const float origin = now == kNone ? 0 : now;  // rows that attend to nothing yet get only weights of 0
      state.max[half] = now;
      state.factor[half] = power_of_2(before - origin);
      float total = state.sum[half] * state.factor[half];
      unrolled<kScoreTiles>([&](int tile_of) {
        unrolled<2>([&](int e) {
          float& score = scores[thread].of[tile_of][half * 2 + e];
          score = power_of_2(score - origin);
          total += score;
        });
      });
      state.sum[half] = total;
    });
  });
}

/// Rescales the weighted values to the new maximum.
template <class Block, int head_dim>
RETICLE_HD void rescale(const Block& block, PerThread<Block, RowStates>& states,
                        PerThread<Block, TileOutput<head_dim>>& output) {
  block.each([&](int thread) {
    unrolled<head_dim / 8>([&](int tile_of) {
      unrolled<4>([&](int e) { output[thread].of[tile_of][e] *= states[thread].factor[e / 2]; });
    });
  });
}

/// Writes the output and log-sum-exp of the tile's rows.
template <class T, class Block, int head_dim>
RETICLE_HD void finish_rows(const Block& block, const TileProblem& problem, const Tile& tile,
                            PerThread<Block, RowStates>& states, PerThread<Block, TileOutput<head_dim>>& output) {
  unrolled<2>([&](int half) {
    block.template sum_over<4>(states, [half](RowStates& state) -> float& { return state.sum[half]; });
  });
  block.each([&](int thread) {
    const int lane = thread % kWarp;
    unrolled<2>([&](int half) {
      const int row = tile_row(thread, half);
      if (row >= tile.rows) return;
      const int head = tile.head_of(row);
      float top = states[thread].max[half], weight = states[thread].sum[half], factor = 1;
      if (problem.sink_logits != nullptr) add_sink(problem.sink_logits[head], top, weight, factor);
      const Index at = (static_cast<Index>(tile.batch) * problem.heads + head) * problem.rows + tile.query_of(row);
      factor = weight > 0 ? factor / weight : 0;
      unrolled<head_dim / 8>([&](int tile_of) {
        const float* const pair_values = &output[thread].of[tile_of][half * 2];
        const std::uint32_t pair = pack_pair<T>(pair_values[0] * factor, pair_values[1] * factor);
        auto* const to = static_cast<T*>(problem.output) + at * head_dim + tile_of * 8 + lane % 4 * 2;
        *reinterpret_cast<std::uint32_t*>(to) = pair;
      });
      if (lane % 4 == 0) problem.lse[at] = natural_log_of_sum(top, weight);
    });
  });
}

/// Shared memory of a block.
template <class T, int head_dim>
struct TileShared {
  static constexpr int kRow = head_dim + 8;
  alignas(16) T queries[extent<kTileRowCount * kRow>];
  alignas(16) T keys[2][extent<kKeyBlock * kRow>];
  alignas(16) T values[2][extent<kKeyBlock * kRow>];
};

template <class T, int head_dim, bool biased, class Block>
RETICLE_HD void attend_tile(const Block& block, TileShared<T, head_dim>& shared, const TileProblem& problem,
                            const Tile& tile) {
  constexpr int kRow = TileShared<T, head_dim>::kRow;
  constexpr int kKeySteps = head_dim / 16;  // products along head_dim
  constexpr int kScoreTiles = kKeyBlock / 8, kValueTiles = head_dim / 8;
  struct Queries {
    std::uint32_t of[extent<kKeySteps>][4];
  };

  const int kv_head = tile.first_head * problem.kv_heads / problem.heads;
  const Strides &q = problem.query_strides, &k = problem.key_strides, &v = problem.value_strides;
  const T* const queries = static_cast<const T*>(problem.queries) + tile.batch * q.batch;
  const T* const keys = static_cast<const T*>(problem.keys) + tile.batch * k.batch + kv_head * k.head;
  const T* const values = static_cast<const T*>(problem.values) + tile.batch * v.batch + kv_head * v.head;

  const auto fetch = [&](int i) {
    const int first = problem.plan.blocks[tile.first_block + i].first_key;
    const auto copy_keys = [&](T* to, const T* from, Index stride) {
      copy_rows<head_dim, kKeyBlock, kTileThreads>(block, to, [&](int row) {
        const bool there = first + row < problem.key_count;
        return SourceRow<T>{there ? from + (first + row) * stride : from, there};
      });
    };
    copy_keys(shared.keys[i % 2], keys, k.row);
    copy_keys(shared.values[i % 2], values, v.row);
    block.commit();
  };

  copy_rows<head_dim, kTileRowCount, kTileThreads>(block, shared.queries, [&](int row) {
    const bool there = row < tile.rows;
    const int clamped = there ? row : 0;
    return SourceRow<T>{queries + tile.head_of(clamped) * q.head + tile.query_of(clamped) * q.row, there};
  });
  block.commit();
  if (tile.blocks > 0) fetch(0);
  if (tile.blocks > 0) {
    block.template wait<1>();
  } else {
    block.template wait<0>();
  }
  block.sync();
  PerThread<Block, Queries> own_queries(block);
  unrolled<kKeySteps>([&](int step) {
    load_first<kRow>(block, shared.queries, step, [&](int thread) { return own_queries[thread].of[step]; });
  });

  PerThread<Block, TileOutput<head_dim>> output(block);
  PerThread<Block, TileScores> scores(block);
  PerThread<Block, RowStates> states(block);
  PerThread<Block, Fragment> weights(block);
  for (int i = 0; i < tile.blocks; ++i) {
    if (i + 1 < tile.blocks) {
      fetch(i + 1);
      block.template wait<1>();
    } else {
      block.template wait<0>();
    }
    block.sync();
    const KeyBlock key_block = problem.plan.blocks[tile.first_block + i];
    const T *const own_keys = shared.keys[i % 2], *const own_values = shared.values[i % 2];

    block.each([&](int thread) {
      unrolled<kScoreTiles>([&](int tile_of) { unrolled<4>([&](int e) { scores[thread].of[tile_of][e] = 0; }); });
    });
    unrolled<kKeySteps>([&](int step) {
      multiply_tiles<kRow, kScoreTiles, true>(
          block, [&](int thread) { return scores[thread].of; },
          [&](int thread) { return own_queries[thread].of[step]; }, own_keys, step);
    });

    weigh<biased>(block, problem, tile, key_block, scores, states);
    rescale<Block, head_dim>(block, states, output);
    unrolled<kKeyBlock / 16>([&](int step) {
      block.each([&](int thread) { pack_factor<T>(scores[thread].of, step, weights[thread].of); });
      multiply_tiles<kRow, kValueTiles, false>(
          block, [&](int thread) { return output[thread].of; }, [&](int thread) { return weights[thread].of; },
          own_values, step);
    });
    block.sync();  // the block after the next one overwrites this one
  }

  finish_rows<T, Block, head_dim>(block, problem, tile, states, output);
}

}  // namespace reticle::cuda
