// Plans made on a GPU, run on the CPU, against those that the CPU makes.
#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/attention/cuda/plan_block.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>

#include "support/cuda/problem.hpp"
#include "support/cuda/threaded_block.hpp"

namespace reticle::cuda {
namespace {

std::vector<std::uint8_t> bytes_of(const Mask& mask) {
  std::vector<std::uint8_t> bytes;
  for (const float p : to_dense(mask)) bytes.push_back(p > 0 ? 1 : 0);
  return bytes;
}

ByteMask view_of(const std::vector<std::uint8_t>& bytes, const Case& c) {
  return {bytes.data(),
          {c.heads * c.rows * c.keys, c.rows * c.keys, c.keys},
          static_cast<int>(c.rows),
          static_cast<int>(c.keys),
          c.causal};
}

using WordsOfBlocks = std::map<std::int32_t, std::vector<std::uint64_t>>;  // by first key: a word a row

WordsOfBlocks words_of(const TileLists& lists, const Tile& tile) {
  WordsOfBlocks found;
  for (std::int32_t i = tile.first_block; i < tile.first_block + tile.blocks; ++i) {
    std::vector<std::uint64_t>& words = found[lists.blocks[i].first_key];
    for (std::int32_t row = 0; row < tile.rows; ++row) words.push_back(lists.word(tile, lists.blocks[i], row));
  }
  return found;
}

/// A plan, as kernels make it.
struct MadePlan {
  Tiling tiling;
  std::vector<Tile> tiles;
  std::vector<KeyBlock> blocks;
  std::vector<std::uint64_t> bits;
  bool heads_share;

  TileLists lists() const {
    return {tiles.data(), blocks.data(), bits.data(), nullptr, tiling.words(heads_share), heads_share};
  }
};

template <int tile_rows, class MaskView>
MadePlan made_plan(const Case& c, const MaskView& view) {
  MadePlan made;
  made.tiling = Tiling::of({c.batch, c.heads, c.rows, c.keys}, c.kv_heads, tile_rows);
  made.heads_share = view.heads_share();
  const PlanRoom room = view.room(made.tiling);
  const auto count = static_cast<std::size_t>(made.tiling.tiles());
  made.tiles.resize(count, Tile{-7, -7, -7, -7, -7, -7, -7});
  made.blocks.resize(count * static_cast<std::size_t>(room.blocks), {-1, -1});
  made.bits.resize(count * static_cast<std::size_t>(room.partial * made.tiling.words(made.heads_share)), 0xDEAD);
  const PlannedTiles to{made.tiling, room, made.tiles.data(), made.blocks.data(), made.bits.data()};
  const auto shared = std::make_unique<PlanShared<tile_rows>>();
  for (int i = 0; i < made.tiling.tiles(); ++i) {
    run_block(kPlanThreads, *shared, [&](const auto& block) { plan_tile<tile_rows>(block, *shared, view, to, i); });
  }
  return made;
}

template <int tile_rows, class MaskView>
void expect_tiles(const Case& c, const Mask& mask, const MaskView& view) {
  const BlockPlan expected = plan_blocks(mask, c.kv_heads, c.causal, tile_rows).value();
  const MadePlan made = made_plan<tile_rows>(c, view);
  const auto key_of = [](const Tile& tile) { return std::tuple(tile.batch, tile.first_head, tile.first_query); };
  std::map<std::tuple<int, int, int>, WordsOfBlocks> wanted, found;
  for (const Tile& tile : expected.tiles) wanted[key_of(tile)] = words_of(expected.lists(), tile);
  for (const Tile& tile : made.tiles) found[key_of(tile)] = words_of(made.lists(), tile);
  EXPECT_EQ(wanted, found);
}

template <class MaskView>
void expect_lists_of_the_cpu(const Case& c, const Mask& mask, const MaskView& view) {
  const Csr expected = to_csr(c.causal ? restrict_causal(mask) : mask);
  const Index rows = c.batch * c.heads * c.rows;
  std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * c.keys), -1),
      counts(static_cast<std::size_t>(rows));
  int scan[kWarp + 1];
  for (int row = 0; row < rows; ++row) {
    run_block(kPlanThreads, scan, [&](const auto& block) {
      list_row(block, scan, view, static_cast<int>(c.heads), 1, {indices.data(), nullptr, counts.data(), c.keys}, row);
    });
  }
  for (Index row = 0; row < rows; ++row) {
    const Index begin = expected.row_ptr[row], count = expected.row_ptr[row + 1] - begin;
    ASSERT_EQ(counts[static_cast<std::size_t>(row)], count) << "row " << row;
    for (Index i = 0; i < count; ++i)
      ASSERT_EQ(indices[static_cast<std::size_t>(row * c.keys + i)], expected.indices[begin + i]) << "row " << row;
  }
}

