#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <reticle/attention/nsa/compressed_attention.hpp>
#include <reticle/attention/nsa/score_kernel.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

BlockOverlap overlap_of(const NsaConfig& config) {
  const Index in_token = config.kernel_size / config.kernel_stride, in_block = config.block_size / config.kernel_stride;
  BlockOverlap overlap{in_block, in_token - 1,
                       std::vector<float>(static_cast<std::size_t>(in_token + in_block - 1), 0)};
  // How many strides a compressed token of `in_token` strides and a block of `in_block` share, by their distance.
  for (Index m = 0; m < in_token; ++m) {
    for (Index n = 0; n < in_block; ++n) overlap.overlap[static_cast<std::size_t>(m + n)] += 1;
  }
  return overlap;
}

/// Compressed tokens whose windows end at or before position t.
Index visible_at(Index t, Index compressed, const NsaConfig& config) {
  return std::min(compressed, config.compressed_length(t + 1));
}

/// One problem, computed tile by tile; a tile has some queries and some heads of one KV head.
class Scoring {
 public:
  Scoring(const TensorView& queries, const TensorView& keys, const TensorView& values, Index first_query, float scaling,
          const NsaConfig& config)
      : queries_(queries),
        keys_(keys),
        values_(values),
        first_query_(first_query),
        scaling_(scaling),
        config_(config),
        overlap_(overlap_of(config)) {
    config.validate();
    const auto reject = [&](const std::string& what) {
      throw ShapeError("compressed attention: " + what + " (queries " + queries.describe() + ", keys " +
                       keys.describe() + ", values " + values.describe() + ")");
    };
    for (const TensorView* view : {&queries, &keys, &values}) {
      require_on(*view, Device::Kind::cpu, "compressed attention: queries, keys and values");
      if (view->rank != 3 || view->dtype != DType::f32) reject("expected F32 tensors (tokens, heads, head_dim)");
      if (view->size(2) > 0 && view->stride(2) != 1) reject("expected tensors whose heads are contiguous");
    }
    if (keys.size(0) != values.size(0) || keys.size(1) != values.size(1))
      reject("keys and values need the same tokens and heads");
    if (keys.size(2) != queries.size(2)) reject("keys need the head_dim of the queries");
    if (keys.size(1) < 1 || queries.size(1) % keys.size(1) != 0)
      reject("the query heads must be a multiple of the KV heads");
    if (first_query < 0 || first_query > kMaxColumns - queries.size(0))
      reject("first_query is " + std::to_string(first_query) + "; expected a position, with the queries below 2^31");
  }

  Index count() const { return queries_.size(0); }
  Index heads() const { return queries_.size(1); }
  Index kv_heads() const { return keys_.size(1); }
  Index group() const { return heads() / kv_heads(); }
  Index value_dim() const { return values_.size(2); }
  /// Blocks up to the one that contains the last query.
  Index blocks() const { return count() == 0 ? 0 : (first_query_ + count() - 1) / config_.block_size + 1; }
  Index own_block(Index query) const { return (first_query_ + query) / config_.block_size; }

  /// Calls `use(kv_head, first, count, scores)` for a few neighbouring queries of a KV head at a time, in parallel,
  /// with their scores (count, blocks()); also writes attention to `output` and `lse`, if not null. `scored`: whether
  /// scores are wanted.
  void for_each_tile(bool scored, float* output, float* lse, const Context& context,
                     FunctionRef<void(Index, Index, Index, std::span<float>)> use) const {
    const Index heads_per_tile = std::min(group(), kTileRows);
    const Index queries_per_tile = std::clamp<Index>(kTileRows / heads_per_tile, 1, std::max<Index>(1, count()));
    const Index tiles = (count() + queries_per_tile - 1) / queries_per_tile;
    context.for_each_chunk(kv_heads() * tiles, tiles == 1 ? 1 : 4, [&](Index, Index begin, Index end) {
      Workspace work(*this, ScoreTile{.rows = heads_per_tile * queries_per_tile}.stride());
      for (Index tile = begin; tile < end; ++tile) {
        const Index kv_head = tile / tiles, first = tile % tiles * queries_per_tile;
        const Index taken = std::min(queries_per_tile, count() - first);
        work.scores.assign(scored ? static_cast<std::size_t>(taken * blocks()) : 0, 0.0f);
        for (Index head = 0; head < group(); head += heads_per_tile)
          attend(kv_head, kv_head * group() + head, std::min(heads_per_tile, group() - head), first, taken, scored,
                 output, lse, work);
        use(kv_head, first, taken, work.scores);
      }
    });
  }

