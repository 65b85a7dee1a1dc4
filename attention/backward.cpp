#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <span>
#include <string>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/backward_kernel.hpp>
#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/row_kernel.hpp>
#include <reticle/attention/tile_blocks.hpp>
#include <reticle/core/cuda/tensor.hpp>

namespace reticle {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Number of partial sums of the keys' gradients, over all KV heads together. It sets the number of tasks, whatever the
/// number of threads, and costs as many copies of the gradients.
constexpr Index kPartialSums = 8;

/// Gradients with respect to the keys (keys, d) and values (keys, dv) of one KV head, from some of its tiles.
struct KeyGradients {
  Array<float> keys, values;
};

/// Runs the tiles of one task.
class TileGradients {
 public:
  TileGradients(const AttentionInputs& inputs, const Mask& mask, const TensorView& output, const TensorView& lse,
                const TensorView& d_output, const AttentionOptions& options)
      : inputs_(inputs),
        output_(output),
        lse_(lse),
        d_output_(d_output),
        options_(options),
        planner_(inputs, mask),
        blocks_(options.soft_cap, Bf16Product::exact),
        tile_(inputs.head_dim(), inputs.values.size(3)),
        d_sink_(options.sink_logits.size(), 0) {}

  /// Adds the tile's key and value gradients to `to`, and writes the rows' d_queries (d each, C order of all rows).
  void run(const TileRows& rows, KeyGradients& to, float* d_queries) {
    const Index d = inputs_.head_dim(), dv = inputs_.values.size(3), count = rows.count();
    const RowId first = rows.row(0);
    const TensorView keys = head_matrix(inputs_.keys, first.batch, inputs_.kv_head(first.head)),
                     values = head_matrix(inputs_.values, first.batch, inputs_.kv_head(first.head));
    queries_.resize(static_cast<std::size_t>(count * d));
    d_outputs_.resize(static_cast<std::size_t>(count * dv));
    tile_.reset(count);
    for (Index r = 0; r < count; ++r) load(rows.row(r), r);

    const TilePlan& plan = planner_.plan(rows);
    blocks_.start(plan, count, keys, values, bias_);
    for (TileBlock block; blocks_.read(block);) {
      tile_.fold(block);
      const std::span<const std::int32_t> numbers = blocks_.keys();
      for (Index i = 0; i < block.count; ++i) {
        const std::int32_t key = numbers[static_cast<std::size_t>(i)];
        add_scaled(tile_.d_keys(i), 1, d, to.keys.data() + key * d);
        add_scaled(tile_.d_values(i), 1, dv, to.values.data() + key * dv);
      }
    }
    for (Index r = 0; r < count; ++r) {
      const RowId row = rows.row(r);
      float* const d_query =
          d_queries + ((row.batch * inputs_.heads() + row.head) * inputs_.queries_length() + row.query) * d;
      std::fill_n(d_query, d, 0.0f);
      tile_.add_d_query(r, {d_query, static_cast<std::size_t>(d)});
      gather(plan, r, keys, values, to, d_query);
      for (Index i = 0; i < d; ++i) d_query[i] *= inputs_.scaling;  // the kernels' queries are scaled
    }
  }

  const std::vector<double>& d_sink() const { return d_sink_; }

 private:
  std::span<float> query(Index r) {
    return std::span(queries_).subspan(static_cast<std::size_t>(r * inputs_.head_dim()),
                                       static_cast<std::size_t>(inputs_.head_dim()));
  }
  std::span<float> d_output(Index r) {
    const auto dv = static_cast<std::size_t>(inputs_.values.size(3));
    return std::span(d_outputs_).subspan(static_cast<std::size_t>(r) * dv, dv);
  }

  void load(RowId row, Index r) {
    const auto at = static_cast<std::size_t>(r);
    load_row(head_matrix(inputs_.queries, row.batch, row.head), row.query, inputs_.scaling, query(r));
    load_row(head_matrix(d_output_, row.batch, row.head), row.query, 1, d_output(r));
    row_output_.resize(d_output(r).size());
    load_row(head_matrix(output_, row.batch, row.head), row.query, 1, row_output_);
    double delta = 0;
    for (std::size_t i = 0; i < row_output_.size(); ++i)
      delta += static_cast<double>(row_output_[i]) * static_cast<double>(d_output(r)[i]);
    row_lse_[at] = *lse_.at<float>(row.batch, row.head, row.query);
    delta_[at] = static_cast<float>(delta);
    bool finite = std::abs(delta_[at]) < kInfinity && row_lse_[at] < kInfinity;
    for (const float value : query(r)) finite &= std::abs(value) < kInfinity;
    for (const float value : d_output(r)) finite &= std::abs(value) < kInfinity;
    if (!finite && !options_.allow_non_finite)
      throw ValueError("attention_backward: the query, output, LSE or output's gradient of row (" +
                       std::to_string(row.batch) + ", " + std::to_string(row.head) + ", " + std::to_string(row.query) +
                       ") holds NaN or infinity");
    tile_.set_row(r, query(r), d_output(r), row_lse_[at], delta_[at]);
    if (inputs_.attention_mask) bias_[at].emplace(*inputs_.attention_mask, row);
    if (!d_sink_.empty() && row_lse_[at] != -kInfinity) {
      const auto head = static_cast<std::size_t>(row.head);
      d_sink_[head] -=
          std::exp(static_cast<double>(options_.sink_logits[head]) - static_cast<double>(row_lse_[at])) * delta;
    }
  }

