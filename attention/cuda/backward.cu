#include <reticle/attention/cuda/backward.hpp>
#include <reticle/attention/cuda/backward_block.hpp>
#include <reticle/attention/cuda/planned_inputs.cuh>
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

struct DeviceLists {
  Buffer ptr, indices, p;

  DeviceLists(const Mask& mask, Stream stream, const Context& context) {
    const Csr csr = to_csr(mask, context);
    ptr = Buffer::copy_of(csr.row_ptr.span(), stream);
    indices = Buffer::copy_of(csr.indices.span(), stream);
    p = Buffer::copy_of(csr.p.span(), stream);
  }
  WalkLists lists() const { return {ptr.as<Index>(), indices.as<std::int32_t>(), p.as<float>()}; }
};

}  // namespace

struct BackwardPlan::State {
  PlannedInputs made_for;
  float soft_cap;
  DeviceLists by_row, by_key;
  Buffer delta;
};

BackwardPlan::BackwardPlan(const AttentionInputs& inputs, const Mask& mask, Stream stream,
                           const AttentionOptions& options, const Context& context) {
  const PlannedInputs made_for = PlannedInputs::of(inputs, options);
  require_mask_fits(inputs, mask);
  const Mask attended = made_for.causal ? restrict_causal(mask, context) : mask;
  state_ = std::make_shared<const State>(
      State{made_for, options.soft_cap.value_or(0), DeviceLists(attended, stream, context),
            DeviceLists(transpose(attended, context), stream, context),
            Buffer(static_cast<std::size_t>(made_for.rows()) * sizeof(float), stream)});
}

void BackwardPlan::run(const AttentionInputs& inputs, const TensorView& output, const float* lse,
                       const TensorView& d_output, float* d_queries, float* d_keys, float* d_values,
                       Stream stream) const {
  const State& own = *state_;
  const PlannedInputs& made_for = own.made_for;
  made_for.require(inputs);
  for (const auto& [view, name] :
       {std::pair<const TensorView*, const char*>{&output, "output"}, {&d_output, "d_output"}}) {
    if (view->rank != 4 || view->shape != inputs.queries.shape || view->dtype != made_for.dtype)
      throw ShapeError(std::string("attention_backward: ") + name + " " + view->describe() + " is not of queries " +
                       inputs.queries.describe());
    require_aligned(*view, name);
  }
  BackwardProblem problem;
  problem.queries = inputs.queries.data;
  problem.keys = inputs.keys.data;
  problem.values = inputs.values.data;
  problem.output = output.data;
  problem.d_output = d_output.data;
  problem.query_strides = strides_of(inputs.queries);
  problem.key_strides = strides_of(inputs.keys);
  problem.value_strides = strides_of(inputs.values);
  problem.output_strides = strides_of(output);
  problem.d_output_strides = strides_of(d_output);
  problem.heads = static_cast<int>(made_for.heads);
  problem.kv_heads = static_cast<int>(made_for.kv_heads);
  problem.rows = static_cast<int>(made_for.queries);
  problem.key_count = static_cast<int>(made_for.keys);
  problem.by_row = own.by_row.lists();
  problem.by_key = own.by_key.lists();
  problem.scaling = inputs.scaling;
  problem.soft_cap = own.soft_cap;
  problem.lse = lse;
  problem.delta = own.delta.as<float>();
  problem.d_queries = d_queries;
  problem.d_keys = d_keys;
  problem.d_values = d_values;
  const auto row_blocks = static_cast<unsigned>(made_for.rows());
  const auto key_blocks = static_cast<unsigned>(made_for.batch * made_for.kv_heads * made_for.keys);
  auto* const native = static_cast<cudaStream_t>(stream);
  dispatch_head_dim(made_for.dtype, made_for.head_dim, [&]<class T, int head_dim>() {
    if (row_blocks > 0) backward_kernel<T, head_dim, false><<<row_blocks, kBackwardThreads, 0, native>>>(problem);
    if (key_blocks > 0) backward_kernel<T, head_dim, true><<<key_blocks, kBackwardThreads, 0, native>>>(problem);
  });
  check_launch("attention_backward");
}

}  // namespace reticle::cuda
