#include <algorithm>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/attention/cuda/planned_inputs.cuh>
#include <reticle/core/cuda/check.cuh>
#include <reticle/core/cuda/top_k.hpp>
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
  Buffer row_ptr, indices, p, workspace, arrived;
  // Tiles.
  int tiles = 0;
  Buffer tile_list, blocks, bits;
};

AttentionPlan::AttentionPlan(const AttentionInputs& inputs, const Mask& mask, Stream stream,
                             const AttentionOptions& options, const Context& context) {
  auto state = std::make_shared<State>(State{PlannedInputs::of(inputs, options), options.soft_cap.value_or(0)});
  require_mask_fits(inputs, mask);
  const PlannedInputs& own = state->made_for;
  state->sink_logits = Buffer::copy_of(options.sink_logits, stream);
  const Index rows = own.rows(), head_dim = own.head_dim;
  const bool narrow = own.dtype != DType::f32;
  // A tile of few rows wastes the tensor cores, and reads no less than lists do.
  constexpr Index kFewRows = 16;
  if (narrow && head_dim < 256 && !mask.weighted() && own.queries * inputs.group() >= kFewRows) {
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
    state->parts = parts_for(rows, mean, multiprocessors());
    if (state->parts > 1) {
      state->workspace = Buffer(static_cast<std::size_t>(rows * state->parts * (head_dim + 2)) * sizeof(float), stream);
      state->arrived = Buffer::zeros(static_cast<std::size_t>(rows) * sizeof(int), stream);
    }
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
      made_for.head_dim == 64 ? launch<T, 64>(problem, own.tiles, native) : launch<T, 128>(problem, own.tiles, native);
    };
    made_for.dtype == DType::f16 ? launch_of.template operator()<Half>() : launch_of.template operator()<BFloat16>();
    return check_launch("attention over tiles");
  }
  auto problem = problem_of<DecodeProblem>(inputs, output, lse, own.soft_cap, own.sink_logits.as<float>());
  problem.batch = static_cast<int>(made_for.batch);
  problem.row_ptr = own.row_ptr.as<Index>();
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
  for (const Buffer* buffer : {&state_->sink_logits, &state_->row_ptr, &state_->indices, &state_->p, &state_->workspace,
                               &state_->arrived, &state_->tile_list, &state_->blocks, &state_->bits})
    bytes += buffer->bytes();
  return static_cast<Index>(bytes);
}

struct TopKAttention::State {
  Index rows, most_keys, heavy;
  KeptKeys kept;
  int multiprocessors;
  Buffer scores, indices, counts, workspace, arrived;
};

TopKAttention::TopKAttention(Index rows, Index most_keys, const KeptKeys& kept, Index heavy, Stream stream) {
  const Index chosen = kept.sinks + kept.window + heavy;
  if (rows < 1 || most_keys < 1 || kept.sinks < 0 || kept.window < 0 || heavy < 0 || chosen < 1)
    throw ValueError("top-k attention: " + std::to_string(rows) + " rows of " + std::to_string(most_keys) + " keys, " +
                     std::to_string(kept.sinks) + " sinks, a window of " + std::to_string(kept.window) + " and " +
                     std::to_string(heavy) + " more: needed are rows and keys, and something chosen");
  auto state = std::make_shared<State>(State{rows, most_keys, heavy, kept, cuda::multiprocessors()});
  const auto list = static_cast<std::size_t>(std::min(chosen, most_keys));
  const auto count = static_cast<std::size_t>(rows);
  state->scores = Buffer(count * static_cast<std::size_t>(most_keys) * sizeof(float), stream);
  state->indices = Buffer(count * list * sizeof(std::int32_t), stream);
  state->counts = Buffer(count * sizeof(std::int32_t), stream);
  // Fewer rows are split further: rows * parts is at most this, whatever the rows.
  const std::size_t states = 8 * static_cast<std::size_t>(state->multiprocessors) + count;
  state->workspace = Buffer(states * (256 + 2) * sizeof(float), stream);
  state->arrived = Buffer::zeros(count * sizeof(int), stream);
  state_ = std::move(state);
}

void TopKAttention::run(const AttentionInputs& inputs, void* output, float* lse, Stream stream,
                        const AttentionOptions& options) const {
  inputs.validate();
  options.validate(inputs);
  PlannedInputs::require_readable(inputs);
  const State& own = *state_;
  const Index keys = inputs.keys_length(), rows = inputs.batch() * inputs.heads();
  if (inputs.queries_length() != 1 || rows > own.rows || keys > own.most_keys ||
      inputs.values.size(3) != inputs.head_dim())
    throw ShapeError("top-k attention: queries " + inputs.queries.describe() + ", keys " + inputs.keys.describe() +
                     "; needed is one query of at most " + std::to_string(own.rows) + " heads, and at most " +
                     std::to_string(own.most_keys) + " keys");
  if (!options.sink_logits.empty() || options.weights)
    throw DeviceError("top-k attention: sink logits and weights are not built");
  if (rows == 0 || keys == 0) return;
  dot_scores(inputs, own.kept, own.scores.as<float>(), stream);
  const Index chosen = std::min(keys, own.kept.sinks + own.kept.window) + own.heavy, list = std::min(keys, chosen);
  top_k(own.scores.as<float>(), rows, keys, list, own.indices.as<std::int32_t>(), own.counts.as<std::int32_t>(),
        stream);
  auto problem = problem_of<DecodeProblem>(inputs, output, lse, options.soft_cap.value_or(0), nullptr);
  problem.batch = static_cast<int>(inputs.batch());
  problem.indices = own.indices.as<std::int32_t>();
  problem.counts = own.counts.as<std::int32_t>();
  problem.list_size = list;
  problem.parts = parts_for(rows, list, own.multiprocessors);
  problem.workspace = own.workspace.as<float>();
  problem.arrived = own.arrived.as<int>();
  dispatch_head_dim(inputs.queries.dtype, inputs.head_dim(),
                    [&]<class T, int head_dim>() { launch<T, head_dim>(problem, static_cast<cudaStream_t>(stream)); });
  check_launch("attention over the best keys");
}

}  // namespace reticle::cuda
