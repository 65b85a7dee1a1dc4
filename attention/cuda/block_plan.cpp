#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <map>
#include <numeric>
#include <string>

#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/core/base/checked.hpp>

namespace reticle::cuda {
namespace {

std::int32_t narrowed(Index number) {
  if (number > kMaxColumns) throw ShapeError("block plan: " + std::to_string(number) + " does not fit into 31 bits");
  return static_cast<std::int32_t>(number);
}

/// A tile's part of the plan; bits and weights are numbered within the tile.
struct TilePlan {
  std::vector<KeyBlock> blocks;
  std::vector<std::uint64_t> bits;
  std::vector<RowWeights> weights;
};

/// Plans one tile after another.
class TileBuilder {
 public:
  TileBuilder(const Mask& mask, bool causal, int words, bool heads_share)
      : mask_(mask), causal_(causal), words_per_block_(words), heads_share_(heads_share) {}

  /// Returns false when some block would be listed more than kMaxRepeats times.
  bool plan(const Tile& tile, TilePlan& plan) {
    blocks_.clear();
    const std::int32_t step = heads_share_ ? tile.heads : 1, count = tile.rows / step;
    for (std::int32_t i = 0; i < count; ++i) {
      const Index query = tile.query_of(i * step);
      runs_.clear();
      mask_.row({tile.batch, tile.head_of(i * step), query}, runs_);
      const Index keys = mask_.shape().keys;
      const Index visible = causal_ ? std::clamp<Index>(keys - mask_.shape().queries + query + 1, 0, keys) : keys;
      for (const Run& run : runs_) {
        const Index end = std::min<Index>(run.end, visible);
        const float added = run.p == 1 ? 0 : -std::log2(run.p);
        for (Index key = run.begin; key < end;) {
          const Index block = key / kKeyBlock, until = std::min(end, (block + 1) * kKeyBlock);
          if (!add(blocks_[block], i, ones(until - key) << (key % kKeyBlock), added)) return false;
          key = until;
        }
      }
    }
    std::int32_t partial = 0, weighted = 0;
    for (const auto& [block, repeats] : blocks_) {
      for (const Entries& entries : repeats) {
        const auto end = entries.words.begin() + count;
        const bool full =
            std::all_of(entries.words.begin(), end, [](std::uint64_t word) { return word == ~std::uint64_t{0}; });
        plan.blocks.push_back({static_cast<std::int32_t>(block * kKeyBlock), full ? -1 : partial++,
                               entries.weights.empty() ? -1 : weighted++});
        if (!full) plan.bits.insert(plan.bits.end(), entries.words.begin(), entries.words.begin() + words_per_block_);
        plan.weights.insert(plan.weights.end(), entries.weights.begin(), entries.weights.end());
      }
    }
    return true;
  }

 private:
  /// One listing of a block of keys: for each row, its keys with p = 1 and those with one other p.
  struct Entries {
    std::array<std::uint64_t, extent<kWideTileRows>> words{};
    std::vector<RowWeights> weights;
  };

  static std::uint64_t ones(Index count) { return count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1; }

  bool add(std::vector<Entries>& repeats, std::int32_t row, std::uint64_t keys, float added) const {
    const auto at = static_cast<std::size_t>(row);
    for (std::size_t i = 0; i < kMaxRepeats; ++i) {
      if (i == repeats.size()) repeats.emplace_back();
      Entries& entries = repeats[i];
      if (added != 0) {
        if (entries.weights.empty()) entries.weights.resize(static_cast<std::size_t>(words_per_block_));
        RowWeights& row_weights = entries.weights[at];
        if (row_weights.sampled != 0 && row_weights.added != added) continue;
        row_weights.sampled |= keys;
        row_weights.added = added;
      }
      entries.words[at] |= keys;
      return true;
    }
    return false;
  }

  const Mask& mask_;
  bool causal_;
  int words_per_block_;
  bool heads_share_;
  std::map<Index, std::vector<Entries>> blocks_;
  std::vector<Run> runs_;
};

}  // namespace

Index BlockPlan::bytes() const {
  return static_cast<Index>(tiles.size() * sizeof(Tile) + blocks.size() * sizeof(KeyBlock) +
                            bits.size() * sizeof(std::uint64_t) + weights.size() * sizeof(RowWeights));
}

std::optional<BlockPlan> plan_blocks(const Mask& mask, Index kv_heads, bool causal, int tile_rows,
                                     const Context& context) {
  const Tiling tiling = Tiling::of(mask.shape(), kv_heads, tile_rows);
  BlockPlan plan;
  plan.heads_share = mask.shape().shared_heads;
  plan.words = tiling.words(plan.heads_share);
  for (int i = 0; i < tiling.tiles(); ++i) plan.tiles.push_back(tiling.at(i));
  const Index count = tiling.tiles();
  std::vector<TilePlan> plans(plan.tiles.size());
  std::atomic<bool> fits = true;
  context.for_each_chunk(count, std::max<Index>(1, count / 256), [&](Index, Index begin, Index end) {
    TileBuilder builder(mask, causal, plan.words, plan.heads_share);
    for (Index i = begin; i < end && fits; ++i) {
      const auto at = static_cast<std::size_t>(i);
      if (!builder.plan(plan.tiles[at], plans[at])) fits = false;
    }
  });
  if (!fits) return std::nullopt;
  for (std::size_t i = 0; i < plan.tiles.size(); ++i) {
    const auto first_bits = narrowed(static_cast<Index>(plan.bits.size()) / plan.words),
               first_weights = narrowed(static_cast<Index>(plan.weights.size()) / plan.words);
    const TilePlan& tile_plan = plans[i];
    plan.tiles[i].first_block = narrowed(static_cast<Index>(plan.blocks.size()));
    plan.tiles[i].blocks = static_cast<std::int32_t>(tile_plan.blocks.size());
    for (const KeyBlock& block : tile_plan.blocks)
      plan.blocks.push_back({block.first_key, block.bits < 0 ? -1 : block.bits + first_bits,
                             block.weights < 0 ? -1 : block.weights + first_weights});
    plan.bits.insert(plan.bits.end(), tile_plan.bits.begin(), tile_plan.bits.end());
    plan.weights.insert(plan.weights.end(), tile_plan.weights.begin(), tile_plan.weights.end());
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
          TileOfKeys{static_cast<std::int32_t>(number), i});
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