template <class MaskView>
void expect_plans_of_the_cpu(const Case& c, const Mask& mask, const MaskView& view) {
  expect_tiles<kTileRowCount>(c, mask, view);
  expect_tiles<kWideTileRows>(c, mask, view);
  expect_lists_of_the_cpu(c, mask, view);
}

TEST(CudaPlan, BytesAndBitsBecomeTheTilesAndListsThatTheCpuMakes) {
  for (const bool causal : {false, true}) {
    for (const double density : {0.0, 0.001, 0.3, 1.0}) {
      for (const Index keys : {64, 200, 2500}) {
        SCOPED_TRACE("density " + std::to_string(density) + ", keys " + std::to_string(keys) +
                     (causal ? ", causal" : ""));
        Case c;
        c.rows = 70;
        c.keys = keys;
        c.causal = causal;
        const Mask mask = random_mask(c, density, 4);
        const std::vector<std::uint8_t> bytes = bytes_of(mask);
        expect_plans_of_the_cpu(c, mask, view_of(bytes, c));
        const Mask as_bits = convert(mask, MaskKind::bits);
        const Index width = BitDense::words_per_row(c.keys);
        const RowMap stored = RowMap::between(mask.shape().unshared(), as_bits.shape());
        expect_plans_of_the_cpu(
            c, mask,
            WordMask{std::get<BitDense>(as_bits.representation()).words.data(),
                     {stored.batch_stride * width, stored.head_stride * width, stored.query_stride * width},
                     static_cast<int>(c.rows),
                     static_cast<int>(c.keys),
                     c.causal});
      }
    }
  }
}

TEST(CudaPlan, BlocksOfAnySizeBecomeTheTilesAndListsThatTheCpuMakes) {
  for (const auto& [block_queries, block_keys] : {std::pair{1, 1}, {16, 10}, {64, 64}, {7, 100}, {128, 256}}) {
    for (const bool causal : {false, true}) {
      SCOPED_TRACE("blocks of " + std::to_string(block_queries) + " x " + std::to_string(block_keys) +
                   (causal ? ", causal" : ""));
      Case c;
      c.rows = 70;
      c.keys = 333;
      c.causal = causal;
      Case by_blocks = c;
      by_blocks.rows = (c.rows + block_queries - 1) / block_queries;
      by_blocks.keys = (c.keys + block_keys - 1) / block_keys;
      const std::vector<std::uint8_t> bytes = bytes_of(random_mask(by_blocks, 0.3, 8));
      std::vector<float> p;
      for (Index row = 0; row < c.batch * c.heads * c.rows; ++row) {
        const Index matrix = row / c.rows, of_block = matrix * by_blocks.rows + row % c.rows / block_queries;
        for (Index key = 0; key < c.keys; ++key)
          p.push_back(bytes[static_cast<std::size_t>(of_block * by_blocks.keys + key / block_keys)]);
      }
      const BlockMask view{bytes.data(), view_of(bytes, by_blocks).strides, block_queries,
                           block_keys,   static_cast<int>(c.rows),          static_cast<int>(c.keys),
                           causal};
      expect_plans_of_the_cpu(c, Mask::dense({c.batch, c.heads, c.rows, c.keys}, p), view);
    }
  }
}

TEST(CudaPlan, StridesOfZeroShareAPatternAmongHeads) {
  Case c;
  c.rows = 5;
  c.keys = 130;
  const Mask one = random_mask({1, 1, 1, c.rows, c.keys}, 0.4, 6);
  const std::vector<std::uint8_t> bytes = bytes_of(one);
  const ByteMask shared_by_all{bytes.data(), {0, 0, c.keys}, static_cast<int>(c.rows), static_cast<int>(c.keys), false};
  std::vector<std::int32_t> indices(static_cast<std::size_t>(c.batch * c.heads * c.rows * c.keys)),
      counts(static_cast<std::size_t>(c.batch * c.heads * c.rows));
  const HostBlock block(kPlanThreads);
  int scan[kWarp + 1];
  for (int row = 0; row < c.batch * c.heads * c.rows; ++row)
    list_row(block, scan, shared_by_all, static_cast<int>(c.heads), 1, {indices.data(), nullptr, counts.data(), c.keys},
             row);
  const Csr expected = to_csr(one);
  for (std::size_t row = 0; row < counts.size(); ++row) {
    const auto own = static_cast<Index>(row) % c.rows;
    EXPECT_EQ(counts[row], expected.row_ptr[own + 1] - expected.row_ptr[own]);
  }
}

