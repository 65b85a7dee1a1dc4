// How attention over a mask is computed: which keys a tile of rows meets together, and which each row gathers alone.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <reticle/attention/pattern.hpp>
#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle {

namespace cuda {
class DevicePlan;
}

/// Rows that are taken together at most: what a kernel keeps in the second-level cache, and a word of bits.
inline constexpr Index kTileRows = 64;

/// Tiles of so few rows go by the row kernel, vectors along the head size; larger ones by the tile kernel, vectors
/// along the rows.
inline constexpr Index kRowPathRows = 8;

/// Heads of one KV head at neighbouring queries, at most kTileRows rows. Row r is head first_head + r % heads at query
/// first_query + r / heads.
struct TileRows {
  Index batch = 0, first_head = 0, heads = 1, first_query = 0, queries = 1;

  Index count() const { return heads * queries; }
  RowId row(Index r) const { return {batch, first_head + r % heads, first_query + r / heads}; }
};

/// The keys of one tile.
struct RETICLE_API TilePlan {
  /// Keys [begin, end) that are computed for every row; those that a row does not attend to are dropped.
  struct Shared {
    std::int32_t begin = 0, end = 0;
    /// Where the first key stands in `attended`; -1 when every row attends to all.
    Index attended = -1;
  };

  std::vector<Shared> shared;         // ascending
  Array<std::int32_t> shared_list;    // in place of segments, for keys that stand alone: every row attends to all
  Array<std::uint64_t> attended;      // per key of a segment that has some: bit r, row r attends
  std::vector<float> inverse_p;       // (keys of all segments, rows); empty when every p is 1
  std::vector<Index> rest_ptr;        // rows + 1
  Array<std::int32_t> rest;           // keys that only their row computes, ascending in each
  std::vector<float> rest_inverse_p;  // aligned with rest; empty when every p is 1

  Index shared_keys() const;
  Index bytes() const;
  void clear();
};

/// Rows taken one by one share nothing; what they weigh comes out in the order of the mask's entries.
enum class Grouping : std::uint8_t { tiles, single_rows };

/// ShapeError unless the mask has the extents of the inputs.
void require_mask_fits(const AttentionInputs& inputs, const Mask& mask);

/// How the rows of a problem are taken together.
class RETICLE_API Tiling {
 public:
  Tiling(const AttentionInputs& inputs, const Mask& mask, Grouping grouping = Grouping::tiles);
  Index count() const { return batch_ * kv_heads_ * head_tiles_ * query_tiles_; }
  TileRows rows(Index tile) const;
  /// Tiles that one task takes: few enough for tiles of unequal cost to spread over threads, so many that a task's
  /// buffers are nothing.
  Index per_task() const { return std::max<Index>(1, count() / 256); }

 private:
  /// Entries over what tiles of so many queries compute together, from a few of the tiles.
  double filled(const Mask& mask, Index queries) const;

  Index batch_, kv_heads_, group_, queries_;
  Index heads_per_tile_ = 1, queries_per_tile_ = 1, head_tiles_ = 1, query_tiles_ = 1;
};

/// Plans tiles one after another, with buffers made once. What it is made from must outlive it.
class RETICLE_API TilePlanner {
 public:
  TilePlanner(const AttentionInputs& inputs, const Mask& mask);
  /// Valid until the next call.
  const TilePlan& plan(const TileRows& rows);
  /// The same, to keep.
  TilePlan take(const TileRows& rows);

 private:
  /// A row's entries, up to what causality leaves, in the form that the mask stores: columns, words of bits, or runs.
  struct RowEntries {
    std::span<const std::int32_t> columns;
    std::span<const float> p;  // of columns; empty: all 1
    std::span<const std::uint64_t> words;
    std::uint64_t last_word = 0;  // the one after them, as far as it is visible
    std::vector<Run> runs;
    Index count = 0;

    Index words_end() const { return static_cast<Index>(words.size()) * 64; }
    bool operator==(const RowEntries& other) const;
  };

  void read(RowId row, RowEntries& entries) const;
  void read_runs(RowId row, std::vector<Run>& runs) const;
  bool all_rows_equal(const TileRows& rows) const;
  const TilePlan& share_all_of(RowId row, Index rows);
  bool list_all_of(const RowEntries& row, Index rows);
  void find_shared(Index rows);
  double shared_entries(Index rows, Index width);
  void share_whole_words(Index rows, Index width);
  void make_segments(Index rows, Index width);
  void place(Index rows);
  template <class Count, class Write>
  void fill_rest(Index rows, Count&& count, Write&& write);
  void keep_all(const RowEntries& row, std::int32_t* to);
  void place_weighted(const RowEntries& row, Index r, Index rows);

  const AttentionInputs& inputs_;
  const Mask& mask_;
  std::array<RowEntries, kTileRows> entries_;
  // Bit k % 64 of word k / 64 is key origin_ + k: of each row, of the shared keys, and of those that all rows share.
  std::int32_t origin_ = 0;
  std::vector<std::uint64_t> words_, shared_, by_all_, own_;
  std::vector<std::int32_t> rank_;  // of each key among the shared ones; -1: not shared
  TilePlan plan_;
};

/// How attention over a mask is computed, for masks that serve many calls: a decode step's mask over layers, a fixed
/// pattern. A value that holds no data of the inputs.
class RETICLE_API AttentionPlan {
 public:
  /// Of `inputs`, only the extents, causality, alignment and where they lie are read. On a GPU the plan is made for
  /// calls that have an attention mask if these do; there it holds nothing of the pattern either.
  AttentionPlan(const AttentionInputs& inputs, const Pattern& pattern, const Context& context = {});

  Device device() const;
  // On the CPU.
  const Mask& mask() const { return mask_; }
  std::span<const TilePlan> tiles() const { return tiles_; }
  /// On a GPU; DeviceError elsewhere.
  const cuda::DevicePlan& on_gpu() const;
  /// "64 tiles; 97.0 % of 42000 entries shared by rows (tiles filled to 93.1 %), 3.0 % gathered; 12.1 kB", for
  /// messages.
  std::string describe() const;
  /// ShapeError unless the plan was made for such extents.
  void require_fits(const AttentionInputs& inputs) const;

 private:
  Mask mask_;
  Index kv_heads_;
  bool causal_;
  std::vector<TilePlan> tiles_;
  std::shared_ptr<const cuda::DevicePlan> on_gpu_;  // in place of all that
};

}  // namespace reticle
