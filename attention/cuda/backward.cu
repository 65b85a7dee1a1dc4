#include <optional>
#include <string>

#include <reticle/attention/cuda/backward.hpp>
#include <reticle/attention/cuda/backward_tile_block.hpp>
#include <reticle/attention/cuda/device_plan.cuh>
#include <reticle/core/cuda/check.cuh>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>

namespace reticle::cuda {
namespace {

template <class T, int head_dim, bool by_key>
__global__ void __launch_bounds__(kBackwardThreads, 4)
    backward_kernel(const __grid_constant__ BackwardProblem problem) {
  __shared__ BackwardShared<head_dim> shared;
  differentiate<T, head_dim, by_key>(DeviceBlock(), shared, problem, static_cast<int>(blockIdx.x));
}

template <class T, int head_dim, bool by_key, bool biased>
__global__ void __launch_bounds__(kBackwardThreads, biased ? 2 : 1)  // 2: more registers, or one is spilled on 8.0
    backward_tile_kernel(const __grid_constant__ TileBackwardProblem problem) {
  extern __shared__ __align__(16) unsigned char memory[];
  differentiate_tile<T, head_dim, by_key, biased>(DeviceBlock(),
                                                  *reinterpret_cast<BackwardTileShared<T, head_dim>*>(memory), problem,
                                                  static_cast<int>(blockIdx.x));
}

/// Lists of a mask's rows in device memory.
struct WalkedLists {
  Buffer ptr, indices, p;

  WalkedLists() = default;
  WalkedLists(const Mask& mask, Stream stream, const Context& context) {
    const Csr csr = to_csr(mask, context);
    ptr = Buffer::copy_of(csr.row_ptr.span(), stream);
    indices = Buffer::copy_of(csr.indices.span(), stream);
    p = Buffer::copy_of(csr.p.span(), stream);
  }
  WalkLists lists() const { return {ptr.as<Index>(), indices.as<std::int32_t>(), p.as<float>()}; }
};

template <class T, int head_dim, bool by_key>
void launch(const TileBackwardProblem& problem, Index blocks, cudaStream_t stream) {
  if (blocks == 0) return;
  constexpr int kBytes = sizeof(BackwardTileShared<T, head_dim>);
  auto* const kernel = problem.bias.data == nullptr ? backward_tile_kernel<T, head_dim, by_key, false>
                                                    : backward_tile_kernel<T, head_dim, by_key, true>;
  allow_shared_memory<kBytes>(kernel, "attention_backward");
  kernel<<<static_cast<unsigned>(blocks), kBackwardThreads, kBytes, stream>>>(problem);
}

}  // namespace

struct BackwardPlan::State {
  PlannedInputs made_for;
  float soft_cap;
  Buffer delta;
  bool uses_tiles = false;
  DeviceTilesBothWays tiles;
  WalkedLists by_row, by_key;

