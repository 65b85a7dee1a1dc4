#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/device_plan.cuh>
#include <reticle/attention/cuda/list_plan.hpp>
#include <reticle/attention/cuda/wide_tile_block.hpp>
#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/tensor.hpp>

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

/// Rows per tile for these inputs on the current device: kWideTileRows where Hopper's instructions are available,
/// unless there are too few rows to fill the second half of such a tile.
int tile_rows_for(const PlannedInputs& inputs) {
  const bool fill = inputs.queries * (inputs.heads / inputs.kv_heads) > kTileRowCount;
  return kWgmmaBuilt && fill && compute_capability() == 90 ? kWideTileRows : kTileRowCount;
}

/// Blocks per list: enough to keep the device busy, with at least 64 entries each.
int parts_for(Index lists, Index entries_of_list, int multiprocessors) {
  if (lists == 0) return 1;
  const Index wanted = (Index{8} * multiprocessors + lists - 1) / lists;
  return static_cast<int>(std::clamp<Index>(wanted, 1, std::max<Index>(1, entries_of_list / 64)));
}

/// Copies of sink logits in device memory, one for each distinct set of values that has been used.
class SinkLogits {
 public:
  const float* of(std::span<const float> logits, Stream stream) {
    if (logits.empty()) return nullptr;
    std::vector<float> key(logits.begin(), logits.end());
    auto kept = kept_.find(key);
    if (kept == kept_.end() && kept_.size() == kMaxKept) kept_.clear();  // freed in the order of the stream
    if (kept == kept_.end()) kept = kept_.emplace(std::move(key), Buffer::copy_of(logits, stream)).first;
    return kept->second.as<float>();
  }

 private:
  static constexpr std::size_t kMaxKept = 256;  // more than a model has layers; logits that train are new at each call
  std::map<std::vector<float>, Buffer> kept_;
};

/// All keys that causality allows, as a band of positions.
Band everything(const PlannedInputs& inputs) {
  return {.first_query = inputs.causal ? inputs.keys - inputs.queries : inputs.keys};
}

}  // namespace

struct DevicePlan::State {
  PlannedInputs made_for;
  int device = current_device();
  DeviceTiles tiles;
  // Used instead of tiles: lists that were made on the host (with row_ptr) or on the device, or intervals of keys.
  Buffer row_ptr;
  DeviceLists lists;
  int parts = 1;
  Buffer workspace, arrived;
  mutable SinkLogits sink_logits;

  explicit State(const AttentionInputs& inputs) : made_for(PlannedInputs::of(inputs)) {}

  /// Splits lists of about `entries_of_list` entries over several blocks, and allocates the workspace for merging.
  void split(Index entries_of_list, Stream stream) {
    const Index rows = made_for.rows();
    parts = parts_for(rows / lists.sharing, entries_of_list, multiprocessors());
    if (parts == 1) return;
    workspace = Buffer(static_cast<std::size_t>(rows * parts * (made_for.head_dim + 2)) * sizeof(float), stream);
    arrived = Buffer::zeros(static_cast<std::size_t>(rows) * sizeof(int), stream);
  }

  /// Plans on the device, for a pattern that lies there.
  void plan_on_device(const Pattern& pattern, Stream stream) {
    if (tiles_serve(made_for, pattern)) {
      tiles = DeviceTiles(pattern, made_for, tile_rows_for(made_for), stream);
    } else {
      lists = DeviceLists(pattern, made_for, stream);
      split(lists.list_size, stream);
    }
  }

  void plan_on_host(const Mask& mask, Stream stream, const Context& context) {
    std::optional<BlockPlan> plan;
    if (tiles_serve(made_for))
      plan = plan_blocks(mask, made_for.kv_heads, made_for.causal, tile_rows_for(made_for), context);
    if (plan) {
      tiles = DeviceTiles(*plan, Tiling::of(mask.shape(), made_for.kv_heads, tile_rows_for(made_for)), stream);
      return;
    }
    const auto [sharing, planned] = plan_lists(mask, made_for.heads_with_lists(), made_for.causal, context);
    lists.sharing = sharing;
    row_ptr = Buffer::copy_of(planned.row_ptr.span(), stream);
    lists.indices = Buffer::copy_of(planned.indices.span(), stream);
    lists.p = Buffer::copy_of(planned.p.span(), stream);
    split(planned.indices.size() / std::max<Index>(1, made_for.rows() / sharing), stream);
  }
};

