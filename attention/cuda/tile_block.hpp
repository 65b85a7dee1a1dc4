// Attention of tiles of rows over blocks of keys on a GPU's tensor cores: prefill.
//
// One block of threads takes one tile: 64 rows that share a KV head, four warps of 16 rows each. Rows are the query
// heads of a group at neighbouring queries, so that a tile is full even when the queries are few. Its plan lists blocks
// of 64 keys that some row attends to; a block that all rows attend to wholly is computed as it is, of others every row
// has 64 bits. While the products of a block run, the next one is on its way into shared memory. Scores never leave
// registers: what the first product leaves there is, in pairs of columns, what the second one takes (FlashAttention-2,
// Dao 2023). Cost: 4 * 64 * 64 * head_dim flops a block of keys, against 256 * head_dim bytes of keys and values from
// the cache.
#pragma once

#include <reticle/attention/cuda/decode_block.hpp>

namespace reticle::cuda {

inline constexpr int kTileThreads = 128;
inline constexpr int kTileRowCount = 64;
inline constexpr int kKeyBlock = 64;

/// A block of keys of a tile's plan.
struct KeyBlock {
  std::int32_t first_key;
  std::int32_t bits;  // its 64 words in TileProblem::bits, one a row; -1: all rows attend to all of it
};

/// Query heads [first_head, + heads) at queries [first_query, ...): row r is head first_head + r % heads at query
/// first_query + r / heads. All heads have one KV head.
struct Tile {
  std::int32_t batch, first_head, heads, first_query, rows;
  std::int32_t first_block, blocks;  // in TileProblem::blocks
};

/// As DecodeProblem; T is Half or BFloat16, and no entry has a p.
struct TileProblem {
  const void *queries = nullptr, *keys = nullptr, *values = nullptr;
  Strides query_strides, key_strides, value_strides;
  int heads = 1, kv_heads = 1, rows = 1, key_count = 0;
  const Tile* tiles = nullptr;
  const KeyBlock* blocks = nullptr;
  const std::uint64_t* bits = nullptr;
  const float* sink_logits = nullptr;
  float scaling = 1, soft_cap = 0;
  void* output = nullptr;  // (b, hq, sq, d), contiguous
  float* lse = nullptr;    // (b, hq, sq)
};

/// Shared memory of a block. Rows are 16 bytes longer than they hold, so that eight of them lie in different banks.
template <class T, int head_dim>
struct TileShared {
  static constexpr int kRow = head_dim + 8;
  alignas(16) T queries[extent<kTileRowCount * kRow>];
  alignas(16) T keys[2][extent<kKeyBlock * kRow>];
  alignas(16) T values[2][extent<kKeyBlock * kRow>];
};

template <class T, int head_dim, class Block>
RETICLE_HD void attend_tile(const Block& block, TileShared<T, head_dim>& shared, const TileProblem& problem,
                            const Tile& tile) {
  constexpr int kRow = TileShared<T, head_dim>::kRow;
  constexpr int kPieces = head_dim / 8;     // of 16 bytes, of a row
  constexpr int kKeySteps = head_dim / 16;  // products along the head size
  constexpr int kScoreTiles = kKeyBlock / 8, kValueTiles = head_dim / 8;
  struct Scores {
    float of[extent<kScoreTiles>][4];
  };
  struct Output {
    float of[extent<kValueTiles>][4] = {};
  };
  struct Queries {
    std::uint32_t of[extent<kKeySteps>][4];
  };
  struct Fragment {
    std::uint32_t of[4];
  };

  const int kv_head = tile.first_head * problem.kv_heads / problem.heads;
  const Strides &q = problem.query_strides, &k = problem.key_strides, &v = problem.value_strides;
  const T* const queries = static_cast<const T*>(problem.queries) + tile.batch * q.batch;
  const T* const keys = static_cast<const T*>(problem.keys) + tile.batch * k.batch + kv_head * k.head;
  const T* const values = static_cast<const T*>(problem.values) + tile.batch * v.batch + kv_head * v.head;
  const auto head_of = [&tile](int row) { return tile.first_head + row % tile.heads; };
  const auto query_of = [&tile](int row) { return tile.first_query + row / tile.heads; };

  const auto fetch = [&](int i) {
    const int first = problem.blocks[tile.first_block + i].first_key;
    block.each([&](int thread) {
      for (int piece = thread; piece < kKeyBlock * kPieces; piece += kTileThreads) {
        const int row = piece / kPieces, column = piece % kPieces * 8;
        const bool there = first + row < problem.key_count;
        const Index key = there ? first + row : 0;
        block.copy_16(&shared.keys[i % 2][row * kRow + column], keys + key * k.row + column, there);
        block.copy_16(&shared.values[i % 2][row * kRow + column], values + key * v.row + column, there);
      }
    });
    block.commit();
  };

  block.each([&](int thread) {
    for (int piece = thread; piece < kTileRowCount * kPieces; piece += kTileThreads) {
      const int row = piece / kPieces, column = piece % kPieces * 8;
      const bool there = row < tile.rows;
      const int of = there ? row : 0;
      block.copy_16(&shared.queries[row * kRow + column],
                    queries + head_of(of) * q.head + query_of(of) * q.row + column, there);
    }
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
    block.template load_matrices<false>(
        [&](int thread) {
          const int lane = thread % kWarp, row = thread / kWarp * 16 + lane / 8 % 2 * 8 + lane % 8;
          return &shared.queries[row * kRow + step * 16 + lane / 16 * 8];
        },
        [&](int thread) { return own_queries[thread].of[step]; });
  });

  PerThread<Block, Output> output(block);
  PerThread<Block, Scores> scores(block);
  PerThread<Block, Fragment> matrices(block), weights(block);
  PerThread<Block, float> max[2] = {PerThread<Block, float>(block), PerThread<Block, float>(block)};
  PerThread<Block, float> sum[2] = {PerThread<Block, float>(block), PerThread<Block, float>(block)};
  PerThread<Block, float> highest[2] = {PerThread<Block, float>(block), PerThread<Block, float>(block)};
  block.each([&](int thread) {
    unrolled<2>([&](int half) {
      max[half][thread] = kNone;
      sum[half][thread] = 0;
    });
  });

  for (int i = 0; i < tile.blocks; ++i) {
    if (i + 1 < tile.blocks) {
      fetch(i + 1);
      block.template wait<1>();
    } else {
      block.template wait<0>();
    }
    block.sync();
    const KeyBlock key_block = problem.blocks[tile.first_block + i];
    const T *const own_keys = shared.keys[i % 2], *const own_values = shared.values[i % 2];

    block.each([&](int thread) {
      unrolled<kScoreTiles>([&](int tile_of) { unrolled<4>([&](int e) { scores[thread].of[tile_of][e] = 0; }); });
    });
    unrolled<kKeySteps>([&](int step) {
      unrolled<kScoreTiles / 2>([&](int pair) {
        block.template load_matrices<false>(
            [&](int thread) {
              const int lane = thread % kWarp, key = pair * 16 + lane / 16 * 8 + lane % 8;
              return &own_keys[key * kRow + step * 16 + lane / 8 % 2 * 8];
            },
            [&](int thread) { return matrices[thread].of; });
        unrolled<2>([&](int n) {
          block.template multiply_add<T>([&](int thread) { return scores[thread].of[pair * 2 + n]; },
                                         [&](int thread) { return own_queries[thread].of[step]; },
                                         [&](int thread) { return &matrices[thread].of[n * 2]; });
        });
      });
    });

    block.each([&](int thread) {
      const int lane = thread % kWarp, row = thread / kWarp * 16 + lane / 4;
      unrolled<2>([&](int half) {
        const std::uint64_t attended =
            key_block.bits < 0 ? ~std::uint64_t{0} : problem.bits[static_cast<Index>(key_block.bits) + row + half * 8];
        float top = kNone;
        unrolled<kScoreTiles>([&](int tile_of) {
          unrolled<2>([&](int e) {
            float& score = scores[thread].of[tile_of][half * 2 + e];
            const int key = tile_of * 8 + lane % 4 * 2 + e;
            score = (attended >> key & 1) != 0 ? scaled(score, problem.scaling, problem.soft_cap) : kNone;
            top = score > top ? score : top;
          });
        });
        highest[half][thread] = top;
      });
    });
    unrolled<2>([&](int half) { block.template max_over<4>(highest[half]); });
    block.each([&](int thread) {
      unrolled<2>([&](int half) {
        const float before = max[half][thread], now = highest[half][thread] > before ? highest[half][thread] : before;
        max[half][thread] = now;
        const float origin = now == kNone ? 0 : now;  // of rows that attend to nothing yet, all powers are 0
        const float factor = power_of_2(before - origin);
        float total = sum[half][thread] * factor;
        unrolled<kScoreTiles>([&](int tile_of) {
          unrolled<2>([&](int e) {
            float& score = scores[thread].of[tile_of][half * 2 + e];
            score = power_of_2(score - origin);
            total += score;
          });
        });
        sum[half][thread] = total;
        unrolled<kValueTiles>(
            [&](int tile_of) { unrolled<2>([&](int e) { output[thread].of[tile_of][half * 2 + e] *= factor; }); });
      });
    });

    unrolled<kKeyBlock / 16>([&](int step) {
      block.each([&](int thread) {
        unrolled<4>([&](int piece) {
          const float* const pair = &scores[thread].of[step * 2 + piece / 2][piece % 2 * 2];
          weights[thread].of[piece] = pack_pair<T>(pair[0], pair[1]);
        });
      });
      unrolled<kValueTiles / 2>([&](int pair) {
        block.template load_matrices<true>(
            [&](int thread) {
              const int lane = thread % kWarp, key = step * 16 + lane / 8 % 2 * 8 + lane % 8;
              return &own_values[key * kRow + pair * 16 + lane / 16 * 8];
            },
            [&](int thread) { return matrices[thread].of; });
        unrolled<2>([&](int n) {
          block.template multiply_add<T>([&](int thread) { return output[thread].of[pair * 2 + n]; },
                                         [&](int thread) { return weights[thread].of; },
                                         [&](int thread) { return &matrices[thread].of[n * 2]; });
        });
      });
    });
    block.sync();  // the next block but one comes into this one's place
  }

  unrolled<2>([&](int half) { block.template sum_over<4>(sum[half]); });
  block.each([&](int thread) {
    const int lane = thread % kWarp;
    unrolled<2>([&](int half) {
      const int row = thread / kWarp * 16 + lane / 4 + half * 8;
      if (row >= tile.rows) return;
      const int head = head_of(row);
      float top = max[half][thread], weight = sum[half][thread], factor = 1;
      if (problem.sink_logits != nullptr) add_sink(problem.sink_logits[head], top, weight, factor);
      const Index at = (static_cast<Index>(tile.batch) * problem.heads + head) * problem.rows + query_of(row);
      factor = weight > 0 ? factor / weight : 0;
      unrolled<kValueTiles>([&](int tile_of) {
        const float* const own = &output[thread].of[tile_of][half * 2];
        const std::uint32_t pair = pack_pair<T>(own[0] * factor, own[1] * factor);
        auto* const to = static_cast<T*>(problem.output) + at * head_dim + tile_of * 8 + lane % 4 * 2;
        *reinterpret_cast<std::uint32_t*>(to) = pair;
      });
      if (lane % 4 == 0) problem.lse[at] = natural_log_of_sum(top, weight);
    });
  });
}

}  // namespace reticle::cuda