  static std::shared_ptr<State> started(const AttentionInputs& inputs, const AttentionOptions& options, Stream stream) {
    const PlannedInputs made_for = PlannedInputs::of(inputs, options);
    return std::make_shared<State>(State{made_for, options.soft_cap.value_or(0),
                                         Buffer(static_cast<std::size_t>(made_for.rows()) * sizeof(float), stream)});
  }
};

BackwardPlan::BackwardPlan(const AttentionInputs& inputs, const Mask& mask, Stream stream,
                           const AttentionOptions& options, const Context& context) {
  auto state = State::started(inputs, options, stream);
  require_mask_fits(inputs, mask);
  const PlannedInputs& own = state->made_for;
  std::optional<BlockPlan> plan;
  if (tiles_serve(own)) plan = plan_blocks(mask, own.kv_heads, own.causal, kTileRowCount, context);
  state->uses_tiles = plan.has_value();
  if (plan) {
    state->tiles = DeviceTilesBothWays(*plan, mask.shape(), own, stream);
  } else {
    const Mask attended = own.causal ? restrict_causal(mask, context) : mask;
    state->by_row = WalkedLists(attended, stream, context);
    state->by_key = WalkedLists(transpose(attended, context), stream, context);
  }
  state_ = std::move(state);
}

BackwardPlan::BackwardPlan(const AttentionInputs& inputs, const DevicePattern& pattern, Stream stream,
                           const AttentionOptions& options) {
  auto state = State::started(inputs, options, stream);
  const PlannedInputs& own = state->made_for;
  if (!tiles_serve(own, pattern))
    throw DeviceError(
        "attention_backward: over a mask that is on the GPU, gradients need F16 or BF16, head_dim 64 or "
        "128, 16 rows to a KV head and no p; give a Mask");
  state->uses_tiles = true;
  state->tiles = DeviceTilesBothWays(pattern, own, stream);
  state_ = std::move(state);
}

void BackwardPlan::run(const AttentionInputs& inputs, const TensorView& output, const float* lse,
                       const TensorView& d_output, float* d_queries, float* d_keys, float* d_values,
                       Stream stream) const {
  const State& own = *state_;
  const PlannedInputs& made_for = own.made_for;
  made_for.require(inputs);
  for (const auto& [view, name] :
       {std::pair<const TensorView*, const char*>{&output, "output"}, {&d_output, "d_output"}}) {
    require_on(*view, Device::Kind::cuda, name);
    if (view->rank != 4 || view->shape != inputs.queries.shape || view->dtype != made_for.dtype)
      throw ShapeError(std::string("attention_backward: ") + name + " " + view->describe() + " is not of queries " +
                       inputs.queries.describe());
    require_aligned(*view, name);
  }
  auto* const native = static_cast<cudaStream_t>(stream);
  const auto fill = [&](auto problem) {
    static_cast<BackwardInputs&>(problem) = backward_inputs(inputs, output, d_output);
    problem.soft_cap = own.soft_cap;
    problem.lse = lse;
    problem.delta = own.delta.as<float>();
    problem.d_queries = d_queries;
    problem.d_keys = d_keys;
    problem.d_values = d_values;
    return problem;
  };
  if (own.uses_tiles) {
    auto problem = fill(TileBackwardProblem{});
    problem.plan = own.tiles.by_row.lists();
    problem.starts = own.tiles.starts.as<Index>();
    problem.tiles_of_keys = own.tiles.tiles_of_keys.as<TileOfKeys>();
    const Index key_blocks = made_for.batch * made_for.kv_heads * ((made_for.keys + kKeyBlock - 1) / kKeyBlock);
    const auto run_both = [&]<class T, int head_dim>() {
      launch<T, head_dim, false>(problem, own.tiles.by_row.count(), native);
      launch<T, head_dim, true>(problem, key_blocks, native);
    };
    const auto of_type = [&]<class T>() {
      made_for.head_dim == 64 ? run_both.template operator()<T, 64>() : run_both.template operator()<T, 128>();
    };
    made_for.dtype == DType::f16 ? of_type.template operator()<Half>() : of_type.template operator()<BFloat16>();
    return check_launch("attention_backward");
  }
  auto problem = fill(BackwardProblem{});
  problem.by_row = own.by_row.lists();
  problem.by_key = own.by_key.lists();
  const auto row_blocks = static_cast<unsigned>(made_for.rows());
  const auto key_blocks = static_cast<unsigned>(made_for.batch * made_for.kv_heads * made_for.keys);
  dispatch_head_dim(made_for.dtype, made_for.head_dim, [&]<class T, int head_dim>() {
    if (row_blocks > 0) backward_kernel<T, head_dim, false><<<row_blocks, kBackwardThreads, 0, native>>>(problem);
    if (key_blocks > 0) backward_kernel<T, head_dim, true><<<key_blocks, kBackwardThreads, 0, native>>>(problem);
  });
  check_launch("attention_backward");
}

bool BackwardPlan::serves_patterns(const AttentionInputs& inputs) {
  return tiles_serve(PlannedInputs::of(inputs, AttentionOptions()));
}

bool BackwardPlan::uses_tiles() const { return state_->uses_tiles; }

}  // namespace reticle::cuda