DevicePlan::DevicePlan(const AttentionInputs& inputs, const Pattern& pattern, Stream stream, const Context& context) {
  auto state = std::make_shared<State>(inputs);
  const PlannedInputs& planned = state->made_for;
  const Mask* const mask = std::get_if<Mask>(&pattern);
  if (mask != nullptr) require_mask_fits(inputs, *mask);
  if (mask == nullptr || mask->on_device() != nullptr) {
    state->plan_on_device(pattern, stream);
  } else if (mask->kind() == MaskKind::full && (!planned.causal || planned.queries <= planned.keys)) {
    state->plan_on_device(everything(planned), stream);
  } else {
    state->plan_on_host(*mask, stream, context);
  }
  state_ = std::move(state);
}

void DevicePlan::run(const AttentionInputs& inputs, void* output, float* lse, Stream stream,
                     const AttentionOptions& options) const {
  const State& state = *state_;
  const PlannedInputs& made_for = state.made_for;
  made_for.require(inputs);
  PlannedInputs::require_options(inputs, options);
  if (made_for.rows() == 0) return;
  const float soft_cap = options.soft_cap.value_or(0);
  const float* const sink_logits = state.sink_logits.of(options.sink_logits, stream);
  if (uses_tiles()) {
    auto problem = problem_of<TileProblem>(inputs, output, lse, soft_cap, sink_logits);
    problem.key_count = static_cast<int>(made_for.keys);
    problem.plan = state.tiles.lists();
    problem.bias = BiasView::of(inputs.attention_mask);
    const auto launch_of = [&]<class T, bool biased>() {
      made_for.head_dim == 64 ? attend_tiles<T, 64, biased>(problem, state.tiles, stream)
                              : attend_tiles<T, 128, biased>(problem, state.tiles, stream);
    };
    const auto launch_by_bias = [&]<class T>() {
      made_for.biased ? launch_of.template operator()<T, true>() : launch_of.template operator()<T, false>();
    };
    made_for.dtype == DType::f16 ? launch_by_bias.template operator()<Half>()
                                 : launch_by_bias.template operator()<BFloat16>();
    return;
  }
  auto problem = problem_of<DecodeProblem>(inputs, output, lse, soft_cap, sink_logits);
  problem.batch = static_cast<int>(made_for.batch);
  problem.sharing = state.lists.sharing;
  problem.bias = BiasView::of(inputs.attention_mask);
  problem.row_ptr = state.row_ptr.as<Index>();
  problem.counts = state.lists.counts.as<std::int32_t>();
  problem.begins = state.lists.begins.as<std::int32_t>();
  problem.list_size = state.lists.list_size;
  problem.indices = state.lists.indices.as<std::int32_t>();
  problem.p = state.lists.p.as<float>();
  problem.parts = state.parts;
  problem.workspace = state.workspace.as<float>();
  problem.arrived = state.arrived.as<int>();
  dispatch_head_dim(made_for.dtype, made_for.head_dim,
                    [&]<class T, int head_dim>() { attend_lists<T, head_dim>(problem, stream); });
}

int DevicePlan::device() const { return state_->device; }
bool DevicePlan::uses_tiles() const { return state_->tiles.count() > 0; }

Index DevicePlan::bytes() const {
  std::size_t bytes = state_->tiles.bytes();
  for (const Buffer* buffer : {&state_->row_ptr, &state_->lists.counts, &state_->lists.begins, &state_->lists.indices,
                               &state_->lists.p, &state_->workspace, &state_->arrived})
    bytes += buffer->bytes();
  return static_cast<Index>(bytes);
}

struct KeyListAttention::State {
  Index rows;
  int multiprocessors;
  Buffer workspace, arrived;
  mutable SinkLogits sink_logits{};
};

KeyListAttention::KeyListAttention(Index rows, Stream stream) {
  if (rows < 1) throw ValueError("attention over lists: for " + std::to_string(rows) + " rows; expected at least 1");
  auto state = std::make_shared<State>(State{rows, cuda::multiprocessors()});
  // Fewer rows are split into more parts; rows * parts never exceeds this bound.
  const auto states = static_cast<std::size_t>(8 * Index{state->multiprocessors} + rows);
  state->workspace = Buffer(states * (256 + 2) * sizeof(float), stream);
  state->arrived = Buffer::zeros(static_cast<std::size_t>(rows) * sizeof(int), stream);
  state_ = std::move(state);
}

