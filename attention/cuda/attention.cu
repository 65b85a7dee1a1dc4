#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/device_plan.cuh>
#include <reticle/attention/cuda/list_plan.hpp>
#include <reticle/attention/cuda/wide_tile_block.hpp>
#include <reticle/core/cuda/launch.cuh>

namespace reticle::cuda {
namespace {

template <class T, int head_dim, int sharing, bool biased>
struct DecodePart {
  static constexpr int kThreads = kDecodeThreads, kBlocks = sharing > 1 ? 3 : sizeof(T) == 2 && !biased ? 6 : 4;
  using Shared = DecodeShared<head_dim>;
  DecodeProblem problem;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index number) const {
    const auto i = static_cast<int>(number);
    decode_part<T, head_dim, sharing, biased>(block, shared, problem, i / problem.parts, i % problem.parts);
  }
};

template <class T, int head_dim, bool biased>
struct AttendTile {
  static constexpr int kThreads = kTileThreads;
  using Shared = TileShared<T, head_dim>;
  static_assert(sizeof(Shared) <= kMaxSharedMemory);
  TileProblem problem;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index tile) const {
    attend_tile<T, head_dim, biased>(block, shared, problem, problem.plan.tiles[tile]);
  }
};

template <class T, int head_dim, bool biased>
struct AttendWideTile {
  static constexpr int kThreads = kWideTileThreads, kBlocks = 1;
  using Shared = WideTileShared<T, head_dim>;
  TileProblem problem;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index tile) const {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // elsewhere it is never launched
    attend_wide_tile<T, head_dim, biased>(block, shared, problem, problem.plan.tiles[tile]);
#endif
  }
};

template <class T, int head_dim>
void attend_lists(const DecodeProblem& problem, Stream stream) {
  constexpr const char* kWhat = "attention over lists";
  const Index blocks = problem.lists() * problem.parts;
  if (problem.bias.data != nullptr) return launch(DecodePart<T, head_dim, 1, true>{problem}, blocks, stream, kWhat);
  dispatch_together(problem.sharing, [&]<int sharing>() {
    launch(DecodePart<T, head_dim, sharing, false>{problem}, blocks, stream, kWhat);
  });
}

template <class T, int head_dim, bool biased>
void attend_tiles(const TileProblem& problem, const DeviceTiles& tiles, Stream stream) {
  constexpr const char* kWhat = "attention over tiles";
  if (tiles.rows() == kWideTileRows) {
    launch(AttendWideTile<T, head_dim, biased>{problem}, tiles.count(), stream, kWhat);
  } else {
    launch(AttendTile<T, head_dim, biased>{problem}, tiles.count(), stream, kWhat);
  }
}

#if defined(RETICLE_WGMMA)
constexpr bool kWgmmaBuilt = true;
#else
constexpr bool kWgmmaBuilt = false;
#endif

/// Rows of the tiles of such inputs on the current device: where Hopper's instructions are, those of 128, unless there
/// are too few rows to fill the second half.
int tile_rows_for(const PlannedInputs& inputs) {
  const bool fill = inputs.queries * (inputs.heads / inputs.kv_heads) > kTileRowCount;
  return kWgmmaBuilt && fill && compute_capability() == 90 ? kWideTileRows : kTileRowCount;
}

/// Blocks to a list that keep the device busy, of no fewer than 64 entries each.
int parts_for(Index lists, Index entries_of_list, int multiprocessors) {
  if (lists == 0) return 1;
  const Index wanted = (Index{8} * multiprocessors + lists - 1) / lists;
  return static_cast<int>(std::clamp<Index>(wanted, 1, std::max<Index>(1, entries_of_list / 64)));
}

}  // namespace

struct AttentionPlan::State {
  PlannedInputs made_for;
  float soft_cap;
  Buffer sink_logits;
  DeviceTiles tiles;
  // Or lists, of the host or of the device, or intervals.
  Buffer row_ptr;
  DeviceLists lists;
  int parts = 1;
  Buffer workspace, arrived;

  /// Without the mask.
  static std::shared_ptr<State> started(const AttentionInputs& inputs, const AttentionOptions& options, Stream stream) {
    auto state = std::make_shared<State>(State{PlannedInputs::of(inputs, options), options.soft_cap.value_or(0)});
    state->sink_logits = Buffer::copy_of(options.sink_logits, stream);
    return state;
  }

