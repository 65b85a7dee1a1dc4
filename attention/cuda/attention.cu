#include <algorithm>
#include <limits>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/attention/cuda/list_plan.hpp>
#include <reticle/attention/cuda/plan_block.hpp>
#include <reticle/attention/cuda/planned_inputs.cuh>
#include <reticle/attention/cuda/wide_tile_block.hpp>
#include <reticle/core/cuda/check.cuh>
#include <reticle/core/cuda/mask_block.hpp>

namespace reticle::cuda {
namespace {

template <class T, int head_dim, int sharing>
__global__ void __launch_bounds__(kDecodeThreads, sharing == 1 ? 4 : 3)
    decode_kernel(const __grid_constant__ DecodeProblem problem) {
  __shared__ DecodeShared<head_dim> shared;
  decode_part<T, head_dim, sharing>(DeviceBlock(), shared, problem, static_cast<int>(blockIdx.x) / problem.parts,
                                    static_cast<int>(blockIdx.x) % problem.parts);
}

template <class T, int head_dim>
__global__ void __launch_bounds__(kTileThreads) tile_kernel(const __grid_constant__ TileProblem problem) {
  extern __shared__ __align__(16) unsigned char memory[];
  attend_tile<T, head_dim>(DeviceBlock(), *reinterpret_cast<TileShared<T, head_dim>*>(memory), problem,
                           problem.tiles[blockIdx.x]);
}

template <class T, int head_dim>
__global__ void __launch_bounds__(kWideTileThreads, 1) wide_tile_kernel(const __grid_constant__ TileProblem problem) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(16) unsigned char memory[];
  // Room for this is in what launch() asks for: how dynamic memory is aligned is nowhere promised.
  unsigned char* const aligned = memory + (kPanelAlignment - __cvta_generic_to_shared(memory) % kPanelAlignment);
  attend_wide_tile<T, head_dim>(DeviceBlock(), *reinterpret_cast<WideTileShared<T, head_dim>*>(aligned), problem,
                                problem.tiles[blockIdx.x]);
#endif  // elsewhere it is never launched
}

template <int tile_rows, class MaskView>
__global__ void __launch_bounds__(kPlanThreads)
    plan_kernel(const __grid_constant__ MaskView mask, Tile* tiles, KeyBlock* blocks, std::uint64_t* bits) {
  __shared__ PlanShared<tile_rows> shared;
  plan_tile<tile_rows>(DeviceBlock(), shared, mask, tiles, blocks, bits, static_cast<int>(blockIdx.x));
}

template <class MaskView>
__global__ void __launch_bounds__(kPlanThreads)
    list_kernel(const __grid_constant__ MaskView mask, int heads, const __grid_constant__ ColumnLists to) {
  __shared__ int scan[kWarp + 1];
  list_row(DeviceBlock(), scan, mask, heads, to, static_cast<int>(blockIdx.x));
}

/// The keys of each logical row's list that its query sees.
__global__ void __launch_bounds__(kMaskThreads, 8)
    visible_kernel(const __grid_constant__ ColumnLists lists, const __grid_constant__ RowMap stored, int queries,
                   int keys, bool causal, const __grid_constant__ ColumnLists to) {
  __shared__ CombineShared shared;
  const Index row = blockIdx.x;
  ColumnList list = ColumnList::of(lists, stored.of(row));
  const int visible = visible_keys(keys, queries, static_cast<int>(row % queries), causal);
  list.count = list.before(visible);
  combine_lists<row_op::Add>(DeviceBlock(), shared, list, ColumnList{nullptr, nullptr, 0}, to, row);
}

template <class T, int head_dim>
void launch(const DecodeProblem& problem, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(problem.lists() * problem.parts);
  dispatch_together(problem.sharing, [&]<int sharing>() {
    decode_kernel<T, head_dim, sharing><<<blocks, kDecodeThreads, 0, stream>>>(problem);
  });
}

template <class Shared, class Kernel>
void launch(Kernel* kernel, int threads, const TileProblem& problem, int tiles, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared) + (alignof(Shared) > 16 ? alignof(Shared) : 0);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "attention over tiles");
  kernel<<<static_cast<unsigned>(tiles), threads, kBytes, stream>>>(problem);
}