void KeyListAttention::run(const AttentionInputs& inputs, const KeyLists& lists, void* output, float* lse,
                           Stream stream, const AttentionOptions& options) const {
  validate_on_current_gpu(inputs);
  PlannedInputs::require_options(inputs, options);
  PlannedInputs::require_readable(inputs);
  const State& state = *state_;
  const Index rows = inputs.batch() * inputs.heads() * inputs.queries_length();
  if (rows > state.rows || inputs.values.size(3) != inputs.head_dim())
    throw ShapeError("attention over lists: queries " + inputs.queries.describe() + " and values " +
                     inputs.values.describe() + "; expected at most " + std::to_string(state.rows) +
                     " rows, and values of the queries' head_dim");
  if (rows == 0) return;
  const float* const sink_logits = state.sink_logits.of(options.sink_logits, stream);
  auto problem = problem_of<DecodeProblem>(inputs, output, lse, options.soft_cap.value_or(0), sink_logits);
  problem.batch = static_cast<int>(inputs.batch());
  problem.bias = BiasView::of(inputs.attention_mask);
  problem.indices = lists.indices;
  problem.counts = lists.counts;
  problem.p = lists.p;
  problem.list_size = lists.list_size;
  problem.parts = parts_for(rows, lists.list_size, state.multiprocessors);
  problem.workspace = state.workspace.as<float>();
  problem.arrived = state.arrived.as<int>();
  dispatch_head_dim(inputs.queries.dtype, inputs.head_dim(),
                    [&]<class T, int head_dim>() { attend_lists<T, head_dim>(problem, stream); });
}

SparseDecoder::SparseDecoder(Index rows, Index most_keys, Stream stream)
    : chooser_(rows, most_keys, stream), attention_(rows, stream) {}

namespace {

/// Calls chooser.choose, which needs the inputs without padding, too: codes are made from unpadded keys.
KeyLists choose_by(const KeyChooser& chooser, const AttentionInputs& inputs, const FittedInputs& fitted,
                   std::span<const Rule> rules, Stream stream, std::int32_t* counts = nullptr) {
  AttentionInputs unpadded = inputs;
  unpadded.attention_mask = fitted.inputs().attention_mask;
  return chooser.choose(unpadded, rules, stream, counts, &fitted.inputs());
}

}  // namespace

KeyLists SparseDecoder::choose(const AttentionInputs& inputs, std::span<const Rule> rules, Stream stream) const {
  return choose_by(chooser_, inputs, FittedInputs(inputs, stream), rules, stream);
}

KeyLists SparseDecoder::run(const AttentionInputs& inputs, std::span<const Rule> rules, void* output, float* lse,
                            Stream stream, const AttentionOptions& options, std::int32_t* counts) const {
  const FittedInputs fitted(inputs, stream);
  const KeyLists lists = choose_by(chooser_, inputs, fitted, rules, stream, counts);
  FittedResult result = output_of(inputs, fitted, output, stream);
  attention_.run(fitted.inputs(), lists, result.data(), lse, stream, options);
  result.finish();
  return lists;
}

AttentionResult empty_result(const AttentionInputs& inputs, Stream stream) {
  const MaskShape shape = inputs.shape();
  const Index output[] = {shape.batch, shape.heads, shape.queries, inputs.values.size(3)};
  return {empty_tensor(inputs.queries.dtype, output, stream), empty_tensor(DType::f32, std::span(output, 3), stream),
          std::nullopt};
}

DevicePlan plan_for(const AttentionInputs& inputs, const Pattern& pattern, const Context& context) {
  return {FittedInputs::extents(inputs), pattern, context.stream, context};
}

void attend(const AttentionInputs& inputs, const DevicePlan& plan, const AttentionOptions& options,
            const Context& context, void* output, float* lse) {
  const FittedInputs fitted(inputs, context.stream);
  FittedResult result = output_of(inputs, fitted, output, context.stream);
  plan.run(fitted.inputs(), result.data(), lse, context.stream, options);
  result.finish();
}

void attend(const AttentionInputs& inputs, const Pattern& pattern, const AttentionOptions& options,
            const Context& context, void* output, float* lse) {
  PlannedInputs::require_options(inputs, options);
  attend(inputs, plan_for(inputs, pattern, context), options, context, output, lse);
}

}  // namespace reticle::cuda