Mask mask_of(const Case& c, const std::function<bool(Index batch, Index kv_head, Index query, Index key)>& attended) {
  std::vector<float> p;
  for (Index row = 0; row < c.batch * c.heads * c.rows; ++row) {
    const Index head = row / c.rows % c.heads, batch = row / c.rows / c.heads;
    for (Index key = 0; key < c.keys; ++key)
      p.push_back(attended(batch, head * c.kv_heads / c.heads, row % c.rows, key) ? 1.0f : 0.0f);
  }
  return Mask::dense({c.batch, c.heads, c.rows, c.keys}, p);
}

TEST(CudaPlan, NumbersOfBlocksBecomeTheTilesAndListsThatTheCpuMakes) {
  for (const int block_size : {16, 64, 100}) {
    for (const Index rows : {1, 50, 700}) {
      SCOPED_TRACE("blocks of " + std::to_string(block_size) + ", " + std::to_string(rows) + " queries");
      Case c;
      c.batch = rows == 700 ? 1 : 2;
      c.heads = 6;
      c.keys = 700;
      c.rows = rows;
      constexpr int kCount = 5;
      std::mt19937 random(6);
      std::vector<std::int32_t> numbers;
      for (Index row = 0; row < c.batch * c.kv_heads * c.rows; ++row) {
        std::set<std::int32_t> own;
        for (auto n = random() % (kCount + 1); n > 0; --n)
          own.insert(static_cast<std::int32_t>(random() % (900 / static_cast<unsigned>(block_size))));  // some beyond
        numbers.insert(numbers.end(), own.begin(), own.end());
        numbers.resize(static_cast<std::size_t>((row + 1) * kCount), -1);
      }
      const NumberedBlocks view{numbers.data(),
                                {c.kv_heads * c.rows * kCount, c.rows * kCount, kCount},
                                static_cast<int>(c.heads / c.kv_heads),
                                kCount,
                                block_size,
                                static_cast<int>(c.rows),
                                static_cast<int>(c.keys)};
      c.causal = true;  // which such blocks are in any case
      const Mask mask = mask_of(c, [&](Index batch, Index kv_head, Index query, Index key) {
        const auto* const own = numbers.data() + ((batch * c.kv_heads + kv_head) * c.rows + query) * kCount;
        return std::find(own, own + kCount, key / block_size) != own + kCount;
      });
      expect_plans_of_the_cpu(c, mask, view);
    }
  }
}

TEST(CudaPlan, BandsBecomeTheTilesAndListsThatTheCpuMakes) {
  struct Given {
    int first_query, kernel, stride, width;
    Index queries, keys;
  };
  constexpr int kAll = std::numeric_limits<std::int32_t>::max();
  for (const Given& given :
       {Given{0, 1, 1, 100, 300, 300}, Given{0, 32, 16, kAll, 900, 55}, Given{800, 32, 16, kAll, 100, 55},
        Given{0, 1, 1, kAll, 130, 130}, Given{5000, 1, 1, 512, 3, 5003}, Given{0, 40, 7, 9, 500, 60},
        Given{0, 1, 1, 1, 70, 70}, Given{10, 1, 1, 64, 140, 90}, Given{0, 3000, 1, kAll, 200, 10}}) {
    SCOPED_TRACE("band of width " + std::to_string(given.width) + ", kernel " + std::to_string(given.kernel) +
                 ", stride " + std::to_string(given.stride) + ", queries " + std::to_string(given.queries));
    Case c;
    c.batch = 1;
    c.rows = given.queries;
    c.keys = given.keys;
    const BandMask view{
        given.first_query,           given.kernel, given.stride, given.width, static_cast<int>(given.queries),
        static_cast<int>(given.keys)};
    const Mask mask = mask_of(c, [&](Index, Index, Index query, Index key) {
      const Index position = given.first_query + query;
      const auto complete = [&](Index column) { return column * given.stride + given.kernel - 1 <= position; };
      return complete(key) && !complete(key + given.width);
    });
    expect_plans_of_the_cpu(c, mask, view);
  }
}

TEST(CudaPlan, ListsOfHeadsThatShareThemAreThoseOfTheFirst) {
  const std::vector<std::int32_t> numbers = {0, 2, 1, 3};  // of two KV heads
  const NumberedBlocks view{numbers.data(), {4, 2, 2}, 4, 2, 16, 1, 64};
  std::vector<std::int32_t> indices(4 * 64, -1), counts(4);
  int scan[kWarp + 1];
  for (int row = 0; row < 4; ++row)  // 8 heads in twos
    list_row(HostBlock(kPlanThreads), scan, view, 4, 2, {indices.data(), nullptr, counts.data(), 64}, row);
  EXPECT_EQ(counts, std::vector<std::int32_t>(4, 32));
  for (const std::size_t row : {0u, 1u, 2u, 3u}) EXPECT_EQ(indices[row * 64], row < 2 ? 0 : 16);
}