 private:
  struct Workspace {
    Workspace(const Scoring& s, Index stride)
        : queries(static_cast<std::size_t>(s.queries_.size(2) * stride)),
          weights(static_cast<std::size_t>(std::max<Index>(1, s.keys_.size(0)) * stride)),  // also without keys
          output(static_cast<std::size_t>(s.value_dim() * stride)) {}
    Array<float> queries, weights, output;
    std::vector<float> scores;
  };

  void attend(Index kv_head, Index first_head, Index heads_taken, Index first, Index taken, bool scored, float* output,
              float* lse, Workspace& work) const {
    const Index d = queries_.size(2), dv = value_dim();
    ScoreTile tile;
    tile.rows = taken * heads_taken;
    tile.heads = heads_taken;
    tile.head_dim = d;
    tile.value_dim = output == nullptr ? 0 : dv;
    std::int32_t visible[kTileRows] = {};
    std::fill(work.queries.begin(), work.queries.end(), 0.0f);
    for (Index r = 0; r < tile.rows; ++r) {
      const Index query = first + r / heads_taken;
      const float* from = queries_.at<float>(query, first_head + r % heads_taken, 0);
      for (Index i = 0; i < d; ++i) work.queries[static_cast<std::size_t>(i * tile.stride() + r)] = scaling_ * from[i];
      visible[r] = static_cast<std::int32_t>(visible_at(first_query_ + query, keys_.size(0), config_));
    }
    tile.queries = work.queries.data();
    tile.keys = keys_.at<float>(0, kv_head, 0);
    tile.key_stride = keys_.stride(0);
    tile.values = values_.at<float>(0, kv_head, 0);
    tile.value_stride = values_.stride(0);
    tile.count = visible[tile.rows - 1];  // the last query sees the most keys
    tile.visible = visible;
    tile.weights = work.weights.data();
    tile.output = work.output.data();
    float tile_lse[kTileRows];
    tile.lse = tile_lse;
    attend_and_score(tile, overlap_, scored ? blocks() : 0, work.scores.data(), blocks());
    for (Index r = 0; output != nullptr && r < tile.rows; ++r) {
      const Index query = first + r / heads_taken, head = first_head + r % heads_taken;
      float* to = output + (query * heads() + head) * dv;
      bool finite = tile_lse[r] < kInfinity;
      for (Index j = 0; j < dv; ++j) {
        to[j] = work.output[static_cast<std::size_t>(j * tile.stride() + r)];
        finite &= std::abs(to[j]) < kInfinity;
      }
      lse[head * count() + query] = tile_lse[r];
      if (!finite)
        throw ValueError("compressed attention: the result of head " + std::to_string(head) + ", query " +
                         std::to_string(first_query_ + query) +
                         " is not finite: its queries, keys or values hold NaN or infinity, or its scores overflow");
    }
  }

  const TensorView &queries_, &keys_, &values_;
  Index first_query_;
  float scaling_;
  const NsaConfig& config_;
  BlockOverlap overlap_;
};

}  // namespace

CompressedAttention compressed_attention(const TensorView& queries, const TensorView& keys, const TensorView& values,
                                         Index first_query, float scaling, const NsaConfig& config,
                                         const Context& context) {
  const Scoring scoring(queries, keys, values, first_query, scaling, config);
  const Index n = scoring.count();
  CompressedAttention result{Tensor(DType::f32, {n, scoring.heads(), scoring.value_dim()}),
                             Tensor(DType::f32, {scoring.heads(), n}),
                             {scoring.kv_heads(), n, std::min(config.topk, scoring.blocks()), {}}};
  SelectedBlocks& blocks = result.blocks;
  blocks.indices.resize(static_cast<std::size_t>(blocks.kv_heads * n * blocks.width));
  scoring.for_each_tile(true, result.output.span<float>().data(), result.lse.span<float>().data(), context,
                        [&](Index kv_head, Index first, Index count, std::span<float> scores) {
                          std::vector<std::int32_t> selected;
                          for (Index i = 0; i < count; ++i) {
                            const Index last_block = scoring.own_block(first + i);
                            const std::span<float> row = scores.subspan(static_cast<std::size_t>(i * scoring.blocks()),
                                                                        static_cast<std::size_t>(last_block + 1));
                            std::fill_n(row.begin(), std::min(config.init_blocks, last_block + 1), kInfinity);
                            std::fill(row.end() - std::min(config.local_blocks, last_block + 1), row.end(), kInfinity);
                            selected.clear();
                            top_k(row, blocks.width, selected);
                            std::int32_t* to = blocks.indices.data() + (kv_head * n + first + i) * blocks.width;
                            std::fill(std::copy(selected.begin(), selected.end(), to), to + blocks.width, -1);
                          }
                        });
  return result;
}

