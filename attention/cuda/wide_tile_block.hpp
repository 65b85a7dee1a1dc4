// Prefill on compute capability 9.0: attention of tiles of 128 rows over blocks of keys on Hopper's tensor cores.
//
// Extends attend_tile by what keeps Hopper busy. Two warpgroups of 64 rows share every block of keys, which halves the
// traffic from the L2 cache. Products are asynchronous (`wgmma`), so that the scores of the next block are computed
// while this block's weights are multiplied by values, and the softmax of one warpgroup runs beside the products of the
// other. Blocks are copied ahead, kStages of them in shared memory (FlashAttention-3, Shah et al. 2024). Queries and
// weights come from registers, keys and values from panels in shared memory.
#pragma once

#include <cstring>

#include <reticle/attention/cuda/tile_block.hpp>

namespace reticle::cuda {

inline constexpr int kWideTileThreads = 2 * kWarpgroup;

/// Shared memory of a block: panels of 64 keys by 64 elements.
template <class T, int head_dim>
struct WideTileShared {
  static constexpr int kStages = 4;
  static constexpr int kPanels = head_dim / 64;
  struct Stage {
    alignas(kPanelAlignment) T keys[extent<kPanels>][extent<kPanelElements>];
    alignas(kPanelAlignment) T values[extent<kPanels>][extent<kPanelElements>];
  };
  Stage stages[extent<kStages>];
};

/// Two neighbouring elements.
template <class T>
RETICLE_HD std::uint32_t load_pair(const T* from) {
  std::uint32_t pair = 0;
  std::memcpy(&pair, __builtin_assume_aligned(from, sizeof(pair)), sizeof(pair));
  return pair;
}

template <class T, int head_dim, bool biased, class Block>
RETICLE_HD void attend_wide_tile(const Block& block, WideTileShared<T, head_dim>& shared, const TileProblem& problem,
                                 const Tile& tile) {
  using Shared = WideTileShared<T, head_dim>;
  constexpr int kStages = Shared::kStages, kPieces = head_dim / 8, kKeySteps = head_dim / 16;
  struct Queries {
    std::uint32_t of[extent<kKeySteps>][4];
  };
  struct Weights {
    std::uint32_t of[kKeyBlock / 16][4];
  };

  const int kv_head = tile.first_head * problem.kv_heads / problem.heads;
  const Strides &q = problem.query_strides, &k = problem.key_strides, &v = problem.value_strides;
  const T* const queries = static_cast<const T*>(problem.queries) + tile.batch * q.batch;
  const T* const keys = static_cast<const T*>(problem.keys) + tile.batch * k.batch + kv_head * k.head;
  const T* const values = static_cast<const T*>(problem.values) + tile.batch * v.batch + kv_head * v.head;
  const KeyBlock* const blocks = problem.plan.blocks + tile.first_block;

  // Every call commits a group of copies, even an empty one, so that wait() can count groups.
  const auto fetch = [&](int i) {
    if (i < tile.blocks) {
      const int first = blocks[i].first_key;
      typename Shared::Stage& stage = shared.stages[i % kStages];
      block.each([&](int thread) {
        unrolled<kKeyBlock * kPieces / kWideTileThreads>([&](int n) {
          const int piece = n * kWideTileThreads + thread, row = piece / kPieces, column = piece % kPieces * 8;
          const int place = panel_place(row, column % 64), panel = column / 64;
          const bool there = first + row < problem.key_count;
          const Index key = there ? first + row : 0;
          block.copy_16(&stage.keys[panel][place], keys + key * k.row + column, there);
          block.copy_16(&stage.values[panel][place], values + key * v.row + column, there);
        });
      });
    }
    block.commit();
  };

  PerThread<Block, Queries> own_queries(block);
  PerThread<Block, TileScores> scores(block);
  PerThread<Block, Weights> weights(block);
  PerThread<Block, RowStates> states(block);
  PerThread<Block, TileOutput<head_dim>> output(block);

  const auto begin_scores = [&](int i) {
    const auto& panels = shared.stages[i % kStages].keys;
    unrolled<kKeySteps>([&](int step) {
      const auto to = [&](int thread) { return &scores[thread].of[0][0]; };
      const auto from = [&](int thread) { return own_queries[thread].of[step]; };
      if (step == 0) {
        block.template multiply_panel<T, false, false>(to, from, panels[0], 0);
      } else {
        block.template multiply_panel<T, false, true>(to, from, panels[step / 4], step % 4);
      }
    });
    block.close_products();
  };
  const auto begin_values = [&](int i) {
    const auto& panels = shared.stages[i % kStages].values;
    unrolled<kKeyBlock / 16>([&](int step) {
      unrolled<Shared::kPanels>([&](int panel) {
        block.template multiply_panel<T, true, true>([&](int thread) { return &output[thread].of[panel * 8][0]; },
                                                     [&](int thread) { return weights[thread].of[step]; },
                                                     panels[panel], step);
      });
    });
    block.close_products();
  };
  const auto settle_scores = [&] {
    block.template settle<kKeyBlock / 2>([&](int thread) { return &scores[thread].of[0][0]; });
  };
  const auto settle_values = [&] {
    block.template settle<kKeyBlock / 4>([&](int thread) { return &weights[thread].of[0][0]; });
    block.template settle<head_dim / 2>([&](int thread) { return &output[thread].of[0][0]; });
  };
  const auto pack = [&] {
    block.each([&](int thread) {
      unrolled<kKeyBlock / 16>([&](int step) { pack_factor<T>(scores[thread].of, step, weights[thread].of[step]); });
    });
  };

  if (tile.blocks > 0) {
    for (int i = 0; i < kStages - 1; ++i) fetch(i);
    block.each([&](int thread) {
      unrolled<2>([&](int half) {
        const int thread_row = tile_row(thread, half), row = thread_row < tile.rows ? thread_row : 0;
        const T* const from = queries + tile.head_of(row) * q.head + tile.query_of(row) * q.row + thread % 4 * 2;
        unrolled<kKeySteps>([&](int step) {
          own_queries[thread].of[step][half] = load_pair(from + step * 16);
          own_queries[thread].of[step][half + 2] = load_pair(from + step * 16 + 8);
        });
      });
    });
    block.template wait<kStages - 2>();
    block.publish();
    block.sync();
    block.open_products();
    begin_scores(0);
    block.template wait_products<0>();
    settle_scores();
    weigh<biased>(block, problem, tile, blocks[0], scores, states);
    pack();
    for (int i = 0; i + 1 < tile.blocks; ++i) {
      block.template wait<kStages - 3>();
      block.publish();
      block.sync();  // the next block has arrived for all threads, and no thread reads the last one
      fetch(i + kStages - 1);
      block.open_products();
      begin_scores(i + 1);
      begin_values(i);
      block.template wait_products<1>();
      settle_scores();
      weigh<biased>(block, problem, tile, blocks[i + 1], scores, states);
      block.template wait_products<0>();
      settle_values();
      rescale<Block, head_dim>(block, states, output);
      pack();
    }
    block.open_products();
    begin_values(tile.blocks - 1);
    block.template wait_products<0>();
    settle_values();
  }
  finish_rows<T, Block, head_dim>(block, problem, tile, states, output);
}

}  // namespace reticle::cuda