  /// Splits lists of so many entries over blocks.
  void split(Index entries_of_list, Stream stream) {
    const Index rows = made_for.rows();
    parts = parts_for(rows / lists.sharing, entries_of_list, multiprocessors());
    if (parts == 1) return;
    workspace = Buffer(static_cast<std::size_t>(rows * parts * (made_for.head_dim + 2)) * sizeof(float), stream);
    arrived = Buffer::zeros(static_cast<std::size_t>(rows) * sizeof(int), stream);
  }
};

AttentionPlan::AttentionPlan(const AttentionInputs& inputs, const Mask& mask, Stream stream,
                             const AttentionOptions& options, const Context& context) {
  auto state = State::started(inputs, options, stream);
  require_mask_fits(inputs, mask);
  const PlannedInputs& own = state->made_for;
  std::optional<BlockPlan> plan;
  if (tiles_serve(own)) plan = plan_blocks(mask, own.kv_heads, own.causal, tile_rows_for(own), context);
  if (plan) {
    state->tiles = DeviceTiles(*plan, Tiling::of(mask.shape(), own.kv_heads, tile_rows_for(own)), stream);
  } else if (mask.kind() == MaskKind::full && (!own.causal || own.queries <= own.keys)) {
    // Dense attention, without a list: a query sees what is not behind it, or everything.
    state->lists = DeviceLists(Band{.first_query = own.causal ? own.keys - own.queries : own.keys}, own, stream);
    state->split(own.keys, stream);
  } else {
    const auto [sharing, lists] = plan_lists(mask, own.heads_with_lists(), own.causal, context);
    state->lists.sharing = sharing;
    state->row_ptr = Buffer::copy_of(lists.row_ptr.span(), stream);
    state->lists.indices = Buffer::copy_of(lists.indices.span(), stream);
    state->lists.p = Buffer::copy_of(lists.p.span(), stream);
    state->split(lists.indices.size() / std::max<Index>(1, own.rows() / sharing), stream);
  }
  state_ = std::move(state);
}

AttentionPlan::AttentionPlan(const AttentionInputs& inputs, const DevicePattern& pattern, Stream stream,
                             const AttentionOptions& options) {
  auto state = State::started(inputs, options, stream);
  const PlannedInputs& own = state->made_for;
  if (tiles_serve(own, pattern)) {
    state->tiles = DeviceTiles(pattern, own, tile_rows_for(own), stream);
  } else {
    state->lists = DeviceLists(pattern, own, stream);
    state->split(state->lists.list_size, stream);
  }
  state_ = std::move(state);
}

void AttentionPlan::run(const AttentionInputs& inputs, void* output, float* lse, Stream stream) const {
  const State& own = *state_;
  const PlannedInputs& made_for = own.made_for;
  made_for.require(inputs);
  if (made_for.rows() == 0) return;
  if (uses_tiles()) {
    auto problem = problem_of<TileProblem>(inputs, output, lse, own.soft_cap, own.sink_logits.as<float>());
    problem.key_count = static_cast<int>(made_for.keys);
    problem.plan = own.tiles.lists();
    problem.bias = BiasView::of(inputs.attention_mask);
    const auto launch_of = [&]<class T, bool biased>() {
      made_for.head_dim == 64 ? attend_tiles<T, 64, biased>(problem, own.tiles, stream)
                              : attend_tiles<T, 128, biased>(problem, own.tiles, stream);
    };
    const auto launch_by_bias = [&]<class T>() {
      made_for.biased ? launch_of.template operator()<T, true>() : launch_of.template operator()<T, false>();
    };
    made_for.dtype == DType::f16 ? launch_by_bias.template operator()<Half>()
                                 : launch_by_bias.template operator()<BFloat16>();
    return;
  }
  auto problem = problem_of<DecodeProblem>(inputs, output, lse, own.soft_cap, own.sink_logits.as<float>());
  problem.batch = static_cast<int>(made_for.batch);
  problem.sharing = own.lists.sharing;
  problem.bias = BiasView::of(inputs.attention_mask);
  problem.row_ptr = own.row_ptr.as<Index>();
  problem.counts = own.lists.counts.as<std::int32_t>();
  problem.begins = own.lists.begins.as<std::int32_t>();
  problem.list_size = own.lists.list_size;
  problem.indices = own.lists.indices.as<std::int32_t>();
  problem.p = own.lists.p.as<float>();
  problem.parts = own.parts;
  problem.workspace = own.workspace.as<float>();
  problem.arrived = own.arrived.as<int>();
  dispatch_head_dim(made_for.dtype, made_for.head_dim,
                    [&]<class T, int head_dim>() { attend_lists<T, head_dim>(problem, stream); });
}

