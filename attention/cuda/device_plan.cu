#include <limits>
#include <span>
#include <string>
#include <variant>

#include <reticle/attention/cuda/device_plan.cuh>
#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/mask.hpp>
#include <reticle/core/cuda/mask_block.hpp>
#include <reticle/core/cuda/reductions.cuh>

namespace reticle::cuda {
namespace {

template <int tile_rows, class MaskView>
struct PlanTile {
  static constexpr int kThreads = kPlanThreads, kBlocks = 6;
  using Shared = PlanShared<tile_rows>;
  MaskView mask;
  PlannedTiles to;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index tile) const {
    plan_tile<tile_rows>(block, shared, mask, to, static_cast<int>(tile));
  }
};

template <class MaskView>
struct ListRow {
  static constexpr int kThreads = kPlanThreads;
  using Shared = int[kWarp + 1];
  MaskView mask;
  int heads, sharing;
  ColumnLists to;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& scan, Index row) const {
    list_row(block, scan, mask, heads, sharing, to, static_cast<int>(row));
  }
};

/// Computes where the interval of each of `lists` rows (batch, head, query) begins, and how many keys it has.
struct ListIntervals {
  static constexpr int kThreads = kPlanThreads;
  BandMask band;
  Index lists;
  std::int32_t *begins, *counts;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Index number) const {
    block.each([&](int thread) {
      const Index i = number * kThreads + thread;
      if (i >= lists) return;
      const auto query = static_cast<int>(i % band.queries);
      begins[i] = band.begin(query);
      counts[i] = band.count(query);
    });
  }
};

/// Copies, for each logical row, the keys of its list that the query sees.
struct ListVisible {
  static constexpr int kThreads = kMaskThreads, kBlocks = 8;
  using Shared = CombineShared;
  ColumnLists lists;
  RowMap stored;
  int queries, keys;
  bool causal;
  ColumnLists to;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index row) const {
    ColumnList list = ColumnList::of(lists, stored.of(row));
    list.count = list.before(visible_keys(keys, queries, static_cast<int>(row % queries), causal));
    combine_lists<row_op::Add>(block, shared, list, ColumnList{nullptr, nullptr, 0}, to, row);
  }
};

/// Counts the tiles of each block of keys if `starts` is null; otherwise lists them.
struct ListTilesOfKeys {
  static constexpr int kThreads = kPlanThreads;
  using Shared = int[kWarp + 1];
  TileLists lists;
  Tiling tiling;
  int key_blocks;
  std::int32_t* counts;
  const Index* starts;
  TileOfKeys* to;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& scan, Index number) const {
    const auto item = static_cast<int>(number);
    tiles_of_keys(block, scan, lists, tiling, key_blocks, item, starts == nullptr ? counts + item : nullptr,
                  starts == nullptr ? nullptr : to + starts[item]);
  }
};

constexpr const char* kWhat = "planning attention";

MaskShape shape_of(const PlannedInputs& inputs) { return {inputs.batch, inputs.heads, inputs.queries, inputs.keys}; }

/// Strides of a mask's tensor (b, h, sq, n), 0 where a dimension of 1 is broadcast; ShapeError unless it fits.
Strides strides_of_mask(const TensorView& view, bool right_dtype, const char* dtype, const Index (&wanted)[4]) {
  require_on(view, Device::Kind::cuda, "mask");
  bool fits = view.rank == 4 && right_dtype && view.size(3) == wanted[3] && (view.stride(3) == 1 || wanted[3] < 2);
  for (int dim = 0; fits && dim < 3; ++dim) fits = view.size(dim) == wanted[dim] || view.size(dim) == 1;
  if (!fits)
    throw ShapeError("attention: mask " + view.describe() + "; expected " + dtype + " " +
                     MaskShape{wanted[0], wanted[1], wanted[2], wanted[3]}.describe() +
                     " with neighbours along the last dimension, and a dimension of 1 where a pattern is shared");
  const auto stride = [&](int dim) { return view.size(dim) == 1 ? 0 : view.stride(dim); };
  return {stride(0), stride(1), stride(2)};
}

int within(Index number, const char* name, Index most = std::numeric_limits<std::int32_t>::max() / 2, Index least = 1) {
  if (number < least || number > most)
    throw ValueError("attention: " + std::string(name) + " is " + std::to_string(number) + "; expected " +
                     std::to_string(least) + " to " + std::to_string(most));
  return static_cast<int>(number);
}