template <class T, int head_dim>
void launch(const TileProblem& problem, int tiles, int tile_rows, cudaStream_t stream) {
  if (tile_rows == kWideTileRows)
    return launch<WideTileShared<T, head_dim>>(wide_tile_kernel<T, head_dim>, kWideTileThreads, problem, tiles, stream);
  launch<TileShared<T, head_dim>>(tile_kernel<T, head_dim>, kTileThreads, problem, tiles, stream);
}

/// Whether tiles serve unweighted masks of such inputs: one of few rows wastes the tensor cores, and reads no less than
/// lists do.
bool tiles_serve(const PlannedInputs& inputs) {
  constexpr Index kFewRows = 16;
  return inputs.dtype != DType::f32 && inputs.head_dim < 256 &&
         inputs.queries * (inputs.heads / inputs.kv_heads) >= kFewRows;
}

/// Rows of the tiles of such inputs on the current device: where Hopper's instructions are, those of 128, unless there
/// are too few rows to fill the second half.
int tile_rows_for(const PlannedInputs& inputs) {
  const bool fill = inputs.queries * (inputs.heads / inputs.kv_heads) > kTileRowCount;
  return fill && compute_capability() == 90 ? kWideTileRows : kTileRowCount;
}

/// Strides of a mask (b, hq, sq, sk) by blocks, 0 where a dimension of 1 shares a pattern; ShapeError unless it fits.
Strides strides_of_mask(const TensorView& attended, const MaskShape& shape, Index block_queries, Index block_keys) {
  const auto blocks = [](Index extent, Index block) { return (extent + block - 1) / block; };
  const Index wanted[] = {shape.batch, shape.heads, blocks(shape.queries, block_queries),
                          blocks(shape.keys, block_keys)};
  bool fits = attended.rank == 4 && (attended.dtype == DType::boolean || attended.dtype == DType::u8) &&
              attended.size(3) == wanted[3] && (attended.stride(3) == 1 || wanted[3] < 2);
  for (int dim = 0; fits && dim < 3; ++dim) fits = attended.size(dim) == wanted[dim] || attended.size(dim) == 1;
  if (!fits)
    throw ShapeError("attention: mask " + attended.describe() + "; needed is BOOL " +
                     MaskShape{wanted[0], wanted[1], wanted[2], wanted[3]}.describe() +
                     " with neighbouring keys, a dimension of 1 where a pattern is shared");
  const auto stride = [&](int dim) { return attended.size(dim) == 1 ? 0 : attended.stride(dim); };
  return {stride(0), stride(1), stride(2)};
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
  // Lists.
  int sharing = 1, parts = 1;
  Index list_size = 0;  // of lists with room for all keys
  Buffer row_ptr, counts, indices, p, workspace, arrived;
  // Tiles.
  int tiles = 0, tile_rows = kTileRowCount;
  Buffer tile_list, blocks, bits;

  /// Without the mask.
  static std::shared_ptr<State> started(const AttentionInputs& inputs, const AttentionOptions& options, Stream stream) {
    auto state = std::make_shared<State>(State{PlannedInputs::of(inputs, options), options.soft_cap.value_or(0)});
    state->sink_logits = Buffer::copy_of(options.sink_logits, stream);
    return state;
  }

  /// Of a mask on the device, of which only this is known without waiting; before lists are made.
  void share_lists(bool heads_alike) {
    sharing = heads_alike ? heads_taken_together(made_for.heads / made_for.kv_heads) : 1;
  }
  /// Heads that have lists of their own.
  Index list_heads() const { return made_for.heads / sharing; }
  Index lists() const { return made_for.batch * list_heads() * made_for.queries; }

  /// Of an unweighted mask on the device; `shape` is the inputs'.
  template <class MaskView>
  void plan(const MaskShape& shape, const MaskView& mask, Stream stream) {
    if (made_for.rows() == 0) return;
    auto* const native = static_cast<cudaStream_t>(stream);
    if (!tiles_serve(made_for)) {
      share_lists(mask.strides.head == 0);
      const ColumnLists to = reserve_lists(made_for.keys, false, stream);
      list_kernel<<<static_cast<unsigned>(lists()), kPlanThreads, 0, native>>>(mask, static_cast<int>(list_heads()),
                                                                               to);
      return check_launch("planning attention");
    }
    tile_rows = tile_rows_for(made_for);
    const std::vector<Tile> of_rows = tiles_of(shape, made_for.kv_heads, tile_rows);
    const std::size_t room = of_rows.size() * static_cast<std::size_t>((made_for.keys + kKeyBlock - 1) / kKeyBlock);
    if (room * tile_rows > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
      throw DeviceError("attention: a mask of " + shape.describe() +
                        " is too large to be planned on the GPU; plan it by parts, or from a Mask");
    tiles = static_cast<int>(of_rows.size());
    tile_list = Buffer::copy_of(std::span<const Tile>(of_rows), stream);
    blocks = Buffer(room * sizeof(KeyBlock), stream);
    bits = Buffer(room * static_cast<std::size_t>(tile_rows) * sizeof(std::uint64_t), stream);
    const auto fill = [&](auto* kernel) {
      kernel<<<static_cast<unsigned>(tiles), kPlanThreads, 0, native>>>(
          mask, tile_list.as<Tile>(), blocks.as<KeyBlock>(), bits.as<std::uint64_t>());
    };
    tile_rows == kWideTileRows ? fill(plan_kernel<kWideTileRows, MaskView>)
                               : fill(plan_kernel<kTileRowCount, MaskView>);
    check_launch("planning attention");
  }

  /// Room for lists of so many keys; where they go.
  ColumnLists reserve_lists(Index size, bool weighted, Stream stream) {
    const auto count = static_cast<std::size_t>(lists()), entries = count * static_cast<std::size_t>(size);
    list_size = size;
    indices = Buffer(entries * sizeof(std::int32_t), stream);
    if (weighted) p = Buffer(entries * sizeof(float), stream);
    counts = Buffer(count * sizeof(std::int32_t), stream);
    split(size, stream);
    return {indices.as<std::int32_t>(), p.as<float>(), counts.as<std::int32_t>(), size};
  }

  /// Splits lists of so many entries over blocks.
  void split(Index entries_of_list, Stream stream) {
    const Index rows = made_for.rows();
    parts = parts_for(lists(), entries_of_list, multiprocessors());
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
  if (!mask.weighted() && tiles_serve(own)) {
    state->tile_rows = tile_rows_for(own);
    const BlockPlan plan = plan_blocks(mask, own.kv_heads, own.causal, state->tile_rows, context);
    state->tiles = static_cast<int>(plan.tiles.size());
    state->tile_list = Buffer::copy_of(std::span<const Tile>(plan.tiles), stream);
    state->blocks = Buffer::copy_of(std::span<const KeyBlock>(plan.blocks), stream);
    state->bits = Buffer::copy_of(std::span<const std::uint64_t>(plan.bits), stream);
  } else {
    const auto [sharing, lists] = plan_lists(mask, own.kv_heads, own.causal, context);
    state->sharing = sharing;
    state->row_ptr = Buffer::copy_of(lists.row_ptr.span(), stream);
    state->indices = Buffer::copy_of(lists.indices.span(), stream);
    state->p = Buffer::copy_of(lists.p.span(), stream);
    state->split(lists.indices.size() / std::max<Index>(1, state->lists()), stream);
  }
  state_ = std::move(state);
}

AttentionPlan::AttentionPlan(const AttentionInputs& inputs, const TensorView& attended, Stream stream,
                             const AttentionOptions& options) {
  auto state = State::started(inputs, options, stream);
  const PlannedInputs& own = state->made_for;
  const Strides strides = strides_of_mask(attended, inputs.shape(), 1, 1);
  const ByteMask mask{static_cast<const std::uint8_t*>(attended.data), strides, static_cast<int>(own.queries),
                      static_cast<int>(own.keys), own.causal};
  state->plan(inputs.shape(), mask, stream);
  state_ = std::move(state);
}

AttentionPlan::AttentionPlan(const AttentionInputs& inputs, const TensorView& attended, Index block_queries,
                             Index block_keys, Stream stream, const AttentionOptions& options) {
  auto state = State::started(inputs, options, stream);
  const PlannedInputs& own = state->made_for;
  constexpr Index kMost = std::numeric_limits<std::int32_t>::max() / 2;
  if (block_queries < 1 || block_keys < 1 || block_queries > kMost || block_keys > kMost)
    throw ValueError("attention: blocks of " + std::to_string(block_queries) + " x " + std::to_string(block_keys) +
                     "; needed are at least 1 x 1, and at most 2^30");
  const Strides strides = strides_of_mask(attended, inputs.shape(), block_queries, block_keys);
  const BlockMask mask{static_cast<const std::uint8_t*>(attended.data),
                       strides,
                       static_cast<int>(block_queries),
                       static_cast<int>(block_keys),
                       static_cast<int>(own.queries),
                       static_cast<int>(own.keys),
                       own.causal};
  state->plan(inputs.shape(), mask, stream);
  state_ = std::move(state);
}

AttentionPlan::AttentionPlan(const AttentionInputs& inputs, const DeviceMask& mask, Stream stream,
                             const AttentionOptions& options) {
  auto state = State::started(inputs, options, stream);
  const PlannedInputs& own = state->made_for;
  inputs.shape().require_same_logical(mask.shape(), "attention");
  RowMap stored = RowMap::between(inputs.shape().unshared(), mask.shape());
  const auto queries = static_cast<int>(own.queries), keys = static_cast<int>(own.keys);
  if (mask.is_bits() || (!mask.weighted() && tiles_serve(own))) {
    const DeviceMask bits = mask.as_bits(stream);
    const Index width = BitDense::words_per_row(own.keys);
    const Strides strides{stored.batch_stride * width, stored.head_stride * width, stored.query_stride * width};
    state->plan(inputs.shape(), WordMask{bits.words(), strides, queries, keys, own.causal}, stream);
  } else if (own.rows() > 0) {
    state->share_lists(mask.shape().shared_heads);
    stored.heads = state->list_heads();
    const ColumnLists to = state->reserve_lists(mask.list_size(), mask.weighted(), stream);
    visible_kernel<<<static_cast<unsigned>(state->lists()), kMaskThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        mask.lists(), stored, queries, keys, own.causal, to);
    check_launch("planning attention");
  }
  state_ = std::move(state);
}

void AttentionPlan::run(const AttentionInputs& inputs, void* output, float* lse, Stream stream) const {
  const State& own = *state_;
  const PlannedInputs& made_for = own.made_for;
  made_for.require(inputs);
  if (made_for.rows() == 0) return;
  auto* const native = static_cast<cudaStream_t>(stream);
  if (uses_tiles()) {
    auto problem = problem_of<TileProblem>(inputs, output, lse, own.soft_cap, own.sink_logits.as<float>());
    problem.key_count = static_cast<int>(made_for.keys);
    problem.tiles = own.tile_list.as<Tile>();
    problem.blocks = own.blocks.as<KeyBlock>();
    problem.bits = own.bits.as<std::uint64_t>();
    const auto launch_of = [&]<class T>() {
      made_for.head_dim == 64 ? launch<T, 64>(problem, own.tiles, own.tile_rows, native)
                              : launch<T, 128>(problem, own.tiles, own.tile_rows, native);
    };
    made_for.dtype == DType::f16 ? launch_of.template operator()<Half>() : launch_of.template operator()<BFloat16>();
    return check_launch("attention over tiles");
  }
  auto problem = problem_of<DecodeProblem>(inputs, output, lse, own.soft_cap, own.sink_logits.as<float>());
  problem.batch = static_cast<int>(made_for.batch);
  problem.sharing = own.sharing;
  problem.row_ptr = own.row_ptr.as<Index>();
  problem.counts = own.counts.as<std::int32_t>();
  problem.list_size = own.list_size;
  problem.indices = own.indices.as<std::int32_t>();
  problem.p = own.p.as<float>();
  problem.parts = own.parts;
  problem.workspace = own.workspace.as<float>();
  problem.arrived = own.arrived.as<int>();
  dispatch_head_dim(made_for.dtype, made_for.head_dim,
                    [&]<class T, int head_dim>() { launch<T, head_dim>(problem, native); });
  check_launch("attention over lists");
}

bool AttentionPlan::uses_tiles() const { return state_->tiles > 0; }

Index AttentionPlan::bytes() const {
  std::size_t bytes = 0;
  for (const Buffer* buffer :
       {&state_->sink_logits, &state_->row_ptr, &state_->counts, &state_->indices, &state_->p, &state_->workspace,
        &state_->arrived, &state_->tile_list, &state_->blocks, &state_->bits})
    bytes += buffer->bytes();
  return static_cast<Index>(bytes);
}

struct KeyListAttention::State {
  Index rows;
  int multiprocessors;
  Buffer workspace, arrived;
};

KeyListAttention::KeyListAttention(Index rows, Stream stream) {
  if (rows < 1) throw ValueError("attention over lists: for " + std::to_string(rows) + " rows; needed is at least 1");
  auto state = std::make_shared<State>(State{rows, cuda::multiprocessors()});
  // Fewer rows are split further: rows * parts is at most this, whatever the rows.
  const auto states = static_cast<std::size_t>(8 * Index{state->multiprocessors} + rows);
  state->workspace = Buffer(states * (256 + 2) * sizeof(float), stream);
  state->arrived = Buffer::zeros(static_cast<std::size_t>(rows) * sizeof(int), stream);
  state_ = std::move(state);
}

void KeyListAttention::run(const AttentionInputs& inputs, const KeyLists& lists, void* output, float* lse,
                           Stream stream, const AttentionOptions& options) const {
  inputs.validate();
  options.validate(inputs);
  PlannedInputs::require_readable(inputs);
  const State& own = *state_;
  const Index rows = inputs.batch() * inputs.heads() * inputs.queries_length();
  if (rows > own.rows || inputs.values.size(3) != inputs.head_dim())
    throw ShapeError("attention over lists: queries " + inputs.queries.describe() + " and values " +
                     inputs.values.describe() + "; needed are at most " + std::to_string(own.rows) +
                     " rows, and values of the queries' head_dim");
  if (!options.sink_logits.empty() || options.weights)
    throw DeviceError("attention over lists: sink logits and weights are not built");
  if (rows == 0) return;
  auto problem = problem_of<DecodeProblem>(inputs, output, lse, options.soft_cap.value_or(0), nullptr);
  problem.batch = static_cast<int>(inputs.batch());
  problem.indices = lists.indices;
  problem.counts = lists.counts;
  problem.p = lists.p;
  problem.list_size = lists.list_size;
  problem.parts = parts_for(rows, lists.list_size, own.multiprocessors);
  problem.workspace = own.workspace.as<float>();
  problem.arrived = own.arrived.as<int>();
  dispatch_head_dim(inputs.queries.dtype, inputs.head_dim(),
                    [&]<class T, int head_dim>() { launch<T, head_dim>(problem, static_cast<cudaStream_t>(stream)); });
  check_launch("attention over lists");
}

SparseDecoder::SparseDecoder(Index rows, Index most_keys, Stream stream)
    : chooser_(rows, most_keys, stream), attention_(rows, stream) {}

void SparseDecoder::run(const AttentionInputs& inputs, std::span<const Rule> rules, void* output, float* lse,
                        Stream stream, const AttentionOptions& options, std::int32_t* counts) const {
  inputs.validate();
  attention_.run(inputs, chooser_.choose(inputs, rules, stream, counts), output, lse, stream, options);
}

}  // namespace reticle::cuda
