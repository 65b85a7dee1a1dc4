// Plans made on a GPU, run on the CPU, against those that the CPU makes.
#include <map>
#include <memory>

#include <gtest/gtest.h>

#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/attention/cuda/plan_block.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>

#include "cuda/problem.hpp"

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

using BlocksOfTile = std::map<std::int32_t, std::vector<std::uint64_t>>;  // first key: words, none when full

BlocksOfTile blocks_of(const Tile& tile, const KeyBlock* blocks, const std::uint64_t* bits) {
  BlocksOfTile found;
  for (std::int32_t i = tile.first_block; i < tile.first_block + tile.blocks; ++i) {
    std::vector<std::uint64_t>& words = found[blocks[i].first_key];
    if (blocks[i].bits >= 0) words.assign(bits + blocks[i].bits, bits + blocks[i].bits + tile.rows);
  }
  return found;
}

template <int tile_rows, class MaskView>
void expect_tiles(const Case& c, const Mask& mask, const MaskView& view) {
  const BlockPlan expected = plan_blocks(mask, c.kv_heads, c.causal, tile_rows);
  std::vector<Tile> tiles = expected.tiles;
  for (Tile& tile : tiles) tile.first_block = tile.blocks = -7;
  const Index key_blocks = (c.keys + kKeyBlock - 1) / kKeyBlock, room = static_cast<Index>(tiles.size()) * key_blocks;
  std::vector<KeyBlock> blocks(static_cast<std::size_t>(room), {-1, -1});
  std::vector<std::uint64_t> bits(static_cast<std::size_t>(room * tile_rows), 0xDEAD);
  const HostBlock block(kPlanThreads);
  const auto shared = std::make_unique<PlanShared<tile_rows>>();
  for (int i = 0; i < static_cast<int>(tiles.size()); ++i)
    plan_tile<tile_rows>(block, *shared, view, tiles.data(), blocks.data(), bits.data(), i);
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    EXPECT_EQ(blocks_of(tiles[i], blocks.data(), bits.data()),
              blocks_of(expected.tiles[i], expected.blocks.data(), expected.bits.data()))
        << "tile " << i;
  }
}

template <class MaskView>
void expect_lists_of_the_cpu(const Case& c, const Mask& mask, const MaskView& view) {
  const Csr expected = to_csr(c.causal ? restrict_causal(mask) : mask);
  const Index rows = c.batch * c.heads * c.rows;
  std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * c.keys), -1),
      counts(static_cast<std::size_t>(rows));
  const HostBlock block(kPlanThreads);
  int scan[kWarp + 1];
  for (int row = 0; row < rows; ++row)
    list_row(block, scan, view, static_cast<int>(c.heads), {indices.data(), nullptr, counts.data(), c.keys}, row);
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
    list_row(block, scan, shared_by_all, static_cast<int>(c.heads), {indices.data(), nullptr, counts.data(), c.keys},
             row);
  const Csr expected = to_csr(one);
  for (std::size_t row = 0; row < counts.size(); ++row) {
    const auto own = static_cast<Index>(row) % c.rows;
    EXPECT_EQ(counts[row], expected.row_ptr[own + 1] - expected.row_ptr[own]);
  }
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