  /// Adds the gradients through the keys that row r gathers alone.
  void gather(const TilePlan& plan, Index r, const TensorView& keys, const TensorView& values, KeyGradients& to,
              float* d_query) {
    const auto at = static_cast<std::size_t>(r);
    const Index begin = plan.rest_ptr[at], end = plan.rest_ptr[at + 1], d = inputs_.head_dim(), dv = values.size(1);
    if (row_lse_[at] == -kInfinity) return;
    for (Index step = begin; step < end; step += kKeysPerStep) {
      const Index count = std::min(kKeysPerStep, end - step);
      const std::int32_t* const indices = plan.rest.data() + step;
      scores_.resize(static_cast<std::size_t>(kKeysPerStep));
      d_weights_.resize(static_cast<std::size_t>(kKeysPerStep));
      dot_gather(query(r).data(), 1, keys, indices, count, scores_.data(), kKeysPerStep);
      dot_gather(d_output(r).data(), 1, values, indices, count, d_weights_.data(), kKeysPerStep);
      packed_.resize(static_cast<std::size_t>(kKeysPerStep * d));
      pack_rows(keys, indices, count, packed_.data());
      for (Index i = 0; i < count; ++i) {
        const auto entry = static_cast<std::size_t>(i);
        const std::int32_t key = indices[i];
        float score = scores_[entry], slope = 1;
        if (options_.soft_cap) {
          const float share = std::tanh(score / *options_.soft_cap);
          score = *options_.soft_cap * share;
          slope = 1 - share * share;
        }
        if (bias_[at]) score += (*bias_[at])(key);
        float weight = std::exp(score - row_lse_[at]);
        if (!plan.rest_inverse_p.empty()) weight *= plan.rest_inverse_p[static_cast<std::size_t>(step + i)];
        const float d_score = weight * slope * (d_weights_[entry] - delta_[at]);
        add_scaled(packed_.data() + i * d, d_score, d, d_query);
        add_scaled(query(r).data(), d_score, d, to.keys.data() + key * d);
        add_scaled(d_output(r).data(), weight, dv, to.values.data() + key * dv);
      }
    }
  }

  const AttentionInputs& inputs_;
  const TensorView &output_, &lse_, &d_output_;
  const AttentionOptions& options_;
  TilePlanner planner_;
  TileBias bias_;
  TileBlocks blocks_;
  BackwardTile tile_;
  std::array<float, kTileRows> row_lse_{}, delta_{};
  std::vector<float> queries_, d_outputs_, row_output_, scores_, d_weights_, packed_;
  std::vector<double> d_sink_;
};

}  // namespace

void require_gradient_inputs(const AttentionInputs& inputs, const TensorView& output, const TensorView& lse,
                             const TensorView& d_output) {
  require_rank(output, 4, "attention_backward: output");
  require_rank(d_output, 4, "attention_backward: d_output");
  require_rank(lse, 3, "attention_backward: lse");
  require_on(output, inputs.queries.device.kind, "attention_backward: output");
  require_on(d_output, inputs.queries.device.kind, "attention_backward: d_output");
  require_on(lse, inputs.queries.device.kind, "attention_backward: lse");
  const Index wanted[] = {inputs.batch(), inputs.heads(), inputs.queries_length(), inputs.values.size(3)};
  const auto fits = [&](const TensorView& view) { return std::equal(wanted, wanted + view.rank, view.shape.begin()); };
  if (!fits(output) || !fits(d_output) || !fits(lse) || lse.dtype != DType::f32)
    throw ShapeError("attention_backward: output " + output.describe() + ", lse " + lse.describe() + " and d_output " +
                     d_output.describe() + " are not of queries " + inputs.queries.describe() + " and values " +
                     inputs.values.describe());
}

void attention_backward_into(const AttentionInputs& inputs, const Pattern& pattern, const TensorView& output,
                             const TensorView& lse, const TensorView& d_output, float* d_queries, float* d_keys,
                             float* d_values, const AttentionOptions& options, const Context& context) {
  inputs.validate_on(Device::Kind::cuda);
  cuda::differentiate(inputs, pattern, output, lse, d_output, {d_queries, d_keys, d_values}, options, context);
}

