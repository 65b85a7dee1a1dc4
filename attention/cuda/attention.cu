#include <algorithm>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/core/cuda/check.cuh>
#include <reticle/core/cuda/tensors.cuh>
#include <reticle/core/cuda/top_k.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>

namespace reticle::cuda {
namespace {

template <class T, int head_dim>
__global__ void __launch_bounds__(kDecodeThreads) decode_kernel(const __grid_constant__ DecodeProblem problem) {
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

void require_readable(const AttentionInputs& inputs) {
  if (inputs.attention_mask) throw DeviceError("attention: an attention mask on a GPU is not built; use the mask");
  for (const auto& [view, name] : {std::pair<const TensorView*, const char*>{&inputs.queries, "queries"},
                                   {&inputs.keys, "keys"},
                                   {&inputs.values, "values"}}) {
    if (view->dtype != inputs.queries.dtype)
      throw DeviceError(std::string(name) + ": on a GPU all tensors have one dtype");
    require_aligned(*view, name);
  }
}

/// Blocks to a row that keep the device busy, of no fewer than 64 entries each.
int parts_for(Index rows, Index entries_of_row, int multiprocessors) {
  if (rows == 0) return 1;
  const Index wanted = (Index{8} * multiprocessors + rows - 1) / rows;
  return static_cast<int>(std::clamp<Index>(wanted, 1, std::max<Index>(1, entries_of_row / 64)));
}

}  // namespace

AttentionPlan::AttentionPlan(const AttentionInputs& inputs, const Mask& mask, Stream stream,
                             const AttentionOptions& options, const Context& context)
    : batch_(inputs.batch()),
      heads_(inputs.heads()),
      kv_heads_(inputs.kv_heads()),
      queries_(inputs.queries_length()),
      keys_(inputs.keys_length()),
      head_dim_(inputs.head_dim()),
      dtype_(inputs.queries.dtype),
      causal_(inputs.causal),
      soft_cap_(options.soft_cap.value_or(0)) {
  inputs.validate();
  options.validate(inputs);
  require_mask_fits(inputs, mask);
  if (options.weights) throw DeviceError("attention: weights on a GPU are not built");
  sink_logits_ = Buffer::copy_of(options.sink_logits, stream);
  const bool narrow = dtype_ != DType::f32;
  if ((head_dim_ != 64 && head_dim_ != 128 && head_dim_ != 256) || inputs.values.size(3) != head_dim_)
    throw DeviceError("attention: head_dim is " + std::to_string(head_dim_) + ", value_dim " +
                      std::to_string(inputs.values.size(3)) + "; on a GPU both are 64, 128 or 256, and equal");
  const Index rows = batch_ * heads_ * queries_;
  // A tile of few rows wastes the tensor cores, and reads no less than lists do.
  constexpr Index kFewRows = 16;
  if (narrow && head_dim_ < 256 && !mask.weighted() && queries_ * inputs.group() >= kFewRows) {
    const BlockPlan plan = plan_blocks(mask, kv_heads_, causal_, context);
    tiles_ = static_cast<int>(plan.tiles.size());
    tile_list_ = Buffer::copy_of(std::span<const Tile>(plan.tiles), stream);
    blocks_ = Buffer::copy_of(std::span<const KeyBlock>(plan.blocks), stream);
    bits_ = Buffer::copy_of(std::span<const std::uint64_t>(plan.bits), stream);
    return;
  }
  const Csr csr = to_csr(causal_ ? restrict_causal(mask, context) : mask);
  row_ptr_ = Buffer::copy_of(csr.row_ptr.span(), stream);
  indices_ = Buffer::copy_of(csr.indices.span(), stream);
  p_ = Buffer::copy_of(csr.p.span(), stream);
  const Index mean = rows == 0 ? 0 : static_cast<Index>(csr.indices.size()) / rows;
  parts_ = parts_for(rows, mean, multiprocessors());
  if (parts_ > 1) {
    workspace_ = Buffer(static_cast<std::size_t>(rows * parts_ * (head_dim_ + 2)) * sizeof(float), stream);
    arrived_ = Buffer::zeros(static_cast<std::size_t>(rows) * sizeof(int), stream);
  }
}

void AttentionPlan::run(const AttentionInputs& inputs, void* output, float* lse, Stream stream) const {
  inputs.validate();
  if (inputs.batch() != batch_ || inputs.heads() != heads_ || inputs.kv_heads() != kv_heads_ ||
      inputs.queries_length() != queries_ || inputs.keys_length() != keys_ || inputs.head_dim() != head_dim_ ||
      inputs.queries.dtype != dtype_ || inputs.causal != causal_)
    throw ShapeError("attention: queries " + inputs.queries.describe() + " and keys " + inputs.keys.describe() +
                     " are not those that the plan was made for");
  require_readable(inputs);
  if (batch_ * heads_ * queries_ == 0) return;
  auto* const native = static_cast<cudaStream_t>(stream);
  if (uses_tiles()) {
    auto problem = problem_of<TileProblem>(inputs, output, lse, soft_cap_, sink_logits_.as<float>());
    problem.key_count = static_cast<int>(keys_);
    problem.tiles = tile_list_.as<Tile>();
    problem.blocks = blocks_.as<KeyBlock>();
    problem.bits = bits_.as<std::uint64_t>();
    const auto launch_of = [&]<class T>() {
      head_dim_ == 64 ? launch<T, 64>(problem, tiles_, native) : launch<T, 128>(problem, tiles_, native);
    };
    dtype_ == DType::f16 ? launch_of.template operator()<Half>() : launch_of.template operator()<BFloat16>();
    return check_launch("attention over tiles");
  }
  auto problem = problem_of<DecodeProblem>(inputs, output, lse, soft_cap_, sink_logits_.as<float>());
  problem.batch = static_cast<int>(batch_);
  problem.row_ptr = row_ptr_.as<Index>();
  problem.indices = indices_.as<std::int32_t>();
  problem.p = p_.as<float>();
  problem.parts = parts_;
  problem.workspace = workspace_.as<float>();
  problem.arrived = arrived_.as<int>();
  dispatch_head_dim(dtype_, head_dim_, [&]<class T, int head_dim>() { launch<T, head_dim>(problem, native); });
  check_launch("attention over lists");
}

Index AttentionPlan::bytes() const {
  std::size_t bytes = 0;
  for (const Buffer* buffer :
       {&sink_logits_, &row_ptr_, &indices_, &p_, &workspace_, &arrived_, &tile_list_, &blocks_, &bits_})
    bytes += buffer->bytes();
  return static_cast<Index>(bytes);
}

TopKAttention::TopKAttention(Index rows, Index most_keys, const KeptKeys& kept, Index heavy, Stream stream)
    : rows_(rows), most_keys_(most_keys), heavy_(heavy), kept_(kept), multiprocessors_(multiprocessors()) {
  const Index chosen = kept.sinks + kept.window + heavy;
  if (rows < 1 || most_keys < 1 || kept.sinks < 0 || kept.window < 0 || heavy < 0 || chosen < 1)
    throw ValueError("top-k attention: " + std::to_string(rows) + " rows of " + std::to_string(most_keys) + " keys, " +
                     std::to_string(kept.sinks) + " sinks, a window of " + std::to_string(kept.window) + " and " +
                     std::to_string(heavy) + " more: needed are rows and keys, and something chosen");
  const auto list = static_cast<std::size_t>(std::min(chosen, most_keys));
  const auto count = static_cast<std::size_t>(rows);
  scores_ = Buffer(count * static_cast<std::size_t>(most_keys) * sizeof(float), stream);
  indices_ = Buffer(count * list * sizeof(std::int32_t), stream);
  counts_ = Buffer(count * sizeof(std::int32_t), stream);
  const auto parts = static_cast<std::size_t>(parts_for(rows, static_cast<Index>(list), multiprocessors_));
  workspace_ = Buffer(count * parts * (256 + 2) * sizeof(float), stream);
  arrived_ = Buffer::zeros(count * sizeof(int), stream);
}

void TopKAttention::run(const AttentionInputs& inputs, void* output, float* lse, Stream stream,
                        const AttentionOptions& options) const {
  inputs.validate();
  options.validate(inputs);
  require_readable(inputs);
  const Index keys = inputs.keys_length(), rows = inputs.batch() * inputs.heads();
  if (inputs.queries_length() != 1 || rows > rows_ || keys > most_keys_ || inputs.values.size(3) != inputs.head_dim())
    throw ShapeError("top-k attention: queries " + inputs.queries.describe() + ", keys " + inputs.keys.describe() +
                     "; needed is one query of at most " + std::to_string(rows_) + " heads, and at most " +
                     std::to_string(most_keys_) + " keys");
  if (!options.sink_logits.empty() || options.weights)
    throw DeviceError("top-k attention: sink logits and weights are not built");
  if (rows == 0 || keys == 0) return;
  dot_scores(inputs, kept_, scores_.as<float>(), stream);
  const Index chosen = std::min(keys, kept_.sinks + kept_.window) + heavy_, list = std::min(keys, chosen);
  top_k(scores_.as<float>(), rows, keys, list, indices_.as<std::int32_t>(), counts_.as<std::int32_t>(), stream);
  auto problem = problem_of<DecodeProblem>(inputs, output, lse, options.soft_cap.value_or(0), nullptr);
  problem.batch = static_cast<int>(inputs.batch());
  problem.indices = indices_.as<std::int32_t>();
  problem.counts = counts_.as<std::int32_t>();
  problem.list_size = list;
  problem.parts = parts_for(rows, list, multiprocessors_);
  problem.workspace = workspace_.as<float>();
  problem.arrived = arrived_.as<int>();
  dispatch_head_dim(inputs.queries.dtype, inputs.head_dim(),
                    [&]<class T, int head_dim>() { launch<T, head_dim>(problem, static_cast<cudaStream_t>(stream)); });
  check_launch("attention over the best keys");
}

}  // namespace reticle::cuda