void expect_tiles_of_keys(Case c) {
  c.heads = 6;
  const std::vector<std::uint8_t> bytes = bytes_of(random_mask(c, 0.002, 4));
  const MadePlan made = made_plan<kTileRowCount>(c, view_of(bytes, c));
  const int key_blocks = key_blocks_of(static_cast<int>(c.keys)),
            items = static_cast<int>(c.batch * c.kv_heads) * key_blocks;
  std::vector<std::int32_t> counts(static_cast<std::size_t>(items), -1);
  std::vector<Index> starts(counts.size() + 1, 0);
  int scan[kWarp + 1];
  for (int item = 0; item < items; ++item)
    run_block(kPlanThreads, scan, [&](const auto& block) {
      tiles_of_keys(block, scan, made.lists(), made.tiling, key_blocks, item, &counts[static_cast<std::size_t>(item)],
                    nullptr);
    });
  std::partial_sum(counts.begin(), counts.end(), starts.begin() + 1);
  std::vector<TileOfKeys> listed(static_cast<std::size_t>(starts.back()), TileOfKeys{-1, -1});
  for (int item = 0; item < items; ++item)
    run_block(kPlanThreads, scan, [&](const auto& block) {
      tiles_of_keys(block, scan, made.lists(), made.tiling, key_blocks, item, nullptr,
                    listed.data() + starts[static_cast<std::size_t>(item)]);
    });

  using Entry = std::tuple<int, int, int>;  // item, tile, block of its list
  std::set<Entry> wanted, found;
  for (std::size_t number = 0; number < made.tiles.size(); ++number) {
    const Tile& tile = made.tiles[number];
    const int kv_head = tile.first_head / 3;
    for (std::int32_t i = tile.first_block; i < tile.first_block + tile.blocks; ++i) {
      const KeyBlock& keys = made.blocks[static_cast<std::size_t>(i)];
      wanted.insert(
          {(tile.batch * 2 + kv_head) * key_blocks + keys.first_key / kKeyBlock, static_cast<int>(number), i});
    }
  }
  for (int item = 0; item < items; ++item) {
    for (Index i = starts[static_cast<std::size_t>(item)]; i < starts[static_cast<std::size_t>(item) + 1]; ++i)
      found.insert({item, listed[static_cast<std::size_t>(i)].tile, listed[static_cast<std::size_t>(i)].block});
  }
  EXPECT_EQ(found, wanted);
  EXPECT_EQ(static_cast<std::size_t>(starts.back()), wanted.size());
}

TEST(CudaPlan, TilesOfABlockOfKeysAreThoseThatAttendToIt) {
  Case c;
  c.rows = 200;
  c.keys = 500;
  expect_tiles_of_keys(c);
}

TEST(CudaThreads, PlanningWaitsForWhatItReads) {
  const ExecutedBy threads(Execution::threads);
  Case c;
  c.batch = 1;
  c.rows = 9;
  c.keys = 2200;
  const Mask mask = random_mask(c, 0.01, 4);
  const std::vector<std::uint8_t> bytes = bytes_of(mask);
  expect_plans_of_the_cpu(c, mask, view_of(bytes, c));
  expect_tiles_of_keys(c);
  c.causal = true;
  c.rows = 3;
  const std::vector<std::int32_t> numbers = {0, 20, 30, 0, 33, -1, 1, 30, 34, 0, 1, -1, -1, -1, -1, 34, -1, -1};
  const NumberedBlocks blocks{numbers.data(), {18, 9, 3}, 2, 3, 64, 3, 2200};
  expect_plans_of_the_cpu(c,
                          mask_of(c,
                                  [&](Index, Index kv_head, Index query, Index key) {
                                    const auto* const own = numbers.data() + kv_head * 9 + query * 3;
                                    return std::find(own, own + 3, key / 64) != own + 3;
                                  }),
                          blocks);
}

TEST(CudaPlan, BytesBecomeBitsWhateverTheirAlignmentAndNumber) {
  alignas(16) std::uint8_t bytes[160] = {};
  for (int i = 0; i < 160; ++i)
    bytes[i] = i % 3 == 0 || i % 7 == 0 ? static_cast<std::uint8_t>(i % 2 == 0 ? 1 : 255) : 0;
  for (const int offset : {0, 1, 16}) {
    for (const int count : {0, 1, 63, 64, 100}) {
      const std::uint64_t word = bits_of_bytes(bytes + offset, count);
      for (int i = 0; i < 64; ++i)
        ASSERT_EQ(word >> i & 1, i < count && bytes[offset + i] != 0 ? 1u : 0u) << offset << ", " << count << ", " << i;
    }
  }
}

}  // namespace
}  // namespace reticle::cuda
