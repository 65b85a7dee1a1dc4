#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/backward.hpp>
#include <reticle/attention/cuda/backward_tile_block.hpp>
#include <reticle/attention/cuda/device_plan.cuh>
#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/tensor.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>

namespace reticle::cuda {
namespace {

template <class T, int head_dim, bool by_key>
struct Differentiate {
  static constexpr int kThreads = kBackwardThreads, kBlocks = 4;
  using Shared = BackwardShared<head_dim>;
  BackwardProblem problem;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index number) const {
    differentiate<T, head_dim, by_key>(block, shared, problem, static_cast<int>(number));
  }
};

template <class T, int head_dim, bool by_key, bool biased>
struct DifferentiateTile {
  static constexpr int kThreads = kBackwardThreads, kBlocks = biased ? 2 : 1;  // 1 spills a register on 8.0
  using Shared = BackwardTileShared<T, head_dim>;
  static_assert(sizeof(Shared) <= kMaxSharedMemory);
  TileBackwardProblem problem;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index number) const {
    differentiate_tile<T, head_dim, by_key, biased>(block, shared, problem, static_cast<int>(number));
  }
};

/// A mask's rows as lists in device memory.
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

constexpr const char* kWhat = "attention_backward";

template <class T, int head_dim, bool by_key>
void differentiate_tiles(const TileBackwardProblem& problem, Index blocks, Stream stream) {
  if (problem.bias.data == nullptr) {
    launch(DifferentiateTile<T, head_dim, by_key, false>{problem}, blocks, stream, kWhat);
  } else {
    launch(DifferentiateTile<T, head_dim, by_key, true>{problem}, blocks, stream, kWhat);
  }
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
    const PlannedInputs made_for = PlannedInputs::of(inputs);
    PlannedInputs::require_options(inputs, options);
    return std::make_shared<State>(State{made_for, options.soft_cap.value_or(0),
                                         Buffer(static_cast<std::size_t>(made_for.rows()) * sizeof(float), stream)});
  }
};

bool BackwardPlan::serves(const AttentionInputs& inputs, const Pattern& pattern) {
  const Mask* const mask = std::get_if<Mask>(&pattern);
  return (mask != nullptr && mask->on_device() == nullptr) || tiles_serve(PlannedInputs::of(inputs), pattern);
}

BackwardPlan::BackwardPlan(const AttentionInputs& inputs, const Pattern& pattern, Stream stream,
                           const AttentionOptions& options, const Context& context) {
  auto state = State::started(inputs, options, stream);
  const PlannedInputs& planned = state->made_for;
  const Mask* const mask = std::get_if<Mask>(&pattern);
  if (mask != nullptr) require_mask_fits(inputs, *mask);
  if (!serves(inputs, pattern))
    throw DeviceError(
        "attention_backward: over a mask that is on the GPU, gradients need F16 or BF16, head_dim 64 or "
        "128, 16 rows to a KV head and no p; give a Mask of the host");
  if (mask == nullptr || mask->on_device() != nullptr) {
    state->uses_tiles = true;
    state->tiles = DeviceTilesBothWays(pattern, planned, stream);
    state_ = std::move(state);
    return;
  }
  std::optional<BlockPlan> plan;
  if (tiles_serve(planned)) plan = plan_blocks(*mask, planned.kv_heads, planned.causal, kTileRowCount, context);
  state->uses_tiles = plan.has_value();
  if (plan) {
    state->tiles = DeviceTilesBothWays(*plan, mask->shape(), planned, stream);
  } else {
    const Mask attended = planned.causal ? restrict_causal(*mask, context) : *mask;
    state->by_row = WalkedLists(attended, stream, context);
    state->by_key = WalkedLists(transpose(attended, context), stream, context);
  }
  state_ = std::move(state);
}

