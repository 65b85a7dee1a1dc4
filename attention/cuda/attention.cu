#include <algorithm>
#include <limits>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/attention/cuda/plan_block.hpp>
#include <reticle/attention/cuda/planned_inputs.cuh>
#include <reticle/core/cuda/check.cuh>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>

namespace reticle::cuda {
namespace {

template <class T, int head_dim>
__global__ void __launch_bounds__(kDecodeThreads, 4) decode_kernel(const __grid_constant__ DecodeProblem problem) {
  __shared__ DecodeShared<head_dim> shared;
  decode_part<T, head_dim>(DeviceBlock(), shared, problem, static_cast<int>(blockIdx.x) / problem.parts,
                           static_cast<int>(blockIdx.x) % problem.parts);
}

template <class T, int head_dim>
__global__ void __launch_bounds__(kTileThreads) tile_kernel(const __grid_constant__ TileProblem problem) {
  extern __shared__ __align__(16) unsigned char memory[];
  attend_tile<T, head_dim>(DeviceBlock(), *reinterpret_cast<TileShared<T, head_dim>*>(memory), problem,
                           problem.tiles[blockIdx.x]);
}

__global__ void __launch_bounds__(kPlanThreads)
    plan_kernel(const __grid_constant__ ByteMask mask, Tile* tiles, KeyBlock* blocks, std::uint64_t* bits) {
  __shared__ PlanShared shared;
  plan_tile(DeviceBlock(), shared, mask, tiles, blocks, bits, static_cast<int>(blockIdx.x));
}

__global__ void __launch_bounds__(kPlanThreads)
    list_kernel(const __grid_constant__ ByteMask mask, int heads, std::int32_t* indices, std::int32_t* counts) {
  __shared__ int scan[kWarp + 1];
  list_row(DeviceBlock(), scan, mask, heads, indices, counts, static_cast<int>(blockIdx.x));
}

template <class T, int head_dim>
void launch(const DecodeProblem& problem, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(problem.batch * problem.heads * problem.rows * problem.parts);
  decode_kernel<T, head_dim><<<blocks, kDecodeThreads, 0, stream>>>(problem);
}

template <class T, int head_dim>
void launch(const TileProblem& problem, int tiles, cudaStream_t stream) {
  constexpr int kBytes = sizeof(TileShared<T, head_dim>);
  check(cudaFuncSetAttribute(tile_kernel<T, head_dim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "attention over tiles");
  tile_kernel<T, head_dim><<<static_cast<unsigned>(tiles), kTileThreads, kBytes, stream>>>(problem);
}

/// Whether tiles serve unweighted masks of such inputs: one of few rows wastes the tensor cores, and reads no less than
/// lists do.
bool tiles_serve(const PlannedInputs& inputs) {
  constexpr Index kFewRows = 16;
  return inputs.dtype != DType::f32 && inputs.head_dim < 256 &&
         inputs.queries * (inputs.heads / inputs.kv_heads) >= kFewRows;
}

/// Blocks to a row that keep the device busy, of no fewer than 64 entries each.
int parts_for(Index rows, Index entries_of_row, int multiprocessors) {
  if (rows == 0) return 1;
  const Index wanted = (Index{8} * multiprocessors + rows - 1) / rows;
  return static_cast<int>(std::clamp<Index>(wanted, 1, std::max<Index>(1, entries_of_row / 64)));
}

}  // namespace

struct AttentionPlan::State {
  PlannedInputs made_for;
  float soft_cap;
  Buffer sink_logits;
  // Lists.
  int parts = 1;
  Index list_size = 0;  // of lists with room for all keys
  Buffer row_ptr, counts, indices, p, workspace, arrived;
  // Tiles.
  int tiles = 0;
  Buffer tile_list, blocks, bits;

