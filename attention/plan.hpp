// The plan of attention over a mask: which keys a tile of rows computes together, and which each row gathers alone.
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

/// Maximum rows of a tile: their state fits into the second-level cache, and a bit for each into a word.
inline constexpr Index kTileRows = 64;

/// Tiles of up to this many rows use the row kernel, with vectors along the head size; larger ones use the tile kernel,
/// with vectors along the rows.
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
  /// Keys [begin, end) that are computed for every row; the scores of a row that does not attend to them are dropped.
  struct Shared {
    std::int32_t begin = 0, end = 0;
    /// Index of the first key's word in `attended`; -1 when every row attends to all keys.
    Index attended = -1;
  };

  std::vector<Shared> shared;         // ascending
  Array<std::int32_t> shared_list;    // used instead of `shared` if common keys are isolated; all rows attend to all
  Array<std::uint64_t> attended;      // per key of a segment with attended >= 0: bit r, row r attends
  std::vector<float> inverse_p;       // (keys of all segments, rows); empty when every p is 1
  std::vector<Index> rest_ptr;        // rows + 1
  Array<std::int32_t> rest;           // keys that each row gathers alone, ascending within each row
  std::vector<float> rest_inverse_p;  // aligned with rest; empty when every p is 1

  Index shared_keys() const;
  Index bytes() const;
  void clear();
};

/// How rows are grouped. Single rows share nothing, and their weights come out in the order of the mask's entries.
enum class Grouping : std::uint8_t { tiles, single_rows };

/// ShapeError unless the mask has the extents of the inputs.
void require_mask_fits(const AttentionInputs& inputs, const Mask& mask);

/// How query rows are grouped into tiles.
class RETICLE_API Tiling {
 public:
  Tiling(const AttentionInputs& inputs, const Mask& mask, Grouping grouping = Grouping::tiles);
  Index count() const { return batch_ * kv_heads_ * head_tiles_ * query_tiles_; }
  TileRows rows(Index tile) const;
  /// Tiles per task: few enough to balance uneven tiles over threads, enough to amortise a task's buffers.
  Index per_task() const { return std::max<Index>(1, count() / 256); }

 private:
  /// Entries of the mask over the entries that tiles of this many queries would compute, estimated from a few tiles.
  double filled(const Mask& mask, Index queries) const;

  Index batch_, kv_heads_, group_, queries_;
  Index heads_per_tile_ = 1, queries_per_tile_ = 1, head_tiles_ = 1, query_tiles_ = 1;
};

/// Plans tiles one after another, with buffers that are allocated once. The inputs and the mask must outlive it.
class RETICLE_API TilePlanner {
 public:
  TilePlanner(const AttentionInputs& inputs, const Mask& mask);
  /// Valid until the next call.
  const TilePlan& plan(const TileRows& rows);
  /// The same, as a value to keep.
  TilePlan take(const TileRows& rows);

 private:
  /// A row's entries, as far as causality allows, in the form that the mask stores: columns, words of bits, or runs.
  struct RowEntries {
    std::span<const std::int32_t> columns;
    std::span<const float> p;  // of the columns; empty: all 1
    std::span<const std::uint64_t> words;
    std::uint64_t last_word = 0;  // the word after them, cut off at the last visible key
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
  // Bit k % 64 of word k / 64 stands for key origin_ + k: for each row, for the shared keys, and for those that all
  // rows share.
  std::int32_t origin_ = 0;
  std::vector<std::uint64_t> words_, shared_, by_all_, own_;
  std::vector<std::int32_t> rank_;  // index of each key among the shared ones; -1: not shared
  TilePlan plan_;
};

/// A plan that can be kept for masks that are used in many calls: a decode step's mask over the layers, or a fixed
/// pattern. A value that holds no data of the inputs.
class RETICLE_API AttentionPlan {
 public:
  /// Reads only the extents, causality, alignment and device of `inputs`. On a GPU, a plan made from inputs with an
  /// attention mask is for calls that have one; there the plan holds no data of the pattern either.
  AttentionPlan(const AttentionInputs& inputs, const Pattern& pattern, const Context& context = {});

  Device device() const;
  // CPU only.
  const Mask& mask() const { return mask_; }
  std::span<const TilePlan> tiles() const { return tiles_; }
  /// GPU only; DeviceError elsewhere.
  const cuda::DevicePlan& on_gpu() const;
  /// A description for messages: "64 tiles; 97.0 % of 42000 entries shared by rows (tiles filled to 93.1 %), 3.0 %
  /// gathered; 12.1 kB".
  std::string describe() const;
  /// ShapeError unless the plan was made for these extents.
  void require_fits(const AttentionInputs& inputs) const;

 private:
  Mask mask_;
  Index kv_heads_;
  bool causal_;
  std::vector<TilePlan> tiles_;
  std::shared_ptr<const cuda::DevicePlan> on_gpu_;  // used on a GPU instead of mask_ and tiles_
};

}  // namespace reticle