bool AttentionPlan::uses_tiles() const { return state_->tiles.count() > 0; }

Index AttentionPlan::bytes() const {
  std::size_t bytes = state_->tiles.bytes();
  for (const Buffer* buffer : {&state_->sink_logits, &state_->row_ptr, &state_->lists.counts, &state_->lists.begins,
                               &state_->lists.indices, &state_->lists.p, &state_->workspace, &state_->arrived})
    bytes += buffer->bytes();
  return static_cast<Index>(bytes);
}

struct KeyListAttention::State {
  Index rows;
  int multiprocessors;
  Buffer workspace, arrived;
  mutable std::map<std::vector<float>, Buffer> sink_logits{};  // of every layer that has come by
};

KeyListAttention::KeyListAttention(Index rows, Stream stream) {
  if (rows < 1) throw ValueError("attention over lists: for " + std::to_string(rows) + " rows; expected at least 1");
  auto state = std::make_shared<State>(State{rows, cuda::multiprocessors()});
  // Fewer rows are split further: rows * parts is at most this, whatever the rows.
  const auto states = static_cast<std::size_t>(8 * Index{state->multiprocessors} + rows);
  state->workspace = Buffer(states * (256 + 2) * sizeof(float), stream);
  state->arrived = Buffer::zeros(static_cast<std::size_t>(rows) * sizeof(int), stream);
  state_ = std::move(state);
}

void KeyListAttention::run(const AttentionInputs& inputs, const KeyLists& lists, void* output, float* lse,
                           Stream stream, const AttentionOptions& options) const {
  validate_on_current_gpu(inputs);
  options.validate(inputs);
  PlannedInputs::require_readable(inputs);
  const State& own = *state_;
  const Index rows = inputs.batch() * inputs.heads() * inputs.queries_length();
  if (rows > own.rows || inputs.values.size(3) != inputs.head_dim())
    throw ShapeError("attention over lists: queries " + inputs.queries.describe() + " and values " +
                     inputs.values.describe() + "; expected at most " + std::to_string(own.rows) +
                     " rows, and values of the queries' head_dim");
  if (options.weights) throw DeviceError("attention over lists: weights are not supported on a GPU");
  if (rows == 0) return;
  const float* sink_logits = nullptr;
  if (!options.sink_logits.empty()) {
    const std::vector<float> logits(options.sink_logits.begin(), options.sink_logits.end());
    auto kept = own.sink_logits.find(logits);
    if (kept == own.sink_logits.end())
      kept = own.sink_logits.emplace(logits, Buffer::copy_of(options.sink_logits, stream)).first;
    sink_logits = kept->second.as<float>();
  }
  auto problem = problem_of<DecodeProblem>(inputs, output, lse, options.soft_cap.value_or(0), sink_logits);
  problem.batch = static_cast<int>(inputs.batch());
  problem.bias = BiasView::of(inputs.attention_mask);
  problem.indices = lists.indices;
  problem.counts = lists.counts;
  problem.p = lists.p;
  problem.list_size = lists.list_size;
  problem.parts = parts_for(rows, lists.list_size, own.multiprocessors);
  problem.workspace = own.workspace.as<float>();
  problem.arrived = own.arrived.as<int>();
  dispatch_head_dim(inputs.queries.dtype, inputs.head_dim(),
                    [&]<class T, int head_dim>() { attend_lists<T, head_dim>(problem, stream); });
}

SparseDecoder::SparseDecoder(Index rows, Index most_keys, Stream stream)
    : chooser_(rows, most_keys, stream), attention_(rows, stream) {}

void SparseDecoder::run(const AttentionInputs& inputs, std::span<const Rule> rules, void* output, float* lse,
                        Stream stream, const AttentionOptions& options, std::int32_t* counts) const {
  attention_.run(inputs, chooser_.choose(inputs, rules, stream, counts), output, lse, stream, options);
}

}  // namespace reticle::cuda