void BackwardPlan::run(const AttentionInputs& inputs, const TensorView& output, const float* lse,
                       const TensorView& d_output, float* d_queries, float* d_keys, float* d_values,
                       Stream stream) const {
  const State& state = *state_;
  const PlannedInputs& made_for = state.made_for;
  made_for.require(inputs);
  for (const auto& [view, name] :
       {std::pair<const TensorView*, const char*>{&output, "output"}, {&d_output, "d_output"}}) {
    require_on(*view, Device::Kind::cuda, name);
    if (view->rank != 4 || view->shape != inputs.queries.shape || view->dtype != made_for.dtype)
      throw ShapeError(std::string("attention_backward: ") + name + " " + view->describe() + " is not of queries " +
                       inputs.queries.describe());
    require_aligned(*view, name);
  }
  const auto fill = [&](auto problem) {
    static_cast<BackwardInputs&>(problem) = backward_inputs(inputs, output, d_output);
    problem.soft_cap = state.soft_cap;
    problem.lse = lse;
    problem.delta = state.delta.as<float>();
    problem.d_queries = d_queries;
    problem.d_keys = d_keys;
    problem.d_values = d_values;
    return problem;
  };
  if (state.uses_tiles) {
    auto problem = fill(TileBackwardProblem{});
    problem.plan = state.tiles.by_row.lists();
    problem.starts = state.tiles.starts.as<Index>();
    problem.tiles_of_keys = state.tiles.tiles_of_keys.as<TileOfKeys>();
    const Index key_blocks = made_for.batch * made_for.kv_heads * ((made_for.keys + kKeyBlock - 1) / kKeyBlock);
    const auto run_both = [&]<class T, int head_dim>() {
      differentiate_tiles<T, head_dim, false>(problem, state.tiles.by_row.count(), stream);
      differentiate_tiles<T, head_dim, true>(problem, key_blocks, stream);
    };
    const auto run_type = [&]<class T>() {
      made_for.head_dim == 64 ? run_both.template operator()<T, 64>() : run_both.template operator()<T, 128>();
    };
    made_for.dtype == DType::f16 ? run_type.template operator()<Half>() : run_type.template operator()<BFloat16>();
    return;
  }
  auto problem = fill(BackwardProblem{});
  problem.by_row = state.by_row.lists();
  problem.by_key = state.by_key.lists();
  dispatch_head_dim(made_for.dtype, made_for.head_dim, [&]<class T, int head_dim>() {
    launch(Differentiate<T, head_dim, false>{problem}, made_for.rows(), stream, kWhat);
    launch(Differentiate<T, head_dim, true>{problem}, made_for.batch * made_for.kv_heads * made_for.keys, stream,
           kWhat);
  });
}

bool BackwardPlan::uses_tiles() const { return state_->uses_tiles; }

void differentiate(const AttentionInputs& inputs, const Pattern& pattern, const TensorView& output,
                   const TensorView& lse, const TensorView& d_output, const GradientMemory& to,
                   const AttentionOptions& options, const Context& context) {
  if (!options.sink_logits.empty())
    throw DeviceError("attention_backward: sink logits are not supported on a GPU; compute these gradients on the CPU");
  require_gradient_inputs(inputs, output, lse, d_output);
  const Stream stream = context.stream;
  const FittedInputs fitted(inputs, stream);
  Tensor output_copy, upstream_copy, lse_copy;
  const TensorView result = fitted.fit(output, output_copy), upstream = fitted.fit(d_output, upstream_copy);
  if (!lse.contiguous()) lse_copy = copy_to(lse, lse.device, context);
  const auto* const logs = static_cast<const float*>(lse.contiguous() ? lse.data : lse_copy.view().data);
  const AttentionInputs& planned = fitted.inputs();
  const BackwardPlan plan(planned,
                          BackwardPlan::serves(planned, pattern) ? pattern : Pattern(mask_of(pattern, inputs, context)),
                          stream, options, context);
  FittedResult d_queries(DType::f32, planned.queries, inputs.queries.size(3), to.queries, stream),
      d_keys(DType::f32, planned.keys, inputs.keys.size(3), to.keys, stream),
      d_values(DType::f32, planned.values, inputs.values.size(3), to.values, stream);
  const auto data = [](FittedResult& gradient) { return static_cast<float*>(gradient.data()); };
  plan.run(planned, result, logs, upstream, data(d_queries), data(d_keys), data(d_values), stream);
  d_queries.finish();
  d_keys.finish();
  d_values.finish();
}

}  // namespace reticle::cuda