  /// Splits rows of so many entries over blocks.
  void split(Index entries_of_row, Stream stream) {
    const Index rows = made_for.rows();
    parts = parts_for(rows, entries_of_row, multiprocessors());
    if (parts == 1) return;
    workspace = Buffer(static_cast<std::size_t>(rows * parts * (made_for.head_dim + 2)) * sizeof(float), stream);
    arrived = Buffer::zeros(static_cast<std::size_t>(rows) * sizeof(int), stream);
  }
};

AttentionPlan::AttentionPlan(const AttentionInputs& inputs, const Mask& mask, Stream stream,
                             const AttentionOptions& options, const Context& context) {
  auto state = std::make_shared<State>(State{PlannedInputs::of(inputs, options), options.soft_cap.value_or(0)});
  require_mask_fits(inputs, mask);
  const PlannedInputs& own = state->made_for;
  state->sink_logits = Buffer::copy_of(options.sink_logits, stream);
  const Index rows = own.rows();
  if (!mask.weighted() && tiles_serve(own)) {
    const BlockPlan plan = plan_blocks(mask, own.kv_heads, own.causal, context);
    state->tiles = static_cast<int>(plan.tiles.size());
    state->tile_list = Buffer::copy_of(std::span<const Tile>(plan.tiles), stream);
    state->blocks = Buffer::copy_of(std::span<const KeyBlock>(plan.blocks), stream);
    state->bits = Buffer::copy_of(std::span<const std::uint64_t>(plan.bits), stream);
  } else {
    const Csr csr = to_csr(own.causal ? restrict_causal(mask, context) : mask);
    state->row_ptr = Buffer::copy_of(csr.row_ptr.span(), stream);
    state->indices = Buffer::copy_of(csr.indices.span(), stream);
    state->p = Buffer::copy_of(csr.p.span(), stream);
    const Index mean = rows == 0 ? 0 : static_cast<Index>(csr.indices.size()) / rows;
    state->split(mean, stream);
  }
  state_ = std::move(state);
}

AttentionPlan::AttentionPlan(const AttentionInputs& inputs, const TensorView& attended, Stream stream,
                             const AttentionOptions& options) {
  auto state = std::make_shared<State>(State{PlannedInputs::of(inputs, options), options.soft_cap.value_or(0)});
  const PlannedInputs& own = state->made_for;
  state->sink_logits = Buffer::copy_of(options.sink_logits, stream);
  const Index wanted[] = {own.batch, own.heads, own.queries, own.keys};
  bool fits = attended.rank == 4 && (attended.dtype == DType::boolean || attended.dtype == DType::u8) &&
              (attended.size(3) == own.keys && (attended.stride(3) == 1 || own.keys < 2));
  for (int dim = 0; fits && dim < 3; ++dim) fits = attended.size(dim) == wanted[dim] || attended.size(dim) == 1;
  if (!fits)
    throw ShapeError("attention: mask " + attended.describe() + "; needed is BOOL " + inputs.shape().describe() +
                     " with neighbouring keys, a dimension of 1 where a pattern is shared");
  const auto stride = [&](int dim) { return attended.size(dim) == 1 ? 0 : attended.stride(dim); };
  const ByteMask mask{static_cast<const std::uint8_t*>(attended.data),
                      {stride(0), stride(1), stride(2)},
                      static_cast<int>(own.queries),
                      static_cast<int>(own.keys),
                      own.causal};
  auto* const native = static_cast<cudaStream_t>(stream);
  const auto rows = static_cast<std::size_t>(own.rows()), keys = static_cast<std::size_t>(own.keys);
  if (rows == 0) {
    // Nothing will run.
  } else if (tiles_serve(own)) {
    const std::vector<Tile> tiles = tiles_of(inputs.shape(), own.kv_heads);
    const std::size_t room = tiles.size() * ((keys + kKeyBlock - 1) / kKeyBlock);
    if (room * kTileRowCount > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
      throw DeviceError("attention: a mask of " + inputs.shape().describe() +
                        " is too large to be planned on the GPU; plan it by parts, or from a Mask");
    state->tiles = static_cast<int>(tiles.size());
    state->tile_list = Buffer::copy_of(std::span<const Tile>(tiles), stream);
    state->blocks = Buffer(room * sizeof(KeyBlock), stream);
    state->bits = Buffer(room * kTileRowCount * sizeof(std::uint64_t), stream);
    plan_kernel<<<static_cast<unsigned>(tiles.size()), kPlanThreads, 0, native>>>(
        mask, state->tile_list.as<Tile>(), state->blocks.as<KeyBlock>(), state->bits.as<std::uint64_t>());
  } else {
    state->list_size = own.keys;
    state->indices = Buffer(rows * keys * sizeof(std::int32_t), stream);
    state->counts = Buffer(rows * sizeof(std::int32_t), stream);
    list_kernel<<<static_cast<unsigned>(rows), kPlanThreads, 0, native>>>(
        mask, static_cast<int>(own.heads), state->indices.as<std::int32_t>(), state->counts.as<std::int32_t>());
    state->split(own.keys, stream);
  }
  check_launch("planning attention");
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
      made_for.head_dim == 64 ? launch<T, 64>(problem, own.tiles, native) : launch<T, 128>(problem, own.tiles, native);
    };
    made_for.dtype == DType::f16 ? launch_of.template operator()<Half>() : launch_of.template operator()<BFloat16>();
    return check_launch("attention over tiles");
  }
  auto problem = problem_of<DecodeProblem>(inputs, output, lse, own.soft_cap, own.sink_logits.as<float>());
  problem.batch = static_cast<int>(made_for.batch);
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