/// Calls f with the kernels' view of a pattern; a Mask is converted to bits first.
template <class F>
void with_view(const Pattern& pattern, const PlannedInputs& inputs, Stream stream, F&& f) {
  const int queries = within(inputs.queries, "queries"), keys = within(inputs.keys, "keys", kMaxColumns, 0);
  if (const auto* bytes = std::get_if<AttendedBytes>(&pattern)) {
    const int block_queries = within(bytes->block_queries, "block_queries"),
              block_keys = within(bytes->block_keys, "block_keys");
    const auto blocks = [](Index extent, Index block) { return (extent + block - 1) / block; };
    const TensorView& attended = bytes->attended;
    const Strides strides =
        strides_of_mask(attended, attended.dtype == DType::boolean || attended.dtype == DType::u8, "BOOL",
                        {inputs.batch, inputs.heads, blocks(queries, block_queries), blocks(keys, block_keys)});
    const auto* const data = static_cast<const std::uint8_t*>(attended.data);
    if (block_queries == 1 && block_keys == 1) return f(ByteMask{data, strides, queries, keys, inputs.causal});
    return f(BlockMask{data, strides, block_queries, block_keys, queries, keys, inputs.causal});
  }
  if (const auto* selected = std::get_if<NumberedKeyBlocks>(&pattern)) {
    const TensorView& numbers = selected->numbers;
    const Index count = numbers.rank == 4 ? numbers.size(3) : 0;
    const Strides strides = strides_of_mask(numbers, numbers.dtype == DType::i32, "I32",
                                            {inputs.batch, inputs.kv_heads, inputs.queries, count});
    return f(NumberedBlocks{
        static_cast<const std::int32_t*>(numbers.data), strides, static_cast<int>(inputs.heads / inputs.kv_heads),
        within(count, "blocks of a query", kMaxColumns, 0), within(selected->block_size, "block_size"), queries, keys});
  }
  if (const auto* band = std::get_if<Band>(&pattern)) {
    return f(BandMask{within(band->first_query, "first_query", kMaxColumns / 2, 0), within(band->kernel, "kernel"),
                      within(band->stride, "stride"), within(band->width, "width", kMaxColumns), queries, keys});
  }
  const StoredMask& mask = StoredMask::of(std::get<Mask>(pattern));
  shape_of(inputs).require_same_logical(mask.shape(), "attention");
  const auto bits = mask.as_bits(stream);
  const RowMap stored = RowMap::between(shape_of(inputs).unshared(), mask.shape());
  const Index width = BitDense::words_per_row(inputs.keys);
  return f(WordMask{bits->words(),
                    {stored.batch_stride * width, stored.head_stride * width, stored.query_stride * width},
                    queries,
                    keys,
                    inputs.causal});
}

/// `room` elements for every tile; DeviceError where 31 bits cannot count them.
std::size_t room_of(const Tiling& tiling, int room, const PlannedInputs& inputs) {
  const Index all = static_cast<Index>(tiling.tiles()) * room;
  if (all > std::numeric_limits<std::int32_t>::max())
    throw DeviceError("attention: a mask of " + shape_of(inputs).describe() +
                      " is too large to be planned on the GPU; plan it by parts, or from a Mask");
  return static_cast<std::size_t>(all);
}

}  // namespace

bool tiles_serve(const PlannedInputs& inputs, const Pattern& pattern) {
  const auto* const mask = std::get_if<Mask>(&pattern);
  return tiles_serve(inputs) && (mask == nullptr || !mask->weighted());
}

DeviceTiles::DeviceTiles(const BlockPlan& plan, const Tiling& tiling, Stream stream)
    : tiling_(tiling),
      count_(static_cast<int>(plan.tiles.size())),
      words_(plan.words),
      heads_share_(plan.heads_share),
      tiles_(Buffer::copy_of(std::span<const Tile>(plan.tiles), stream)),
      blocks_(Buffer::copy_of(std::span<const KeyBlock>(plan.blocks), stream)),
      bits_(Buffer::copy_of(std::span<const std::uint64_t>(plan.bits), stream)),
      weights_(Buffer::copy_of(std::span<const RowWeights>(plan.weights), stream)) {}

DeviceTiles::DeviceTiles(const Pattern& pattern, const PlannedInputs& inputs, int tile_rows, Stream stream)
    : tiling_(Tiling::of(shape_of(inputs), inputs.kv_heads, tile_rows)), count_(tiling_.tiles()) {
  with_view(pattern, inputs, stream, [&](const auto& view) {
    using View = std::remove_cvref_t<decltype(view)>;
    const PlanRoom room = view.room(tiling_);
    heads_share_ = view.heads_share();
    words_ = tiling_.words(heads_share_);
    tiles_ = Buffer(static_cast<std::size_t>(count_) * sizeof(Tile), stream);
    blocks_ = Buffer(room_of(tiling_, room.blocks, inputs) * sizeof(KeyBlock), stream);
    bits_ = Buffer(room_of(tiling_, room.partial, inputs) * static_cast<std::size_t>(words_) * sizeof(std::uint64_t),
                   stream);
    const PlannedTiles to{tiling_, room, tiles_.as<Tile>(), blocks_.as<KeyBlock>(), bits_.as<std::uint64_t>()};
    if (tile_rows == kWideTileRows) {
      launch(PlanTile<kWideTileRows, View>{view, to}, count_, stream, kWhat);
    } else {
      launch(PlanTile<kTileRowCount, View>{view, to}, count_, stream, kWhat);
    }
  });
}