Tensor block_scores(const TensorView& queries, const TensorView& keys, Index first_query, float scaling,
                    const NsaConfig& config, const Context& context) {
  const Scoring scoring(queries, keys, keys, first_query, scaling, config);
  Tensor all(DType::f32, {scoring.kv_heads(), scoring.count(), scoring.blocks()});
  scoring.for_each_tile(true, nullptr, nullptr, context,
                        [&](Index kv_head, Index first, Index, std::span<float> scores) {
                          std::copy(scores.begin(), scores.end(),
                                    all.span<float>().begin() + (kv_head * scoring.count() + first) * scoring.blocks());
                        });
  return all;
}

SelectedBlocks SelectedBlocks::from_lists(Index kv_heads, Index queries, Index width,
                                          std::span<const std::int32_t> lists) {
  if (checked_product({kv_heads, queries, width}, "selected blocks") != static_cast<Index>(lists.size()))
    throw ShapeError("selected blocks: " + std::to_string(lists.size()) + " numbers are not (" +
                     std::to_string(kv_heads) + ", " + std::to_string(queries) + ", " + std::to_string(width) + ")");
  SelectedBlocks blocks{kv_heads, queries, width, Array<std::int32_t>(lists.begin(), lists.end())};
  for (auto row = blocks.indices.begin(); row != blocks.indices.end(); row += width) {
    const auto valid = std::remove_if(row, row + width, [](std::int32_t block) { return block < 0; });
    std::sort(row, valid);
    std::fill(std::unique(row, valid), row + width, -1);
    if (width == 0) break;
  }
  return blocks;
}

Mask compressed_mask(Index heads, Index queries, Index compressed, Index first_query, const NsaConfig& config) {
  MaskShape shape{1, heads, queries, compressed};
  shape.shared_heads = true;
  return Mask::intervals(shape, [&](RowId row) {
    return Interval{0, static_cast<std::int32_t>(visible_at(first_query + row.query, compressed, config))};
  });
}

Mask selected_mask(const SelectedBlocks& blocks, Index kv_head, Index heads, Index keys, Index first_query,
                   Index block_size, const Context& context) {
  MaskShape shape{1, heads, blocks.queries, keys};
  shape.shared_heads = true;
  return Mask::from_runs(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        const Index end = std::min(keys, first_query + row.query + 1);
        Run run{0, 0};
        for (const std::int32_t block : blocks.of(kv_head, row.query)) {
          if (block < 0 || block * block_size >= end) continue;
          const auto begin = static_cast<std::int32_t>(block * block_size);
          const auto stop = static_cast<std::int32_t>(std::min(end, (block + 1) * block_size));
          if (begin == run.end && run.begin < run.end) {
            run.end = stop;
            continue;
          }
          if (run.begin < run.end) emit(run);
          run = {begin, stop};
        }
        if (run.begin < run.end) emit(run);
      },
      context);
}

Mask window_mask(Index heads, Index queries, Index keys, Index first_query, Index window_size, const Context& context) {
  MaskShape shape{1, heads, queries, keys};
  shape.shared_heads = true;
  return Mask::intervals(
      shape,
      [&](RowId row) {
        const Index position = first_query + row.query;
        return Interval{static_cast<std::int32_t>(std::max<Index>(0, position - window_size)),
                        static_cast<std::int32_t>(std::min(keys, position + 1))};
      },
      context);
}

}  // namespace reticle
