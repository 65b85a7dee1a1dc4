// Plans made on a GPU, of masks that are there: a byte for every position, as comparisons leave them.
//
// Tiles: one block of threads takes one tile, 32 blocks of keys at a time. Every row's 64 bytes become a word in shared
// memory; a thread per block of keys then sees whether any row attends to it, and whether all do wholly; places come
// from a scan. Room for all blocks of keys is kept for every tile, so nothing has to be counted beforehand: one launch.
// Lists: one block of threads takes one row, in order, with a scan for every 512 positions. Cost: the mask's bytes
// once, and the plan's.
#pragma once

#include <cstring>

#include <reticle/attention/cuda/tile_block.hpp>

namespace reticle::cuda {

inline constexpr int kPlanThreads = 128;
inline constexpr int kPlanStep = 32;           // blocks of keys that are looked at together
inline constexpr int kListBytesPerThread = 4;  // positions that a thread looks at together

/// A byte for every (batch, head, query, key), not 0 where attended; neighbouring keys are neighbours. A stride of 0
/// shares a pattern.
struct ByteMask {
  const std::uint8_t* data = nullptr;
  Strides strides;
  int queries = 1, keys = 0;
  bool causal = false;

  RETICLE_HD const std::uint8_t* row(int batch, int head, int query) const {
    return data + batch * strides.batch + head * strides.head + query * strides.row;
  }
  RETICLE_HD int visible(int query) const {
    if (!causal) return keys;
    const int end = keys - queries + query + 1;
    return end < 0 ? 0 : end < keys ? end : keys;
  }
};

/// Bit i: whether byte i of `count` is set.
RETICLE_HD inline std::uint64_t bits_of_bytes(const std::uint8_t* bytes, int count) {
  std::uint64_t word = 0;
  if (count >= kKeyBlock && reinterpret_cast<std::uintptr_t>(bytes) % 16 == 0) {
    unrolled<kKeyBlock / 16>([&](int i) {
      const Piece<std::uint8_t> piece = Piece<std::uint8_t>::load(bytes + i * 16);
      unrolled<16>([&](int e) { word |= static_cast<std::uint64_t>(piece.elements[e] != 0 ? 1 : 0) << (i * 16 + e); });
    });
    return word;
  }
  for (int i = 0; i < count && i < kKeyBlock; ++i) word |= static_cast<std::uint64_t>(bytes[i] != 0 ? 1 : 0) << i;
  return word;
}

/// Shared memory of a block that plans a tile.
struct PlanShared {
  std::uint64_t words[kPlanStep][kTileRowCount];
  int place[kPlanStep];  // of a block of keys in the tile's list; -1: nobody attends to it
  int full[kPlanStep];
  int scan[kWarp + 1];
};

/// Fills the blocks of tile number `number`, from number * (blocks of keys) on, and their bits, and says in the tile
/// how many there are.
template <class Block>
RETICLE_HD void plan_tile(const Block& block, PlanShared& shared, const ByteMask& mask, Tile* tiles, KeyBlock* blocks,
                          std::uint64_t* bits, int number) {
  const Tile tile = tiles[number];
  const int key_blocks = (mask.keys + kKeyBlock - 1) / kKeyBlock;
  const Index first = static_cast<Index>(number) * key_blocks;
  int found = 0;
  for (int step = 0; step < key_blocks; step += kPlanStep) {
    const int count = key_blocks - step < kPlanStep ? key_blocks - step : kPlanStep;
    block.each([&](int thread) {
      for (int i = thread; i < kTileRowCount * kPlanStep; i += kPlanThreads) {
        const int row = i / kPlanStep, own = i % kPlanStep, key = (step + own) * kKeyBlock;
        std::uint64_t word = 0;
        if (row < tile.rows && own < count) {
          const int query = tile.first_query + row / tile.heads, left = mask.visible(query) - key;
          const std::uint8_t* const bytes = mask.row(tile.batch, tile.first_head + row % tile.heads, query);
          if (left > 0) word = bits_of_bytes(bytes + key, left);
        }
        shared.words[own][row] = word;
      }
    });
    block.sync();
    PerThread<Block, int> before(block);
    block.each([&](int thread) {
      before[thread] = 0;
      if (thread >= count) return;
      std::uint64_t any = 0, all = ~std::uint64_t{0};
      for (int row = 0; row < tile.rows; ++row) {
        any |= shared.words[thread][row];
        all &= shared.words[thread][row];
      }
      before[thread] = any != 0 ? 1 : 0;
      shared.full[thread] = all == ~std::uint64_t{0} ? 1 : 0;
      shared.place[thread] = any != 0 ? 0 : -1;
    });
    const int here = block.exclusive_scan(before, shared.scan);
    block.each([&](int thread) {
      if (thread >= count || shared.place[thread] < 0) return;
      const Index place = first + found + before[thread];
      shared.place[thread] = found + before[thread];
      blocks[place] = {(step + thread) * kKeyBlock,
                       shared.full[thread] != 0 ? -1 : static_cast<std::int32_t>(place * kTileRowCount)};
    });
    block.sync();
    block.each([&](int thread) {
      for (int i = thread; i < kTileRowCount * count; i += kPlanThreads) {
        const int row = i % kTileRowCount, own = i / kTileRowCount;
        if (shared.place[own] >= 0 && shared.full[own] == 0)
          bits[(first + shared.place[own]) * kTileRowCount + row] = shared.words[own][row];
      }
    });
    block.sync();
    found += here;
  }
  block.each([&](int thread) {
    if (thread != 0) return;
    tiles[number].first_block = static_cast<std::int32_t>(first);
    tiles[number].blocks = found;
  });
}

/// The keys that row `row` of (batch, head, query) attends to, ascending, at indices[row * keys], and their number.
template <class Block>
RETICLE_HD void list_row(const Block& block, int* scan, const ByteMask& mask, int heads, std::int32_t* indices,
                         std::int32_t* counts, int row) {
  const int query = row % mask.queries, head = row / mask.queries % heads, batch = row / mask.queries / heads;
  const std::uint8_t* const bytes = mask.row(batch, head, query);
  const int visible = mask.visible(query);
  std::int32_t* const to = indices + static_cast<Index>(row) * mask.keys;
  int found = 0;
  for (int step = 0; step < visible; step += kPlanThreads * kListBytesPerThread) {
    PerThread<Block, int> before(block), attended(block);
    block.each([&](int thread) {
      const int first = step + thread * kListBytesPerThread;
      int bit_set = 0;
      for (int i = 0; i < kListBytesPerThread && first + i < visible; ++i)
        bit_set |= (bytes[first + i] != 0 ? 1 : 0) << i;
      attended[thread] = bit_set;
      before[thread] = 0;
      for (int i = 0; i < kListBytesPerThread; ++i) before[thread] += bit_set >> i & 1;
    });
    const int here = block.exclusive_scan(before, scan);
    block.each([&](int thread) {
      int at = found + before[thread];
      for (int i = 0; i < kListBytesPerThread; ++i) {
        if ((attended[thread] >> i & 1) != 0) to[at++] = step + thread * kListBytesPerThread + i;
      }
    });
    found += here;
  }
  block.each([&](int thread) {
    if (thread == 0) counts[row] = found;
  });
}

}  // namespace reticle::cuda
