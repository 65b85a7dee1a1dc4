// Gradients of attention over tiles on a GPU's tensor cores, without atomics: two walks, as in backward_block.hpp, so
// that sums have one order.
//
// The walk by rows computes, for each tile of 64 rows, dQ = scaling * sum of dS K over its blocks of keys; the walk by
// keys computes, for each block of 64 keys, dK = scaling * sum of dS^T Q and dV = sum of W^T dO over the tiles that
// attend to it, in every head that shares it. In both walks a block of threads holds 64 rows of its own pair of
// matrices, (Q, dO) or (K, V), and loads 32 rows at a time of the other pair, (K, V) or (Q, dO), called "met" below:
// the product of the first matrices of the pairs gives scores, that of the second gives dW. Cost: 7 products of 64 x 64
// x head_dim for each block of keys of a tile, where the forward pass has 2.
#pragma once

#include <reticle/attention/cuda/backward_block.hpp>
#include <reticle/attention/cuda/plan_block.hpp>
#include <reticle/attention/cuda/tile_products.hpp>

namespace reticle::cuda {

inline constexpr int kMetRows = 32;  // loaded at a time; half a tile, or half a block of keys

struct TileBackwardProblem : BackwardInputs {
  TileLists plan;  // tiles of kTileRowCount rows
  // Entries [starts[i], starts[i + 1]) are the tiles that attend to block of keys i = (batch, KV head, block).
  const Index* starts = nullptr;
  const TileOfKeys* tiles_of_keys = nullptr;
};

/// Shared memory of a block.
template <class T, int head_dim>
struct BackwardTileShared {
  static constexpr int kRow = head_dim + 8;
  alignas(16) T own[2][extent<kTileRowCount * kRow>];
  alignas(16) T met[2][2][extent<kMetRows * kRow>];  // two pairs: one is used while the next one is loaded
  float delta[kTileRowCount];                        // of the block's own rows
  // Data of the rows that are met; used in the walk by keys.
  std::uint64_t words[2][kMetRows];
  RowWeights weights[2][kMetRows];
  const float* biases[2][kMetRows];
  float log_sums[2][kMetRows], deltas[2][kMetRows];
};

/// `item` is a tile in the walk by rows, a block of keys (batch, KV head, block) in the walk by keys. `biased`: whether
/// problem.bias is added.
template <class T, int head_dim, bool by_key, bool biased, class Block>
RETICLE_HD void differentiate_tile(const Block& block, BackwardTileShared<T, head_dim>& shared,
                                   const TileBackwardProblem& problem, int item) {
  constexpr int kRow = BackwardTileShared<T, head_dim>::kRow;
  constexpr int kMetTiles = kMetRows / 8, kSumTiles = head_dim / 8;
  struct Products {
    float of[kMetTiles][4];
  };
  struct Sums {
    float of[extent<kSumTiles>][4] = {};
  };
  struct OwnRows {
    float log_sum[2], delta[2];
  };

  const auto matrix = [](const void* data, const Strides& strides, int batch, int head) {
    return static_cast<const T*>(data) + batch * strides.batch + head * strides.head;
  };
  const auto query_row = [&](const void* data, const Strides& strides, const Tile& tile, int row) {
    const bool there = row < tile.rows;
    const int clamped = there ? row : 0;
    return SourceRow<T>{matrix(data, strides, tile.batch, tile.head_of(clamped)) + tile.query_of(clamped) * strides.row,
                        there};
  };
  const auto row_number = [&](const Tile& tile, int row) {
    return (static_cast<Index>(tile.batch) * problem.heads + tile.head_of(row)) * problem.rows + tile.query_of(row);
  };
  const auto key_row = [&](const T* head_rows, const Strides& strides, int key) {
    const bool there = key < problem.key_count;
    return SourceRow<T>{there ? head_rows + key * strides.row : head_rows, there};
  };

  const auto bias_of = [&](const float* row, int key) {
    if constexpr (biased) return key < problem.key_count ? kLog2E * problem.bias.of(row, key) : 0;
    return 0.0f;
  };
  const int key_blocks = (problem.key_count + kKeyBlock - 1) / kKeyBlock;
  const Tile own_tile = by_key ? Tile{} : problem.plan.tiles[item];
  const int own_key = by_key ? item % key_blocks * kKeyBlock : 0;
  const int kv_head =
      by_key ? item / key_blocks % problem.kv_heads : own_tile.first_head * problem.kv_heads / problem.heads;
  const int batch = by_key ? item / key_blocks / problem.kv_heads : own_tile.batch;
  const T* const keys = matrix(problem.keys, problem.key_strides, batch, kv_head);
  const T* const values = matrix(problem.values, problem.value_strides, batch, kv_head);
  const TileOfKeys* const met_tiles = by_key ? problem.tiles_of_keys + problem.starts[item] : nullptr;
  const int met_count = by_key ? static_cast<int>(problem.starts[item + 1] - problem.starts[item]) : own_tile.blocks;
  const auto met_keys = [&](int i) { return problem.plan.blocks[own_tile.first_block + i]; };

  // Loads the rows of step `step`: half step % 2 of the tile or block of keys that is number step / 2 in the walk.
  const auto fetch = [&](int step) {
    const int first = step % 2 * kMetRows;
    auto& met = shared.met[step % 2];
    if constexpr (by_key) {
      const TileOfKeys entry = met_tiles[step / 2];
      const Tile tile = problem.plan.tiles[entry.tile];
      copy_rows<head_dim, kMetRows, kBackwardThreads>(
          block, met[0], [&](int row) { return query_row(problem.queries, problem.query_strides, tile, first + row); });
      copy_rows<head_dim, kMetRows, kBackwardThreads>(block, met[1], [&](int row) {
        return query_row(problem.d_output, problem.d_output_strides, tile, first + row);
      });
      block.each([&](int thread) {
        if (thread >= kMetRows) return;
        const int row = first + thread;
        const bool there = row < tile.rows;
        const Index number = there ? row_number(tile, row) : 0;
        const KeyBlock own_keys = problem.plan.blocks[entry.block];
        shared.words[step % 2][thread] = problem.plan.word(tile, own_keys, row);
        if constexpr (biased)
          shared.biases[step % 2][thread] =
              there ? problem.bias.row(tile.batch, tile.head_of(row), tile.query_of(row)) : problem.bias.data;
        shared.weights[step % 2][thread] = problem.plan.weights_of(tile, own_keys, row);
        shared.log_sums[step % 2][thread] = there ? log_sum_of(problem.lse[number]) : 0;
        shared.deltas[step % 2][thread] = there ? problem.delta[number] : 0;
      });
    } else {
      const int key = met_keys(step / 2).first_key + first;
      copy_rows<head_dim, kMetRows, kBackwardThreads>(
          block, met[0], [&](int row) { return key_row(keys, problem.key_strides, key + row); });
      copy_rows<head_dim, kMetRows, kBackwardThreads>(
          block, met[1], [&](int row) { return key_row(values, problem.value_strides, key + row); });
    }
    block.commit();
  };

  copy_rows<head_dim, kTileRowCount, kBackwardThreads>(block, shared.own[0], [&](int row) {
    return by_key ? key_row(keys, problem.key_strides, own_key + row)
                  : query_row(problem.queries, problem.query_strides, own_tile, row);
  });
  copy_rows<head_dim, kTileRowCount, kBackwardThreads>(block, shared.own[1], [&](int row) {
    return by_key ? key_row(values, problem.value_strides, own_key + row)
                  : query_row(problem.d_output, problem.d_output_strides, own_tile, row);
  });
  block.commit();
  if (met_count > 0) fetch(0);

  PerThread<Block, OwnRows> rows(block);
  if constexpr (!by_key) {
    // delta = dO . O, with two threads for each row.
    static_assert(kBackwardThreads == 2 * kTileRowCount);
    PerThread<Block, float> delta(block);
    block.each([&](int thread) {
      const int row = thread / 2;
      const T* const output = query_row(problem.output, problem.output_strides, own_tile, row).from;
      const T* const d_output = query_row(problem.d_output, problem.d_output_strides, own_tile, row).from;
      delta[thread] = 0;
      for (int column = thread % 2 * 8; column < head_dim; column += 16) {
        const Piece<T> a = Piece<T>::load(output + column), b = Piece<T>::load(d_output + column);
        unrolled<8>([&](int e) { delta[thread] += widened(a.elements[e]) * widened(b.elements[e]); });
      }
    });
    block.template sum_over<2>(delta);
    block.each([&](int thread) {
      const int row = thread / 2;
      if (thread % 2 != 0) return;
      shared.delta[row] = delta[thread];
      if (row < own_tile.rows) problem.delta[row_number(own_tile, row)] = delta[thread];
    });
    block.sync();
    block.each([&](int thread) {
      unrolled<2>([&](int half) {
        const int row = tile_row(thread, half);
        const bool there = row < own_tile.rows;
        rows[thread].log_sum[half] = there ? log_sum_of(problem.lse[row_number(own_tile, row)]) : 0;
        rows[thread].delta[half] = shared.delta[row];
      });
    });
  }

  PerThread<Block, Sums> first_sum(block), second_sum(block);
  PerThread<Block, Products> scores(block), d_weights(block);
  PerThread<Block, Fragment> factor(block);
  for (int step = 0; step < 2 * met_count; ++step) {
    if (step + 1 < 2 * met_count) {
      fetch(step + 1);
      block.template wait<1>();
    } else {
      block.template wait<0>();
    }
    block.sync();
    const auto& met = shared.met[step % 2];
    multiply_rows<head_dim, kMetTiles>(block, scores, shared.own[0], met[0]);
    multiply_rows<head_dim, kMetTiles>(block, d_weights, shared.own[1], met[1]);

    block.each([&](int thread) {
      const int column = thread % 4 * 2;
      // Used in the walk by rows: bits, weights and biases for the keys that are met.
      std::uint64_t attended[2] = {};
      RowWeights weights[2];
      const float* biases[2] = {};
      int met_key = 0;
      if constexpr (!by_key) {
        const int first = step % 2 * kMetRows + column;
        met_key = met_keys(step / 2).first_key + first;
        unrolled<2>([&](int half) {
          const int row = tile_row(thread, half);
          attended[half] = problem.plan.word(own_tile, met_keys(step / 2), row) >> first;
          weights[half] = problem.plan.weights_of(own_tile, met_keys(step / 2), row);
          weights[half].sampled >>= first;
          if (biased && row < own_tile.rows)
            biases[half] = problem.bias.row(own_tile.batch, own_tile.head_of(row), own_tile.query_of(row));
        });
      }
      unrolled<kMetTiles>([&](int tile) {
        unrolled<2>([&](int e) {
          const int other = tile * 8 + e, met_row = other + column, at = step % 2;
          unrolled<2>([&](int half) {
            float& score = scores[thread].of[tile][half * 2 + e];
            float& d_weight = d_weights[thread].of[tile][half * 2 + e];
            EntryGradient gradient;
            if constexpr (by_key) {
              const int row = tile_row(thread, half);
              if ((shared.words[at][met_row] >> row & 1) != 0)
                gradient = entry_gradient(
                    score, d_weight,
                    shared.weights[at][met_row].of(row) + bias_of(shared.biases[at][met_row], own_key + row),
                    shared.log_sums[at][met_row], shared.deltas[at][met_row], problem.scaling, problem.soft_cap);
            } else if ((attended[half] >> other & 1) != 0) {
              gradient = entry_gradient(
                  score, d_weight, weights[half].of(other) + bias_of(biases[half], met_key + other),
                  rows[thread].log_sum[half], rows[thread].delta[half], problem.scaling, problem.soft_cap);
            }
            score = gradient.weight;
            d_weight = gradient.d_product;
          });
        });
      });
    });

    const auto add = [&](PerThread<Block, Sums>& sums, PerThread<Block, Products>& products, const T* other) {
      unrolled<kMetRows / 16>([&](int of) {
        block.each([&](int thread) { pack_factor<T>(products[thread].of, of, factor[thread].of); });
        multiply_tiles<kRow, kSumTiles, false>(
            block, [&](int thread) { return sums[thread].of; }, [&](int thread) { return factor[thread].of; }, other,
            of);
      });
    };
    add(first_sum, d_weights, met[0]);
    if constexpr (by_key) add(second_sum, scores, met[1]);
    block.sync();  // the step after the next one overwrites these rows
  }
  if (met_count == 0) block.template wait<0>();

  block.each([&](int thread) {
    unrolled<2>([&](int half) {
      const int row = tile_row(thread, half);
      if (by_key ? own_key + row >= problem.key_count : row >= own_tile.rows) return;
      const Index number =
          by_key ? (static_cast<Index>(batch) * problem.kv_heads + kv_head) * problem.key_count + own_key + row
                 : row_number(own_tile, row);
      unrolled<kSumTiles>([&](int tile) {
        unrolled<2>([&](int e) {
          const Index to = number * head_dim + tile * 8 + thread % 4 * 2 + e;
          (by_key ? problem.d_keys : problem.d_queries)[to] =
              first_sum[thread].of[tile][half * 2 + e] * problem.scaling;
          if constexpr (by_key) problem.d_values[to] = second_sum[thread].of[tile][half * 2 + e];
        });
      });
    });
  });
}

}  // namespace reticle::cuda
