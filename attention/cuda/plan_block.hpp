// Builds attention plans on the GPU from byte masks, block masks, bit masks, block indices, or bands, which are
// implicit and take no memory.
//
// Tiles: one block of threads takes one tile, 32 blocks of keys at a time. The bits of each row's 64 positions become a
// word in shared memory; then one thread per block of keys finds whether any row attends to it and whether all rows
// attend to all of it, and a scan gives its position in the plan. Every tile has space for all blocks of keys that it
// may attend to, so that no counting pass is needed: one launch. The walk by keys of the gradients needs the tiles that
// attend to each block of keys: they are counted, the counts are scanned, and then they are listed. Lists: one block of
// threads takes one row, with 64 positions per thread and a scan for every 8192. Cost: the mask's bytes once, and the
// plan's.
#pragma once

#include <algorithm>
#include <limits>

#include <reticle/attention/cuda/tiles.hpp>
#include <reticle/core/cuda/mask_block.hpp>
#include <reticle/core/cuda/row_block.hpp>

namespace reticle::cuda {

inline constexpr int kPlanThreads = kMaskThreads;
inline constexpr int kPlanStep = 32;  // blocks of keys that are planned together

/// How many keys a query sees.
RETICLE_HD inline int visible_keys(int keys, int queries, int query, bool causal) {
  if (!causal) return keys;
  const int end = keys - queries + query + 1;
  return end < 0 ? 0 : end < keys ? end : keys;
}

/// Bit i is set if byte i < count is not 0.
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

/// Capacity of a tile: blocks of keys in all, and blocks that are attended to in part.
struct PlanRoom {
  int blocks = 0, partial = 0;
};
inline int key_blocks_of(int keys) { return (keys + kKeyBlock - 1) / kKeyBlock; }

/// The bits of positions [begin, end) within the word of 64 positions that begins at `first`.
RETICLE_HD inline std::uint64_t bits_between(Index begin, Index end, Index first) {
  begin = begin > first ? begin - first : 0;
  end = end - first < 64 ? end - first : 64;
  return end <= begin ? 0 : (~std::uint64_t{0} >> (64 - (end - begin))) << begin;
}
/// The bits of those of the 32 blocks of keys from `first_key` on that contain a key of [begin, end).
RETICLE_HD inline std::uint32_t blocks_between(Index begin, Index end, Index first_key) {
  begin = begin > first_key ? (begin - first_key) / kKeyBlock : 0;
  end = end > first_key ? (end - first_key + kKeyBlock - 1) / kKeyBlock : 0;
  return static_cast<std::uint32_t>(bits_between(begin, end < kPlanStep ? end : kPlanStep, 0));
}

// Masks that a plan can be built from. Kernels call word(batch, head, query, key), the bits of keys [key, key + 64)
// that the query sees, and heads_share(), whether all heads of a KV head have the same word; the host calls room(), a
// tile's capacity, and most_keys() of a query. Masks whose rows are long and mostly empty also have touched(tile, key,
// thread): a bit for each of the 32 blocks of keys from `key` on that contains an entry of this thread's share of the
// tile.

/// A byte for every (batch, head, query, key), not 0 where attended; the bytes of a row are contiguous. A stride of 0
/// broadcasts a dimension.
struct ByteMask {
  const std::uint8_t* data = nullptr;
  Strides strides;
  int queries = 1, keys = 0;
  bool causal = false;

  RETICLE_HD const std::uint8_t* row(int batch, int head, int query) const {
    return data + batch * strides.batch + head * strides.head + query * strides.row;
  }
  RETICLE_HD int visible(int query) const { return visible_keys(keys, queries, query, causal); }
  RETICLE_HD bool heads_share() const { return strides.head == 0; }
  Index most_keys() const { return keys; }
  PlanRoom room(const Tiling&) const { return {key_blocks_of(keys), key_blocks_of(keys)}; }
  RETICLE_HD std::uint64_t word(int batch, int head, int query, int key) const {
    const int left = visible(query) - key;
    return left > 0 ? bits_of_bytes(row(batch, head, query) + key, left) : 0;
  }
};

/// A byte for every block of block_queries x block_keys positions; the last blocks may extend beyond the mask.
struct BlockMask {
  const std::uint8_t* data = nullptr;
  Strides strides;
  int block_queries = 1, block_keys = 1;
  int queries = 1, keys = 0;
  bool causal = false;