AttentionGradients attention_backward(const AttentionInputs& inputs, const Pattern& pattern, const TensorView& output,
                                      const TensorView& lse, const TensorView& d_output,
                                      const AttentionOptions& options, const Context& context) {
  if (inputs.queries.device.kind == Device::Kind::cuda) {
    inputs.validate();
    const auto gradient_of = [&](const TensorView& tensor) {
      return cuda::empty_tensor(DType::f32, std::span(tensor.shape.data(), 4), context.stream);
    };
    AttentionGradients there{gradient_of(inputs.queries), gradient_of(inputs.keys), gradient_of(inputs.values), {}};
    const auto data = [](Tensor& gradient) { return static_cast<float*>(gradient.data()); };
    cuda::differentiate(inputs, pattern, output, lse, d_output,
                        {data(there.queries), data(there.keys), data(there.values)}, options, context);
    return there;
  }
  inputs.validate();
  const Mask mask = mask_of(pattern, inputs, context);
  if (inputs.stored)
    throw ValueError("attention_backward: expected all keys; a cache that evicted some has no gradients");
  if (is_quantised(inputs.keys.dtype) || is_quantised(inputs.values.dtype))
    throw ValueError("attention_backward: keys " + inputs.keys.describe() + " and values " + inputs.values.describe() +
                     "; expected F32, F16 or BF16, since codes have no gradients");
  require_mask_fits(inputs, mask);
  options.validate(inputs);
  require_gradient_inputs(inputs, output, lse, d_output);
  const Index batch = inputs.batch(), kv_heads = inputs.kv_heads(), keys = inputs.keys_length(), d = inputs.head_dim(),
              dv = inputs.values.size(3);
  AttentionGradients gradients{Tensor(DType::f32, {batch, inputs.heads(), inputs.queries_length(), d}),
                               Tensor(DType::f32, {batch, kv_heads, keys, d}),
                               Tensor(DType::f32, {batch, kv_heads, keys, dv}),
                               std::vector<float>(options.sink_logits.size(), 0)};
  float* const d_queries = gradients.queries.span<float>().data();
  const Index problems = batch * kv_heads;
  if (problems == 0) return gradients;
  // The tiles of a KV head are consecutive; they are split at fixed places, and the partial sums are added in order.
  const Tiling tiling(inputs, mask);
  const Index tiles = tiling.count() / problems;
  const Index parts = std::clamp<Index>(kPartialSums / problems, 1, std::max<Index>(1, tiles));
  std::vector<KeyGradients> sums(static_cast<std::size_t>(problems * parts));
  std::vector<std::vector<double>> d_sinks(sums.size());
  context.for_each_chunk(problems * parts, 1, [&](Index, Index task, Index) {
    KeyGradients& to = sums[static_cast<std::size_t>(task)];
    to.keys.assign(static_cast<std::size_t>(keys * d), 0.0f);
    to.values.assign(static_cast<std::size_t>(keys * dv), 0.0f);
    TileGradients run(inputs, mask, output, lse, d_output, options);
    // Each task takes every parts-th tile: under causality later tiles cost more.
    const Index problem = task / parts;
    for (Index tile = task % parts; tile < tiles; tile += parts) {
      if (context.stop.stop_requested()) throw Cancelled();  // a task takes seconds
      run.run(tiling.rows(problem * tiles + tile), to, d_queries);
    }
    d_sinks[static_cast<std::size_t>(task)] = run.d_sink();
  });
  context.for_each_chunk(problems, 1, [&](Index, Index problem, Index) {
    float* const d_keys = gradients.keys.span<float>().data() + problem * keys * d;
    float* const d_values = gradients.values.span<float>().data() + problem * keys * dv;
    std::fill_n(d_keys, keys * d, 0.0f);
    std::fill_n(d_values, keys * dv, 0.0f);
    for (Index part = 0; part < parts; ++part) {
      const KeyGradients& from = sums[static_cast<std::size_t>(problem * parts + part)];
      add_scaled(from.keys.data(), 1, keys * d, d_keys);
      add_scaled(from.values.data(), 1, keys * dv, d_values);
    }
  });
  for (std::size_t head = 0; head < gradients.sink_logits.size(); ++head) {
    double sum = 0;
    for (const std::vector<double>& part : d_sinks) sum += part[head];
    gradients.sink_logits[head] = static_cast<float>(sum);
  }
  const auto require_finite = [&](const Tensor& gradient, const char* name) {
    const auto values = gradient.span<float>();
    const auto bad =
        std::find_if_not(values.begin(), values.end(), [](float value) { return std::abs(value) < kInfinity; });
    if (bad == values.end() || options.allow_non_finite) return;
    throw ValueError("attention_backward: the gradient by the " + std::string(name) + " is not finite at element " +
                     std::to_string(bad - values.begin()) +
                     ": queries, keys, values or mask hold NaN or infinity, or scores overflow");
  };
  require_finite(gradients.queries, "queries");
  require_finite(gradients.keys, "keys");
  require_finite(gradients.values, "values");
  return gradients;
}

}  // namespace reticle
