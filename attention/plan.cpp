#include <algorithm>
#include <bit>
#include <cstdio>
#include <limits>
#include <numeric>
#include <utility>
#include <variant>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/plan.hpp>
#include <reticle/core/mask/row_kernels.hpp>

namespace reticle {
namespace {

/// Fewest keys that are worth sharing: below this, setting up shared keys costs more than it saves.
constexpr Index kMinShared = 32;

/// How many of a tile's rows must attend to a key for all rows to compute it. In a 64-row tile a shared key costs 1/7
/// to 1/8 of a gathered one per row: register-blocked multiply-adds and streaming loads against horizontal sums and
/// random loads. In the small tiles of a decode step two rows are enough. Measured by
/// `bench_attention --benchmark_filter=key` and `prefill_tokens`.
Index least_rows(Index rows) { return rows <= kRowPathRows ? 2 : (2 * rows + 14) / 15; }

/// Whether at least three quarters of a word's keys are held; such a word is shared whole: segments stay long, and the
/// few keys that no row or one row wants cost less than their bookkeeping. Small tiles of a decode step are bound by
/// reading keys, and streaming memory is faster than gathering from it: there a key is held if any row attends to it.
bool nearly_whole(std::uint64_t held, std::uint64_t keys) { return 4 * std::popcount(held) >= 3 * std::popcount(keys); }

/// Cost per entry by tile height, relative to 64 rows. Short tiles compute slower, but where neighbouring queries
/// select different keys, as in Native Sparse Attention, they compute fewer entries that no row attends to. Measured
/// over blocks of 64 keys that 8 and 16 heads share; with fewer heads per KV head there is only one choice.
struct TileCost {
  Index rows;
  double cost;
};
constexpr TileCost kTileCosts[] = {{kTileRows, 1}, {16, 1.15}, {8, 1.5}};

/// For small tiles: the fraction of a tile's entries that must be shared for sharing to save more than its setup costs.
constexpr double kMinSharedOfFew = 0.5;

}  // namespace

void require_mask_fits(const AttentionInputs& inputs, const Mask& mask) {
  if (!mask.shape().same_logical(inputs.shape()))
    throw ShapeError("attention: mask " + mask.shape().describe() + " does not fit queries " +
                     inputs.queries.describe() + " and keys " + inputs.keys.describe() + "; expected a mask of " +
                     inputs.shape().describe());
}

// --- TilePlan ---

Index TilePlan::shared_keys() const {
  auto keys = static_cast<Index>(shared_list.size());
  for (const Shared& segment : shared) keys += segment.end - segment.begin;
  return keys;
}

Index TilePlan::bytes() const {
  const auto bytes_of = [](const auto& list) { return list.size() * sizeof(list[0]); };
  return static_cast<Index>(bytes_of(shared) + bytes_of(shared_list) + bytes_of(attended) + bytes_of(inverse_p) +
                            bytes_of(rest_ptr) + bytes_of(rest) + bytes_of(rest_inverse_p));
}

void TilePlan::clear() {
  shared.clear();
  shared_list.clear();
  attended.clear();
  inverse_p.clear();
  rest_ptr.assign(1, 0);
  rest.clear();
  rest_inverse_p.clear();
}

// --- Tiling ---

Tiling::Tiling(const AttentionInputs& inputs, const Mask& mask, Grouping grouping)
    : batch_(inputs.batch()),
      kv_heads_(inputs.kv_heads()),
      group_(std::max<Index>(1, inputs.group())),
      queries_(inputs.queries_length()) {
  if (grouping == Grouping::tiles) {
    // Heads that attend alike share all keys, so tiles take few queries and many heads; otherwise neighbouring queries
    // share more.
    const bool heads_alike = mask.shape().shared_heads;
    const Index most = std::max<Index>(1, queries_);
    queries_per_tile_ = std::clamp<Index>(heads_alike ? kTileRows / group_ : kTileRows, 1, most);
    double least_cost = std::numeric_limits<double>::infinity();
    const bool has_choice = heads_alike && group_ >= kTileCosts[2].rows && queries_ > 1 && batch_ > 0;
    for (const auto& [rows, cost] : has_choice ? std::span(kTileCosts) : std::span<const TileCost>()) {
      const Index queries = std::clamp<Index>(rows / group_, 1, most);
      const double tile_cost = cost / filled(mask, queries);
      if (tile_cost < least_cost) queries_per_tile_ = queries;
      least_cost = std::min(least_cost, tile_cost);
      if (queries == 1) break;
    }
    heads_per_tile_ = std::clamp<Index>(kTileRows / queries_per_tile_, 1, group_);
  }
  head_tiles_ = (group_ + heads_per_tile_ - 1) / heads_per_tile_;
  query_tiles_ = (queries_ + queries_per_tile_ - 1) / queries_per_tile_;
}

double Tiling::filled(const Mask& mask, Index queries) const {
  constexpr Index kSamples = 8;
  const Index tiles = queries_ / queries, step = std::max<Index>(1, tiles / kSamples);
  double entries = 0, computed = 0;
  std::vector<Run> row, all, merged;
  const auto length = [](const std::vector<Run>& runs) {
    double sum = 0;
    for (const Run& run : runs) sum += run.end - run.begin;
    return sum;
  };
  for (Index tile = step / 2; tile < tiles; tile += step) {
    all.clear();
    for (Index query = tile * queries; query < (tile + 1) * queries; ++query) {
      row.clear();
      mask.row({0, 0, query}, row);
      entries += length(row);
      merged.clear();
      combine_rows<row_op::Max>(all, row, [&](const Run& run) { merged.push_back(run); });
      all.swap(merged);
    }
    computed += length(all) * static_cast<double>(queries);
  }
  return computed > 0 ? entries / computed : 1;
}

TileRows Tiling::rows(Index tile) const {
  TileRows rows;
  rows.first_query = tile % query_tiles_ * queries_per_tile_;
  rows.queries = std::min(queries_per_tile_, queries_ - rows.first_query);
  tile /= query_tiles_;
  const Index head = tile % head_tiles_ * heads_per_tile_;
  rows.heads = std::min(heads_per_tile_, group_ - head);
  tile /= head_tiles_;
  rows.first_head = tile % kv_heads_ * group_ + head;
  rows.batch = tile / kv_heads_;
  return rows;
}

// --- TilePlanner ---

TilePlanner::TilePlanner(const AttentionInputs& inputs, const Mask& mask) : inputs_(inputs), mask_(mask) {}

void TilePlanner::read_runs(RowId row, std::vector<Run>& runs) const {
  runs.clear();
  mask_.row(row, runs);
  const auto visible = static_cast<std::int32_t>(inputs_.visible_keys(row.query));
  while (!runs.empty() && runs.back().begin >= visible) runs.pop_back();
  if (!runs.empty()) runs.back().end = std::min(runs.back().end, visible);
}

void TilePlanner::read(RowId row, RowEntries& entries) const {
  entries.columns = {};
  entries.p = {};
  entries.words = {};
  entries.last_word = 0;
  entries.runs.clear();
  const auto visible = static_cast<std::int32_t>(inputs_.visible_keys(row.query));
  const Index stored = mask_.shape().stored_row(row);
  if (const auto* csr = std::get_if<Csr>(&mask_.representation())) {
    const std::int32_t* const begin = csr->indices.data() + csr->row_ptr[stored];
    const std::int32_t* end = csr->indices.data() + csr->row_ptr[stored + 1];
    if (begin != end && end[-1] >= visible) end = std::lower_bound(begin, end, visible);
    entries.columns = {begin, end};
    if (!csr->p.empty()) entries.p = {csr->p.data() + csr->row_ptr[stored], entries.columns.size()};
    entries.count = end - begin;
  } else if (const auto* bits = std::get_if<BitDense>(&mask_.representation())) {
    const std::uint64_t* const words = bits->words.data() + stored * BitDense::words_per_row(mask_.shape().keys);
    entries.words = {words, static_cast<std::size_t>(visible / 64)};
    if (visible % 64 != 0) entries.last_word = words[visible / 64] & ((std::uint64_t{1} << (visible % 64)) - 1);
    entries.count = count_bits(words, visible / 64) + std::popcount(entries.last_word);
  } else {
    read_runs(row, entries.runs);
    entries.count = 0;
    for (const Run& run : entries.runs) entries.count += run.end - run.begin;
  }
}

bool TilePlanner::RowEntries::operator==(const RowEntries& other) const {
  return count == other.count && std::ranges::equal(columns, other.columns) && std::ranges::equal(p, other.p) &&
         std::ranges::equal(words, other.words) && last_word == other.last_word && runs == other.runs;
}

const TilePlan& TilePlanner::plan(const TileRows& rows) {
  plan_.clear();
  shared_.clear();
  const Index count = rows.count();
  if (count > 1 && all_rows_equal(rows)) return share_all_of(rows.row(0), count);
  for (Index r = 0; r < count; ++r) read(rows.row(r), entries_[static_cast<std::size_t>(r)]);
  if (count > 1) {
    const auto same = [&](const RowEntries& other) { return other == entries_[0]; };
    if (std::all_of(entries_.begin() + 1, entries_.begin() + count, same)) return share_all_of(rows.row(0), count);
    find_shared(count);
  }
  place(count);
  return plan_;
}

TilePlan TilePlanner::take(const TileRows& rows) {
  plan(rows);
  return std::exchange(plan_, {});
}

/// Whether all rows have the same entries, known from the mask's shape without reading them.
bool TilePlanner::all_rows_equal(const TileRows& rows) const {
  const MaskShape& shape = mask_.shape();
  const RowId first = rows.row(0), last = rows.row(rows.count() - 1);
  const bool one_pattern = (shape.shared_heads || rows.heads == 1) && (shape.shared_queries || rows.queries == 1);
  return one_pattern && inputs_.visible_keys(first.query) == inputs_.visible_keys(last.query);
}

const TilePlan& TilePlanner::share_all_of(RowId row, Index rows) {
  RowEntries& entries = entries_[0];
  read(row, entries);
  plan_.rest_ptr.assign(static_cast<std::size_t>(rows) + 1, 0);
  if (list_all_of(entries, rows)) return plan_;
  read_runs(row, entries.runs);
  for (const Run& run : entries.runs) {
    if (plan_.shared.empty() || plan_.shared.back().end != run.begin) {
      plan_.shared.push_back({run.begin, run.end, -1});
    } else {
      plan_.shared.back().end = run.end;
    }
    if (mask_.weighted())
      plan_.inverse_p.resize(plan_.inverse_p.size() + static_cast<std::size_t>((run.end - run.begin) * rows),
                             1.0f / run.p);
  }
  return plan_;
}

/// Lists the shared keys one by one when most of them are isolated; false when they form long runs.
bool TilePlanner::list_all_of(const RowEntries& row, Index rows) {
  constexpr Index kLongRun = 8;
  Array<std::int32_t>& list = plan_.shared_list;
  if (!row.columns.empty()) {
    list.assign(row.columns.begin(), row.columns.end());
    for (const float p : row.p)
      plan_.inverse_p.resize(plan_.inverse_p.size() + static_cast<std::size_t>(rows), 1.0f / p);
    return true;
  }
  const auto whole = static_cast<Index>(row.words.size());
  own_.assign(row.words.begin(), row.words.end());
  own_.push_back(row.last_word);
  const Index runs = combine_words(SetOp::max, own_.data(), own_.data(), own_.data(), whole + 1).runs;
  if (runs * kLongRun <= row.count) return false;
  list.resize(static_cast<std::size_t>(row.count + kSlack));
  columns_of_bits(own_.data(), whole + 1, 0, list.data());
  list.resize(static_cast<std::size_t>(row.count));
  return true;
}

/// Writes every row as bits, and makes segments of the keys that enough rows attend to.
void TilePlanner::find_shared(Index rows) {
  Index lowest = mask_.shape().keys, highest = 0, entries = 0;
  for (Index r = 0; r < rows; ++r) {
    const RowEntries& row = entries_[static_cast<std::size_t>(r)];
    const auto meet = [&](Index begin, Index end) {
      lowest = std::min(lowest, begin);
      highest = std::max(highest, end);
    };
    entries += row.count;
    if (!row.columns.empty()) meet(row.columns.front(), row.columns.back() + 1);
    if (!row.runs.empty()) meet(row.runs.front().begin, row.runs.back().end);
    if (!row.words.empty() || row.last_word != 0) meet(0, row.words_end() + (row.last_word != 0 ? 64 : 0));
  }
  const Index least = least_rows(rows);
  if (entries < least * kMinShared) return;
  origin_ = static_cast<std::int32_t>(lowest / 64 * 64);
  const Index width = (highest - origin_ + 63) / 64;
  words_.assign(static_cast<std::size_t>(rows * width), 0);
  for (Index r = 0; r < rows; ++r) {
    const RowEntries& row = entries_[static_cast<std::size_t>(r)];
    std::uint64_t* words = words_.data() + r * width;
    std::copy(row.words.begin(), row.words.end(), words);
    if (row.last_word != 0) words[row.words.size()] = row.last_word;
    set_bits(row.columns.data(), static_cast<Index>(row.columns.size()), origin_, words);
    for (const Run& run : row.runs) set_bit_range(words, run.begin - origin_, run.end - origin_);
  }
  shared_.resize(static_cast<std::size_t>(width));
  by_all_.resize(static_cast<std::size_t>(width));
  const Index shared = columns_in_at_least(least, words_.data(), rows, width, shared_.data(), by_all_.data());
  const auto enough_of_few = [&] {
    const double needed = kMinSharedOfFew * static_cast<double>(entries);
    return static_cast<double>(shared * rows) >= needed && shared_entries(rows, width) >= needed;
  };
  if (shared < kMinShared || (rows <= kRowPathRows && !enough_of_few())) {
    shared_.clear();
    return;
  }
  share_whole_words(rows, width);
  make_segments(rows, width);
  if (mask_.weighted()) {
    plan_.inverse_p.assign(static_cast<std::size_t>(plan_.shared_keys() * rows), 1.0f);
    rank_.assign(static_cast<std::size_t>(width * 64), -1);
    std::int32_t rank = 0;
    for (const TilePlan::Shared& segment : plan_.shared) {
      for (std::int32_t key = segment.begin; key < segment.end; ++key)
        rank_[static_cast<std::size_t>(key - origin_)] = rank++;
    }
  }
}

double TilePlanner::shared_entries(Index rows, Index width) {
  Index count = 0;
  for (Index r = 0; r < rows; ++r) {
    own_.assign(words_.begin() + r * width, words_.begin() + (r + 1) * width);
    count += combine_words(SetOp::intersect, own_.data(), shared_.data(), own_.data(), width).entries;
  }
  return static_cast<double>(count);
}

void TilePlanner::share_whole_words(Index rows, Index width) {
  const bool few = rows <= kRowPathRows;
  for (Index w = 0; w < width; ++w) {
    const Index beyond = origin_ + (w + 1) * 64 - mask_.shape().keys;
    const std::uint64_t keys = ~std::uint64_t{0} >> std::max<Index>(0, beyond);
    std::uint64_t& shared = shared_[static_cast<std::size_t>(w)];
    if (!few && !nearly_whole(shared, keys)) continue;
    std::uint64_t any = 0;
    for (Index r = 0; r < rows; ++r) any |= words_[static_cast<std::size_t>(r * width + w)];
    if (!nearly_whole(any, keys)) continue;
    // If every row attends to all keys between the word's first and last attended key, only these are shared; otherwise
    // the whole word is, so that neighbouring words make one segment.
    const std::uint64_t attended =
        (~std::uint64_t{0} << std::countr_zero(any)) & (~std::uint64_t{0} >> std::countl_zero(any));
    shared = (attended & ~by_all_[static_cast<std::size_t>(w)]) == 0 ? attended : keys;
  }
}

void TilePlanner::make_segments(Index rows, Index width) {
  Array<std::uint64_t>& attended = plan_.attended;
  attended.reserve(static_cast<std::size_t>(count_bits(shared_.data(), width) + 64));
  for (Index w = 0; w < width; ++w) {
    const std::uint64_t shared = shared_[static_cast<std::size_t>(w)];
    if (shared == 0) continue;
    const bool full = (shared & ~by_all_[static_cast<std::size_t>(w)]) == 0;
    // Transposes the word's 64 keys at the end of `attended`, then moves the shared ones together.
    std::size_t end_of_attended = attended.size();
    std::uint64_t* keys = nullptr;
    if (!full) {
      attended.resize(end_of_attended + 64);
      keys = attended.data() + end_of_attended;
      transpose_bits(words_.data() + w, rows, width, keys);
    }
    const auto first = static_cast<std::int32_t>(origin_ + w * 64);
    for (int bit = 0; bit < 64 && shared >> bit != 0;) {
      bit += std::countr_zero(shared >> bit);
      const int length = std::countr_one(shared >> bit);
      const std::int32_t begin = first + bit, end = begin + length;
      if (!plan_.shared.empty() && plan_.shared.back().end == begin && (plan_.shared.back().attended == -1) == full) {
        plan_.shared.back().end = end;
      } else {
        plan_.shared.push_back({begin, end, full ? -1 : static_cast<Index>(end_of_attended)});
      }
      if (!full) {
        if (attended.data() + end_of_attended != keys + bit)
          std::copy(keys + bit, keys + bit + length, attended.data() + end_of_attended);
        end_of_attended += static_cast<std::size_t>(length);
      }
      bit += length;
    }
    attended.resize(end_of_attended);
  }
}

/// Puts the keys that a row does not share into its rest, and the p of its shared keys into the tile's inverse_p.
void TilePlanner::place(Index rows) {
  const auto entries = [&](Index r) -> const RowEntries& { return entries_[static_cast<std::size_t>(r)]; };
  if (shared_.empty()) {
    fill_rest(
        rows, [&](Index r) { return entries(r).count; }, [&](Index r, std::int32_t* to) { keep_all(entries(r), to); });
  } else if (mask_.weighted()) {
    for (Index r = 0; r < rows; ++r) {
      place_weighted(entries(r), r, rows);
      plan_.rest_ptr.push_back(static_cast<Index>(plan_.rest.size()));
    }
  } else {
    const auto width = static_cast<Index>(shared_.size());
    const auto words = [&](Index r) { return words_.data() + r * width; };
    fill_rest(
        rows,
        [&](Index r) { return combine_words(SetOp::subtract, words(r), shared_.data(), words(r), width).entries; },
        [&](Index r, std::int32_t* to) { columns_of_bits(words(r), width, origin_, to); });
  }
}

/// Calls write(r, to) for each row, where `to` has space for count(r) keys; write may overwrite kSlack keys beyond.
template <class Count, class Write>
void TilePlanner::fill_rest(Index rows, Count&& count, Write&& write) {
  for (Index r = 0; r < rows; ++r) plan_.rest_ptr.push_back(plan_.rest_ptr.back() + count(r));
  const auto total = static_cast<std::size_t>(plan_.rest_ptr.back());
  if (total == 0) return;
  plan_.rest.resize(total + kSlack);
  for (Index r = 0; r < rows; ++r) write(r, plan_.rest.data() + plan_.rest_ptr[static_cast<std::size_t>(r)]);
  plan_.rest.resize(total);
}

void TilePlanner::keep_all(const RowEntries& row, std::int32_t* to) {
  std::vector<float>& inverse_p = plan_.rest_inverse_p;
  std::copy(row.columns.begin(), row.columns.end(), to);
  for (const float p : row.p) inverse_p.push_back(1.0f / p);
  for (const Run& run : row.runs) {
    const auto length = static_cast<std::size_t>(run.end - run.begin);
    std::iota(to, to + length, run.begin);
    to += length;
    if (mask_.weighted()) inverse_p.resize(inverse_p.size() + length, 1.0f / run.p);
  }
  to += columns_of_bits(row.words.data(), static_cast<Index>(row.words.size()), 0, to);
  columns_of_bits(&row.last_word, 1, static_cast<std::int32_t>(row.words_end()), to);
}

void TilePlanner::place_weighted(const RowEntries& row, Index r, Index rows) {
  const auto place = [&](std::int32_t key, float inverse_p) {
    const std::int32_t rank = rank_[static_cast<std::size_t>(key - origin_)];
    if (rank < 0) {
      plan_.rest.push_back(key);
      plan_.rest_inverse_p.push_back(inverse_p);
    } else {
      plan_.inverse_p[static_cast<std::size_t>(Index{rank} * rows + r)] = inverse_p;
    }
  };
  for (std::size_t i = 0; i < row.columns.size(); ++i) place(row.columns[i], 1.0f / row.p[i]);
  for (const Run& run : row.runs) {
    const float inverse_p = 1.0f / run.p;
    for (std::int32_t key = run.begin; key < run.end; ++key) place(key, inverse_p);
  }
}

// --- AttentionPlan ---

AttentionPlan::AttentionPlan(const AttentionInputs& inputs, const Pattern& pattern, const Context& context)
    : kv_heads_(inputs.kv_heads()), causal_(inputs.causal) {
  if (inputs.queries.device.kind == Device::Kind::cuda) {
    on_gpu_ = std::make_shared<cuda::DevicePlan>(cuda::plan_for(inputs, pattern, context));
    return;
  }
  mask_ = mask_of(pattern, inputs, context);
  const Mask& mask = mask_;
  require_mask_fits(inputs, mask);
  const Tiling tiling(inputs, mask);
  tiles_.resize(static_cast<std::size_t>(tiling.count()));
  context.for_each_chunk(tiling.count(), tiling.per_task(), [&](Index, Index begin, Index end) {
    TilePlanner planner(inputs, mask);
    for (Index tile = begin; tile < end; ++tile)
      tiles_[static_cast<std::size_t>(tile)] = planner.take(tiling.rows(tile));
  });
}

Device AttentionPlan::device() const {
  return on_gpu_ == nullptr ? Device() : Device{Device::Kind::cuda, on_gpu().device()};
}

const cuda::DevicePlan& AttentionPlan::on_gpu() const {
  if (on_gpu_ == nullptr) throw DeviceError("attention: the plan is for tensors on the CPU; these lie on a GPU");
  return *on_gpu_;
}

void AttentionPlan::require_fits(const AttentionInputs& inputs) const {
  if (on_gpu_ != nullptr)
    throw DeviceError("attention: the plan is for tensors on " + device().describe() + "; these lie on " +
                      inputs.queries.device.describe());
  require_mask_fits(inputs, mask_);
  if (inputs.kv_heads() != kv_heads_ || inputs.causal != causal_)
    throw ShapeError("attention: the plan is for " + std::to_string(kv_heads_) + " KV heads, causal " +
                     (causal_ ? "true" : "false") + "; the inputs have " + std::to_string(inputs.kv_heads()) +
                     ", causal " + (inputs.causal ? "true" : "false"));
}

std::string AttentionPlan::describe() const {
  if (on_gpu_ != nullptr)
    return std::string(on_gpu_->uses_tiles() ? "tiles" : "lists") + " on " + device().describe() + "; " +
           std::to_string(on_gpu_->bytes()) + " bytes";
  Index computed = 0, attended = 0, gathered = 0, bytes = 0;
  for (const TilePlan& tile : tiles_) {
    const Index rows = static_cast<Index>(tile.rest_ptr.size()) - 1;
    computed += rows * tile.shared_keys();
    attended += rows * (tile.shared_keys() - static_cast<Index>(tile.attended.size()));
    for (const std::uint64_t bits : tile.attended) attended += std::popcount(bits);
    gathered += static_cast<Index>(tile.rest.size());
    bytes += tile.bytes();
  }
  const Index entries = attended + gathered;
  const auto percent = [](Index part, Index whole) {
    return whole == 0 ? 0.0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
  };
  char text[200];
  std::snprintf(
      text, sizeof text,
      "%zu tiles; %.1f %% of %lld entries shared by rows (tiles filled to %.1f %%), %.1f %% gathered; %.1f kB",
      tiles_.size(), percent(attended, entries), static_cast<long long>(entries), percent(attended, computed),
      percent(gathered, entries), static_cast<double>(bytes) / 1e3);
  return text;
}

}  // namespace reticle