  RETICLE_HD bool heads_share() const { return strides.head == 0; }
  Index most_keys() const { return keys; }
  PlanRoom room(const Tiling&) const { return {key_blocks_of(keys), key_blocks_of(keys)}; }
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

/// A bit for every position, in rows of `width` words. Strides count words.
struct WordMask {
  const std::uint64_t* words = nullptr;
  Strides strides;
  int queries = 1, keys = 0;
  bool causal = false;

  RETICLE_HD bool heads_share() const { return strides.head == 0; }
  Index most_keys() const { return keys; }
  PlanRoom room(const Tiling&) const { return {key_blocks_of(keys), key_blocks_of(keys)}; }
  RETICLE_HD std::uint64_t word(int batch, int head, int query, int key) const {
    const int left = visible_keys(keys, queries, query, causal) - key;
    if (left <= 0) return 0;
    const std::uint64_t bits = words[batch * strides.batch + head * strides.head + query * strides.row + key / 64];
    return left < 64 ? bits & ((std::uint64_t{1} << left) - 1) : bits;
  }
};

/// For each query and KV head up to `count` indices of blocks of block_size keys, ascending; unused ones are -1 and
/// come last. A query sees the keys of these blocks up to its own position; the last query is at the last key.
struct NumberedBlocks {
  const std::int32_t* numbers = nullptr;
  Strides strides;  // of (batch, KV head, query)
  int group = 1, count = 0, block_size = 64;
  int queries = 1, keys = 0;

  RETICLE_HD const std::int32_t* row(int batch, int head, int query) const {
    return numbers + batch * strides.batch + head / group * strides.head + query * strides.row;
  }
  RETICLE_HD bool heads_share() const { return true; }
  Index most_keys() const { return std::min<Index>(static_cast<Index>(count) * block_size, keys); }
  PlanRoom room(const Tiling& tiling) const {
    const Index query_blocks = static_cast<Index>(count) * ((block_size + kKeyBlock - 2) / kKeyBlock + 1);
    const auto blocks = static_cast<int>(std::min<Index>(query_blocks * tiling.queries_of_tile(), key_blocks_of(keys)));
    return {blocks, blocks};
  }
  RETICLE_HD std::uint64_t word(int batch, int head, int query, int key) const {
    const std::int32_t* const row_numbers = row(batch, head, query);
    int low = 0, high = count;  // the first block that ends after `key`
    while (low < high) {
      const int middle = (low + high) / 2;
      if (row_numbers[middle] >= 0 && (static_cast<Index>(row_numbers[middle]) + 1) * block_size <= key) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    const int visible = visible_keys(keys, queries, query, true);
    std::uint64_t bits = 0;
    for (; low < count && row_numbers[low] >= 0; ++low) {
      const Index begin = static_cast<Index>(row_numbers[low]) * block_size;
      if (begin >= key + kKeyBlock) break;
      bits |= bits_between(begin, begin + block_size < visible ? begin + block_size : visible, key);
    }
    return bits;
  }
  RETICLE_HD std::uint32_t touched(const Tile& tile, int key, int thread) const {
    std::uint32_t blocks = 0;
    const int entries = tile.rows / tile.heads * count;
    for (int i = thread; i < entries; i += kPlanThreads) {
      const Index number = row(tile.batch, tile.first_head, tile.first_query + i / count)[i % count];
      if (number >= 0) blocks |= blocks_between(number * block_size, (number + 1) * block_size, key);
    }
    return blocks;
  }
};

/// Columns up to the query's position. Column c is complete at position c * stride + kernel - 1; a query sees the last
/// `width` of the columns that are complete at its position. In a sliding window kernel and stride are 1; for
/// compressed keys they are the kernel and stride of the compression.
struct BandMask {
  int first_query = 0;  // the position of query 0
  int kernel = 1, stride = 1;
  int width = std::numeric_limits<std::int32_t>::max();
  int queries = 1, keys = 0;

