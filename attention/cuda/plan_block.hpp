// Plans made on a GPU, of masks that are there: a byte for every position, as comparisons leave them, or for every
// block of positions, or a bit.
//
// Tiles: one block of threads takes one tile, 32 blocks of keys at a time. Every row's 64 bytes become a word in shared
// memory; a thread per block of keys then sees whether any row attends to it, and whether all do wholly; places come
// from a scan. Room for all blocks of keys is kept for every tile, so nothing has to be counted beforehand: one launch.
// Lists: one block of threads takes one row, 64 positions a thread, with a scan for every 8192. Cost: the mask's bytes
// once, and the plan's.
#pragma once

#include <cstring>

#include <reticle/attention/cuda/tile_block.hpp>
#include <reticle/core/cuda/mask_block.hpp>

namespace reticle::cuda {

inline constexpr int kPlanThreads = kMaskThreads;
inline constexpr int kPlanStep = 32;  // blocks of keys that are looked at together

/// How many keys a query sees.
RETICLE_HD inline int visible_keys(int keys, int queries, int query, bool causal) {
  if (!causal) return keys;
  const int end = keys - queries + query + 1;
  return end < 0 ? 0 : end < keys ? end : keys;
}

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
  RETICLE_HD int visible(int query) const { return visible_keys(keys, queries, query, causal); }
  /// Bits of keys [key, key + 64) that the query sees.
  RETICLE_HD std::uint64_t word(int batch, int head, int query, int key) const {
    const int left = visible(query) - key;
    return left > 0 ? bits_of_bytes(row(batch, head, query) + key, left) : 0;
  }
};

/// A byte for every block of block_queries x block_keys positions, the last ones of which may be cut off.
struct BlockMask {
  const std::uint8_t* data = nullptr;
  Strides strides;
  int block_queries = 1, block_keys = 1;
  int queries = 1, keys = 0;
  bool causal = false;

  RETICLE_HD std::uint64_t word(int batch, int head, int query, int key) const {
    const std::uint8_t* const row =
        data + batch * strides.batch + head * strides.head + query / block_queries * strides.row;
    const int left = visible_keys(keys, queries, query, causal) - key, end = left < 64 ? left : 64;
    std::uint64_t bits = 0;
    for (int i = 0; i < end;) {
      const int block = (key + i) / block_keys, block_end = (block + 1) * block_keys - key;
      const int next = block_end < end ? block_end : end;
      if (row[block] != 0) bits |= (~std::uint64_t{0} >> (64 - (next - i))) << i;
      i = next;
    }
    return bits;
  }
};

/// A bit for every position: words of rows, `width` to a row. Strides count words.
struct WordMask {
  const std::uint64_t* words = nullptr;
  Strides strides;
  int queries = 1, keys = 0;
  bool causal = false;

  RETICLE_HD std::uint64_t word(int batch, int head, int query, int key) const {
    const int left = visible_keys(keys, queries, query, causal) - key;
    if (left <= 0) return 0;
    const std::uint64_t bits = words[batch * strides.batch + head * strides.head + query * strides.row + key / 64];
    return left < 64 ? bits & ((std::uint64_t{1} << left) - 1) : bits;
  }
};

/// Shared memory of a block that plans a tile of up to tile_rows rows.
template <int tile_rows>
struct PlanShared {
  std::uint64_t words[kPlanStep][extent<tile_rows + 1>];  // one more: a column lies in different banks
  int place[kPlanStep];                           // of a block of keys in the tile's list; -1: nobody attends to it
  int full[kPlanStep];
  int scan[kWarp + 1];
};

/// Fills the blocks of tile number `number`, from number * (blocks of keys) on, and their bits, and says in the tile
/// how many there are.
template <int tile_rows, class Block, class MaskView>
RETICLE_HD void plan_tile(const Block& block, PlanShared<tile_rows>& shared, const MaskView& mask, Tile* tiles,
                          KeyBlock* blocks, std::uint64_t* bits, int number) {
  const Tile tile = tiles[number];
  const int key_blocks = (mask.keys + kKeyBlock - 1) / kKeyBlock;
  const Index first = static_cast<Index>(number) * key_blocks;
  int found = 0;
  for (int step = 0; step < key_blocks; step += kPlanStep) {
    const int count = key_blocks - step < kPlanStep ? key_blocks - step : kPlanStep;
    block.each([&](int thread) {
      for (int i = thread; i < tile_rows * kPlanStep; i += kPlanThreads) {
        const int row = i / kPlanStep, own = i % kPlanStep, key = (step + own) * kKeyBlock;
        std::uint64_t word = 0;
        if (row < tile.rows && own < count)
          word = mask.word(tile.batch, tile.first_head + row % tile.heads, tile.first_query + row / tile.heads, key);
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
                       shared.full[thread] != 0 ? -1 : static_cast<std::int32_t>(place * tile_rows)};
    });
    block.sync();
    block.each([&](int thread) {
      for (int i = thread; i < tile_rows * count; i += kPlanThreads) {
        const int row = i % tile_rows, own = i / tile_rows;
        if (shared.place[own] >= 0 && shared.full[own] == 0)
          bits[(first + shared.place[own]) * tile_rows + row] = shared.words[own][row];
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

/// The keys that row `row` of (batch, head, query) attends to.
template <class Block, class MaskView>
RETICLE_HD void list_row(const Block& block, int* scan, const MaskView& mask, int heads, const ColumnLists& to,
                         int row) {
  const int query = row % mask.queries, head = row / mask.queries % heads, batch = row / mask.queries / heads;
  const auto word_of = [&](int w) { return mask.word(batch, head, query, w * 64); };
  list_words(block, scan, word_of, (mask.keys + 63) / 64, to, row);
}

}  // namespace reticle::cuda
