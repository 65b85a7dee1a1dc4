#include <algorithm>
#include <array>
#include <map>
#include <numeric>

#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/core/base/checked.hpp>

namespace reticle::cuda {
namespace {

std::int32_t narrowed(Index number) {
  if (number > kMaxColumns) throw ShapeError("block plan: " + std::to_string(number) + " does not fit into 31 bits");
  return static_cast<std::int32_t>(number);
}

/// The blocks of one tile, while it is planned.
class TileBuilder {
 public:
  TileBuilder(const Mask& mask, bool causal, int words, bool heads_share)
      : mask_(mask), causal_(causal), words_per_block_(words), heads_share_(heads_share) {}

  /// Appends them; bits are numbered within the tile.
  void plan(const Tile& tile, std::vector<KeyBlock>& blocks, std::vector<std::uint64_t>& bits) {
    words_.clear();
    const std::int32_t step = heads_share_ ? tile.heads : 1, count = tile.rows / step;
    for (std::int32_t i = 0; i < count; ++i) {
      const Index query = tile.query_of(i * step);
      runs_.clear();
      mask_.row({tile.batch, tile.head_of(i * step), query}, runs_);
      const Index keys = mask_.shape().keys;
      const Index visible = causal_ ? std::clamp<Index>(keys - mask_.shape().queries + query + 1, 0, keys) : keys;
      for (const Run& run : runs_) {
        const Index end = std::min<Index>(run.end, visible);
        for (Index key = run.begin; key < end;) {
          const Index block = key / kKeyBlock, until = std::min(end, (block + 1) * kKeyBlock);
          words_[block][static_cast<std::size_t>(i)] |= ones(until - key) << (key % kKeyBlock);
          key = until;
        }
      }
    }
    std::int32_t partial = 0;
    for (const auto& [block, words] : words_) {
      const bool full = std::all_of(words.begin(), words.begin() + count,
                                    [](std::uint64_t word) { return word == ~std::uint64_t{0}; });
      blocks.push_back({static_cast<std::int32_t>(block * kKeyBlock), full ? -1 : partial++});
      if (!full) bits.insert(bits.end(), words.begin(), words.begin() + words_per_block_);
    }
  }

 private:
  static std::uint64_t ones(Index count) { return count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1; }

  const Mask& mask_;
  bool causal_;
  int words_per_block_;
  bool heads_share_;
  std::map<Index, std::array<std::uint64_t, extent<kWideTileRows>>> words_;
  std::vector<Run> runs_;
};

}  // namespace

Index BlockPlan::bytes() const {
  return static_cast<Index>(tiles.size() * sizeof(Tile) + blocks.size() * sizeof(KeyBlock) +
                            bits.size() * sizeof(std::uint64_t));
}

BlockPlan plan_blocks(const Mask& mask, Index kv_heads, bool causal, int tile_rows, const Context& context) {
  if (mask.weighted()) throw ValueError("block plan: the mask is weighted; needed is p of 0 or 1");
  const Tiling tiling = Tiling::of(mask.shape(), kv_heads, tile_rows);
  BlockPlan plan;
  plan.heads_share = mask.shape().shared_heads;
  plan.words = tiling.words(plan.heads_share);
  for (int i = 0; i < tiling.tiles(); ++i) plan.tiles.push_back(tiling.at(i));
  const Index count = tiling.tiles();
  std::vector<std::vector<KeyBlock>> blocks(plan.tiles.size());
  std::vector<std::vector<std::uint64_t>> bits(plan.tiles.size());
  context.for_each_chunk(count, std::max<Index>(1, count / 256), [&](Index, Index begin, Index end) {
    TileBuilder builder(mask, causal, plan.words, plan.heads_share);
    for (Index i = begin; i < end; ++i) {
      const auto at = static_cast<std::size_t>(i);
      builder.plan(plan.tiles[at], blocks[at], bits[at]);
    }
  });
  for (std::size_t i = 0; i < plan.tiles.size(); ++i) {
    const auto first_bits = narrowed(static_cast<Index>(plan.bits.size()) / plan.words);
    plan.tiles[i].first_block = narrowed(static_cast<Index>(plan.blocks.size()));
    plan.tiles[i].blocks = static_cast<std::int32_t>(blocks[i].size());
    for (const KeyBlock& block : blocks[i])
      plan.blocks.push_back({block.first_key, block.bits < 0 ? -1 : block.bits + first_bits});
    plan.bits.insert(plan.bits.end(), bits[i].begin(), bits[i].end());
  }
  std::stable_sort(plan.tiles.begin(), plan.tiles.end(),
                   [](const Tile& a, const Tile& b) { return a.blocks > b.blocks; });
  return plan;
}

BlockPlanByKeys by_keys(const BlockPlan& plan, const MaskShape& shape, Index kv_heads) {
  const Index key_blocks = (shape.keys + kKeyBlock - 1) / kKeyBlock, group = shape.heads / kv_heads;
  const auto each = [&](auto&& f) {
    for (std::size_t number = 0; number < plan.tiles.size(); ++number) {
      const Tile& tile = plan.tiles[number];
      const Index first = (tile.batch * kv_heads + tile.first_head / group) * key_blocks;
      for (std::int32_t i = tile.first_block; i < tile.first_block + tile.blocks; ++i) {
        const KeyBlock& keys = plan.blocks[static_cast<std::size_t>(i)];
        f(static_cast<std::size_t>(first + keys.first_key / kKeyBlock),
          TileOfKeys{static_cast<std::int32_t>(number), keys.bits});
      }
    }
  };
  BlockPlanByKeys plans;
  plans.starts.resize(static_cast<std::size_t>(shape.batch * kv_heads * key_blocks) + 1);
  each([&](std::size_t item, const TileOfKeys&) { ++plans.starts[item + 1]; });
  std::partial_sum(plans.starts.begin(), plans.starts.end(), plans.starts.begin());
  plans.tiles.resize(plan.blocks.size());
  std::vector<Index> next = plans.starts;
  each([&](std::size_t item, const TileOfKeys& tile) { plans.tiles[static_cast<std::size_t>(next[item]++)] = tile; });
  return plans;
}

}  // namespace reticle::cuda