  RETICLE_HD int end(int query) const {
    const int after = first_query + query + 1 - kernel;  // fits: positions are below 2^30
    if (after < 0) return 0;
    return after / stride + 1 < keys ? after / stride + 1 : keys;
  }
  RETICLE_HD int begin(int query) const {
    const int after = first_query + query + 1 - kernel, complete = after < 0 ? 0 : after / stride + 1;
    return complete > width ? complete - width : 0;
  }
  RETICLE_HD int count(int query) const { return begin(query) < end(query) ? end(query) - begin(query) : 0; }
  RETICLE_HD bool heads_share() const { return true; }
  Index most_keys() const { return std::min(width, keys); }
  PlanRoom room(const Tiling& tiling) const {
    // The intervals of a tile's queries end within `spread` keys, and only blocks at an interval's edge are seen in
    // part.
    const int spread = (tiling.queries_of_tile() - 1) / stride + 1, edge = spread / kKeyBlock + 2;
    const int all = key_blocks_of(keys);
    const Index seen = static_cast<Index>(width) + spread;
    return {static_cast<int>(std::min<Index>(all, seen / kKeyBlock + 2)), std::min(all, 2 * edge)};
  }
  RETICLE_HD std::uint64_t word(int, int, int query, int key) const {
    return bits_between(begin(query), end(query), key);
  }
  RETICLE_HD std::uint32_t touched(const Tile& tile, int key, int thread) const {
    if (thread != 0) return 0;
    return blocks_between(begin(tile.first_query), end(tile.query_of(tile.rows - 1)), key);
  }
};

/// Shared memory of a block that plans a tile of up to tile_rows rows.
template <int tile_rows>
struct PlanShared {
  std::uint64_t words[kPlanStep][extent<tile_rows + 1>];  // one more: a column lies in different banks
  int place[kPlanStep];   // index of a block of keys in the tile's list; -1: no row attends to it
  int number[kPlanStep];  // index of its bits; -1: all rows attend to all of it
  int scan[kWarp + 1];
  std::uint32_t touched;
};

/// The output of planning: arrays with `room` for every tile, as the mask requires, and the tiling.
struct PlannedTiles {
  Tiling tiling;
  PlanRoom room;
  Tile* tiles = nullptr;
  KeyBlock* blocks = nullptr;
  std::uint64_t* bits = nullptr;
};

/// Plans tile number `number`: its blocks of keys and their bits.
template <int tile_rows, class Block, class MaskView>
RETICLE_HD void plan_tile(const Block& block, PlanShared<tile_rows>& shared, const MaskView& mask,
                          const PlannedTiles& to, int number) {
  Tile tile = to.tiling.at(number);
  const bool share = mask.heads_share();
  const int words = to.tiling.words(share), step_rows = share ? tile.heads : 1, count_rows = tile.rows / step_rows;
  const int key_blocks = (mask.keys + kKeyBlock - 1) / kKeyBlock;
  const Index first = static_cast<Index>(number) * to.room.blocks,
              first_bits = static_cast<Index>(number) * to.room.partial;
  int found = 0, partial = 0;
  for (int step = 0; step < key_blocks; step += kPlanStep) {
    const int count = key_blocks - step < kPlanStep ? key_blocks - step : kPlanStep;
    std::uint32_t touched = ~std::uint32_t{0};
    if constexpr (requires { mask.touched(tile, 0, 0); }) {
      block.each([&](int thread) {
        if (thread == 0) shared.touched = 0;
      });
      block.sync();
      block.each([&](int thread) {
        if (const std::uint32_t touched_blocks = mask.touched(tile, step * kKeyBlock, thread); touched_blocks != 0)
          block.set_bits(&shared.touched, touched_blocks);
      });
      block.sync();
      touched = shared.touched;
      block.sync();
      if (touched == 0) continue;
    }
    block.each([&](int thread) {
      for (int i = thread; i < count_rows * kPlanStep; i += kPlanThreads) {
        const int row = i / kPlanStep, key_block = i % kPlanStep, key = (step + key_block) * kKeyBlock;
        std::uint64_t word = 0;
        if (key_block < count && (touched >> key_block & 1) != 0)
          word = mask.word(tile.batch, tile.head_of(row * step_rows), tile.query_of(row * step_rows), key);
        shared.words[key_block][row] = word;
      }
    });
    block.sync();
    PerThread<Block, int> before(block);  // counts: blocks attended to, and, from bit 16 on, blocks attended to in part
    block.each([&](int thread) {
      before[thread] = 0;
      if (thread >= count) return;
      std::uint64_t any = 0, all = ~std::uint64_t{0};
      for (int row = 0; row < count_rows; ++row) {
        any |= shared.words[thread][row];
        all &= shared.words[thread][row];
      }
      const bool full = all == ~std::uint64_t{0};
      before[thread] = any == 0 ? 0 : full ? 1 : 1 | 1 << 16;
      shared.place[thread] = any != 0 ? 0 : -1;
      shared.number[thread] = full ? -1 : 0;
    });
    const int here = block.exclusive_scan(before, shared.scan);
    block.each([&](int thread) {
      if (thread >= count || shared.place[thread] < 0) return;
      const int place = found + (before[thread] & 0xFFFF);
      if (shared.number[thread] == 0) shared.number[thread] = partial + (before[thread] >> 16);
      const auto bits = static_cast<std::int32_t>(first_bits + shared.number[thread]);
      to.blocks[first + place] = {(step + thread) * kKeyBlock, shared.number[thread] < 0 ? -1 : bits, -1};
    });
    block.sync();
    block.each([&](int thread) {
      for (int i = thread; i < count_rows * count; i += kPlanThreads) {
        const int row = i % count_rows, key_block = i / count_rows;
        if (shared.place[key_block] >= 0 && shared.number[key_block] >= 0)
          to.bits[(first_bits + shared.number[key_block]) * words + row] = shared.words[key_block][row];
      }
    });
    block.sync();
    found += here & 0xFFFF;
    partial += here >> 16;
  }
  block.each([&](int thread) {
    if (thread != 0) return;
    tile.first_block = static_cast<std::int32_t>(first);
    tile.blocks = found;
    to.tiles[number] = tile;
  });
}

/// Finds the tiles that attend to block of keys `item` of (batch, KV head, block), in the tiling's order. Writes their
/// number to *count if `count` is not null, and the tiles to `to` if that is not null.
template <class Block>
RETICLE_HD void tiles_of_keys(const Block& block, int* scan, const TileLists& lists, const Tiling& tiling,
                              int key_blocks, int item, std::int32_t* count, TileOfKeys* to) {
  const std::int32_t key = item % key_blocks * kKeyBlock;
  const int kv_head = item / key_blocks % tiling.kv_heads, batch = item / key_blocks / tiling.kv_heads;
  int written = 0;
  for (int step = 0; step < tiling.tiles_of_kv_head(); step += kPlanThreads) {
    PerThread<Block, int> before(block);
    PerThread<Block, TileOfKeys> entries(block);
    block.each([&](int thread) {
      before[thread] = 0;
      if (step + thread >= tiling.tiles_of_kv_head()) return;
      const int number = tiling.number(batch, kv_head, step + thread);
      const Tile& tile = lists.tiles[number];
      const KeyBlock* const blocks = lists.blocks + tile.first_block;
      int low = 0, high = tile.blocks;
      while (low < high) {
        const int middle = (low + high) / 2;
        if (blocks[middle].first_key < key) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      if (low == tile.blocks || blocks[low].first_key != key) return;
      before[thread] = 1;
      entries[thread] = {number, tile.first_block + low};
    });
    PerThread<Block, int> found(block);
    block.each([&](int thread) { found[thread] = before[thread]; });
    const int here = block.exclusive_scan(before, scan);
    block.each([&](int thread) {
      if (to != nullptr && found[thread] != 0) to[written + before[thread]] = entries[thread];
    });
    written += here;
  }
  block.each([&](int thread) {
    if (thread == 0 && count != nullptr) *count = written;
  });
}

/// Lists the keys that row `row` of (batch, head, query) attends to; each of the `heads` heads stands for `sharing`
/// heads of the mask.
template <class Block, class MaskView>
RETICLE_HD void list_row(const Block& block, int* scan, const MaskView& mask, int heads, int sharing,
                         const ColumnLists& to, int row) {
  const int query = row % mask.queries, head = row / mask.queries % heads * sharing, batch = row / mask.queries / heads;
  const auto word_of = [&](int w) { return mask.word(batch, head, query, w * 64); };
  list_words(block, scan, word_of, (mask.keys + 63) / 64, to, row);
}

}  // namespace reticle::cuda
