#include <algorithm>
#include <array>
#include <map>

#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/core/base/checked.hpp>
#include <reticle/core/base/error.hpp>

namespace reticle::cuda {
namespace {

std::int32_t narrowed(Index number) {
  if (number > kMaxColumns) throw ShapeError("block plan: " + std::to_string(number) + " does not fit into 31 bits");
  return static_cast<std::int32_t>(number);
}

/// The blocks of one tile, while it is planned.
class TileBuilder {
 public:
  TileBuilder(const Mask& mask, bool causal, int tile_rows) : mask_(mask), causal_(causal), tile_rows_(tile_rows) {}

  void plan(const Tile& tile, std::vector<KeyBlock>& blocks, std::vector<std::uint64_t>& bits) {
    words_.clear();
    for (std::int32_t r = 0; r < tile.rows; ++r) {
      const Index query = tile.first_query + r / tile.heads;
      runs_.clear();
      mask_.row({tile.batch, tile.first_head + r % tile.heads, query}, runs_);
      const Index keys = mask_.shape().keys;
      const Index visible = causal_ ? std::clamp<Index>(keys - mask_.shape().queries + query + 1, 0, keys) : keys;
      for (const Run& run : runs_) {
        const Index end = std::min<Index>(run.end, visible);
        for (Index key = run.begin; key < end;) {
          const Index block = key / kKeyBlock, until = std::min(end, (block + 1) * kKeyBlock);
          word(block, r) |= ones(until - key) << (key % kKeyBlock);
          key = until;
        }
      }
    }
    for (const auto& [block, of_rows] : words_) {
      // Rows that the tile does not have may attend to anything: nobody reads them.
      const bool full = std::all_of(of_rows.begin(), of_rows.begin() + tile.rows,
                                    [](std::uint64_t row) { return row == ~std::uint64_t{0}; });
      blocks.push_back(
          {static_cast<std::int32_t>(block * kKeyBlock), full ? -1 : static_cast<std::int32_t>(bits.size())});
      if (!full) bits.insert(bits.end(), of_rows.begin(), of_rows.begin() + tile_rows_);
    }
  }

 private:
  static std::uint64_t ones(Index count) { return count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1; }
  std::uint64_t& word(Index block, std::int32_t row) { return words_[block][static_cast<std::size_t>(row)]; }

  const Mask& mask_;
  bool causal_;
  int tile_rows_;
  std::map<Index, std::array<std::uint64_t, extent<kWideTileRows>>> words_;
  std::vector<Run> runs_;
};

}  // namespace

Index BlockPlan::bytes() const {
  return static_cast<Index>(tiles.size() * sizeof(Tile) + blocks.size() * sizeof(KeyBlock) +
                            bits.size() * sizeof(std::uint64_t));
}

std::vector<Tile> tiles_of(const MaskShape& shape, Index kv_heads, int tile_rows) {
  if (kv_heads < 1 || shape.heads % kv_heads != 0)
    throw ShapeError("block plan: " + std::to_string(shape.heads) + " query heads are no multiple of " +
                     std::to_string(kv_heads) + " KV heads");
  const Index group = shape.heads / kv_heads, heads = std::min<Index>(group, tile_rows);
  const Index queries = tile_rows / heads;
  std::vector<Tile> tiles;
  for (Index batch = 0; batch < shape.batch; ++batch) {
    for (Index kv_head = 0; kv_head < kv_heads; ++kv_head) {
      for (Index head = 0; head < group; head += heads) {
        for (Index query = 0; query < shape.queries; query += queries) {
          const Index own = std::min(heads, group - head);
          tiles.push_back({narrowed(batch), narrowed(kv_head * group + head), narrowed(own), narrowed(query),
                           narrowed(own * std::min(queries, shape.queries - query)), 0, 0});
        }
      }
    }
  }
  return tiles;
}

BlockPlan plan_blocks(const Mask& mask, Index kv_heads, bool causal, int tile_rows, const Context& context) {
  if (mask.weighted()) throw ValueError("block plan: the mask is weighted; needed is p of 0 or 1");
  std::vector<Tile> tiles = tiles_of(mask.shape(), kv_heads, tile_rows);
  const auto count = static_cast<Index>(tiles.size());
  std::vector<std::vector<KeyBlock>> blocks(tiles.size());
  std::vector<std::vector<std::uint64_t>> bits(tiles.size());
  context.for_each_chunk(count, std::max<Index>(1, count / 256), [&](Index, Index begin, Index end) {
    TileBuilder builder(mask, causal, tile_rows);
    for (Index i = begin; i < end; ++i) {
      const auto at = static_cast<std::size_t>(i);
      builder.plan(tiles[at], blocks[at], bits[at]);
    }
  });
  BlockPlan plan;
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    const auto first_word = narrowed(static_cast<Index>(plan.bits.size()));
    tiles[i].first_block = narrowed(static_cast<Index>(plan.blocks.size()));
    tiles[i].blocks = static_cast<std::int32_t>(blocks[i].size());
    for (const KeyBlock& block : blocks[i])
      plan.blocks.push_back({block.first_key, block.bits < 0 ? -1 : block.bits + first_word});
    plan.bits.insert(plan.bits.end(), bits[i].begin(), bits[i].end());
  }
  std::stable_sort(tiles.begin(), tiles.end(), [](const Tile& a, const Tile& b) { return a.blocks > b.blocks; });
  plan.tiles = std::move(tiles);
  return plan;
}

}  // namespace reticle::cuda