DeviceTilesBothWays::DeviceTilesBothWays(const BlockPlan& plan, const MaskShape& shape, const PlannedInputs& inputs,
                                         Stream stream) {
  const BlockPlanByKeys transposed = by_keys(plan, shape, inputs.kv_heads);
  by_row = DeviceTiles(plan, Tiling::of(shape, inputs.kv_heads, kTileRowCount), stream);
  starts = Buffer::copy_of(std::span<const Index>(transposed.starts), stream);
  tiles_of_keys = Buffer::copy_of(std::span<const TileOfKeys>(transposed.tiles), stream);
}

DeviceTilesBothWays::DeviceTilesBothWays(const Pattern& pattern, const PlannedInputs& inputs, Stream stream)
    : by_row(pattern, inputs, kTileRowCount, stream) {
  const Index key_blocks = (inputs.keys + kKeyBlock - 1) / kKeyBlock;
  const int items = within(inputs.batch * inputs.kv_heads * key_blocks, "blocks of keys", kMaxColumns, 0);
  const Buffer counts(static_cast<std::size_t>(items) * sizeof(std::int32_t), stream);
  starts = Buffer::zeros(static_cast<std::size_t>(items + 1) * sizeof(Index), stream);
  tiles_of_keys = Buffer(by_row.room() * sizeof(TileOfKeys), stream);
  if (items == 0) return;
  const auto walk = [&](const Index* from) {
    launch(ListTilesOfKeys{by_row.lists(), by_row.tiling(), static_cast<int>(key_blocks), counts.as<std::int32_t>(),
                           from, tiles_of_keys.as<TileOfKeys>()},
           items, stream, "planning gradients");
  };
  walk(nullptr);
  running_sums(counts.as<std::int32_t>(), items, starts.as<Index>(), stream);
  walk(starts.as<Index>());
}

DeviceLists::DeviceLists(const Pattern& pattern, const PlannedInputs& inputs, Stream stream) {
  const Index group = inputs.heads / inputs.heads_with_lists();
  // Only heads that are stored as sharing a pattern share a list: comparing others would mean waiting for the device.
  const auto reserve = [&](bool heads_share, Index size, bool weighted) {
    sharing = heads_share ? heads_taken_together(group) : 1;
    list_size = size;
    const auto lists = static_cast<std::size_t>(inputs.rows() / sharing),
               entries = lists * static_cast<std::size_t>(size);
    indices = Buffer(entries * sizeof(std::int32_t), stream);
    if (weighted) p = Buffer(entries * sizeof(float), stream);
    counts = Buffer(lists * sizeof(std::int32_t), stream);
    return ColumnLists{indices.as<std::int32_t>(), p.as<float>(), counts.as<std::int32_t>(), size};
  };
  if (inputs.rows() == 0) return;
  if (const auto* const mask = std::get_if<Mask>(&pattern); mask != nullptr && mask->kind() == MaskKind::csr) {
    const StoredMask& listed = StoredMask::of(*mask);
    shape_of(inputs).require_same_logical(listed.shape(), "attention");
    const ColumnLists to = reserve(listed.shape().shared_heads, listed.list_size(), listed.weighted());
    RowMap stored = RowMap::between(shape_of(inputs).unshared(), listed.shape());
    stored.heads = inputs.heads / sharing;
    launch(ListVisible{listed.lists(), stored, static_cast<int>(inputs.queries), static_cast<int>(inputs.keys),
                       inputs.causal, to},
           inputs.rows() / sharing, stream, kWhat);
    return;
  }
  with_view(pattern, inputs, stream, [&](const auto& view) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(view)>, BandMask>) {
      sharing = heads_taken_together(group);
      list_size = view.most_keys();
      const Index lists = inputs.rows() / sharing, parts = (lists + kPlanThreads - 1) / kPlanThreads;
      begins = Buffer(static_cast<std::size_t>(lists) * sizeof(std::int32_t), stream);
      counts = Buffer(static_cast<std::size_t>(lists) * sizeof(std::int32_t), stream);
      launch(ListIntervals{view, lists, begins.as<std::int32_t>(), counts.as<std::int32_t>()}, parts, stream, kWhat);
    } else {
      const ColumnLists to = reserve(view.heads_share(), view.most_keys(), false);
      using View = std::remove_cvref_t<decltype(view)>;
      launch(ListRow<View>{view, static_cast<int>(inputs.heads / sharing), sharing, to}, inputs.rows() / sharing,
             stream, kWhat);
    }
  });
}

}  // namespace reticle::cuda
