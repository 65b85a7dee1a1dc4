#include <algorithm>
#include <cmath>

#include <reticle/attention/executor.hpp>
#include <reticle/attention/row_kernel.hpp>
#include <reticle/attention/state.hpp>
#include <reticle/core/mask/builder.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/ops/dot.hpp>

namespace reticle {
namespace {

constexpr Index kLargestHeadDim = 256;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Computes rows one after another; one per task, so that its buffers are made once.
class RowExecutor {
 public:
  RowExecutor(const AttentionInputs& inputs, const Mask& mask, const AttentionOptions& options)
      : inputs_(inputs),
        mask_(mask),
        options_(options),
        query_(static_cast<std::size_t>(inputs.head_dim())),
        output_(static_cast<std::size_t>(inputs.values.size(3))),
        scores_(kKeysPerStep),
        inverse_p_(kKeysPerStep),
        indices_(kKeysPerStep),
        own_indices_(kKeysPerStep) {
    for (Index i = 0; i < kKeysPerStep; ++i) own_indices_[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
    if (inputs.values.stride(3) != 1) packed_values_.resize(static_cast<std::size_t>(kKeysPerStep) * output_.size());
  }

  /// Leaves the row's output in output() and returns its LSE; writes its normalised weights to `weights` if not null.
  float run(RowId row, float* weights) {
    const Index kv_head = inputs_.kv_head(row.head);
    keys_ = head_matrix(inputs_.keys, row.batch, kv_head);
    values_ = head_matrix(inputs_.values, row.batch, kv_head);
    bias_.reset();
    if (inputs_.attention_mask) bias_.emplace(*inputs_.attention_mask, row);
    load_row(head_matrix(inputs_.queries, row.batch, row.head), row.query, inputs_.scaling, query_);
    std::fill(output_.begin(), output_.end(), 0.0f);
    state_ = {};
    runs_.clear();
    mask_.row(row, runs_);

    const Index visible = inputs_.visible_keys(row.query);
    float* next_weight = weights;
    pending_ = 0;
    for (const Run& run : runs_) {
      const Index end = std::min<Index>(run.end, visible);
      for (Index key = run.begin; key < end;) {
        const Index count = std::min(end - key, kKeysPerStep - pending_);
        for (Index i = 0; i < count; ++i) {
          indices_[static_cast<std::size_t>(pending_ + i)] = static_cast<std::int32_t>(key + i);
          inverse_p_[static_cast<std::size_t>(pending_ + i)] = 1.0f / run.p;
        }
        key += count;
        pending_ += count;
        if (pending_ == kKeysPerStep) next_weight = step(next_weight);
      }
    }
    step(next_weight);
    const float lse = finish(row);
    if (weights != nullptr) normalise(weights, lse, visible);
    return lse;
  }

  const std::vector<float>& output() const { return output_; }

 private:
  /// Folds the pending keys into the state; returns where the next step's scores go.
  float* step(float* weights) {
    const Index count = std::exchange(pending_, 0);
    if (count == 0) return weights;
    float* scores = scores_.data();
    dot_gather(query_.data(), keys_, indices_.data(), count, scores);
    if (options_.soft_cap) {
      const float cap = *options_.soft_cap;
      for (Index i = 0; i < count; ++i) scores[i] = cap * std::tanh(scores[i] / cap);
    }
    if (bias_) {
      for (Index i = 0; i < count; ++i) scores[i] += (*bias_)(indices_[static_cast<std::size_t>(i)]);
    }
    if (weights != nullptr) weights = std::copy(scores, scores + count, weights);  // raw for now
    const float* inverse_p = mask_.weighted() ? inverse_p_.data() : nullptr;
    if (packed_values_.empty()) {
      fold_keys(scores, inverse_p, values_, indices_.data(), count, state_, output_.data());
    } else {
      fold_keys(scores, inverse_p, pack_values(count), own_indices_.data(), count, state_, output_.data());
    }
    return weights;
  }

  TensorView pack_values(Index count) {
    const auto dv = static_cast<Index>(output_.size());
    dispatch_float(values_.dtype, "values", [&]<class T>() {
      for (Index i = 0; i < count; ++i) {
        for (Index j = 0; j < dv; ++j)
          packed_values_[static_cast<std::size_t>(i * dv + j)] =
              to_float(*values_.at<T>(indices_[static_cast<std::size_t>(i)], j));
      }
    });
    return {packed_values_.data(), DType::f32, {count, dv}};
  }

  float finish(RowId row) {
    if (!options_.sink_logits.empty()) {
      const float sink = options_.sink_logits[static_cast<std::size_t>(row.head)];
      const float max = std::max(state_.max, sink);
      if (max != -kInfinity) {
        const float rescale = std::exp(state_.max - max);
        state_.sum = state_.sum * rescale + std::exp(sink - max);
        state_.max = max;
        for (float& value : output_) value *= rescale;
      }
    }
    if (state_.sum == 0) return -kInfinity;
    const float lse = state_.max + std::log(state_.sum);
    bool finite = std::abs(lse) < kInfinity;
    for (float& value : output_) {
      value /= state_.sum;
      finite &= std::abs(value) < kInfinity;
    }
    if (!finite && !options_.allow_non_finite)
      throw ValueError(
          "attention: the result of row (" + std::to_string(row.batch) + ", " + std::to_string(row.head) + ", " +
          std::to_string(row.query) +
          ") is not finite: its queries, keys, values or mask hold NaN or infinity, or its scores overflow");
    return lse;
  }

  void normalise(float* weights, float lse, Index visible) const {
    for (const Run& run : runs_) {
      for (Index key = run.begin; key < run.end; ++key, ++weights)
        *weights = key < visible && lse != -kInfinity ? std::exp(*weights - lse) / run.p : 0.0f;
    }
  }

  const AttentionInputs& inputs_;
  const Mask& mask_;
  const AttentionOptions& options_;
  TensorView keys_, values_;
  std::optional<AttentionMaskRow> bias_;
  std::vector<float> query_, output_, scores_, inverse_p_, packed_values_;
  std::vector<std::int32_t> indices_, own_indices_;
  std::vector<Run> runs_;
  Index pending_ = 0;
  RowState state_;
};

void validate(const AttentionInputs& inputs, const Mask& mask, const AttentionOptions& options) {
  inputs.validate();
  if (!mask.shape().same_logical(inputs.shape()))
    throw ShapeError("attention: mask " + mask.shape().describe() + " does not fit queries " +
                     inputs.queries.describe() + " and keys " + inputs.keys.describe() + "; needed is a mask of " +
                     inputs.shape().describe());
  for (const auto& [width, name] :
       {std::pair{inputs.head_dim(), "queries"}, std::pair{inputs.values.size(3), "values"}}) {
    if (width > kLargestHeadDim)
      throw ShapeError(std::string(name) + ": head size is " + std::to_string(width) + "; at most " +
                       std::to_string(kLargestHeadDim) + " is supported");
  }
  if (!options.sink_logits.empty() && static_cast<Index>(options.sink_logits.size()) != inputs.heads())
    throw ShapeError("sink_logits: has " + std::to_string(options.sink_logits.size()) +
                     " entries; needed is one for each of " + std::to_string(inputs.heads()) + " heads");
  if (options.soft_cap && !(*options.soft_cap > 0 && *options.soft_cap < kInfinity))
    throw ValueError("soft_cap is " + std::to_string(*options.soft_cap) + "; needed is a finite number > 0");
}

}  // namespace

AttentionResult attention(const AttentionInputs& inputs, const Mask& mask, const AttentionOptions& options,
                          const Context& context) {
  validate(inputs, mask, options);
  const MaskShape shape = inputs.shape();
  const Index dv = inputs.values.size(3);
  AttentionResult result{Tensor(inputs.queries.dtype, {shape.batch, shape.heads, shape.queries, dv}),
                         Tensor(DType::f32, {shape.batch, shape.heads, shape.queries}), std::nullopt};
  if (options.weights) {
    Csr csr = to_csr(mask, context);
    result.weights.emplace();
    result.weights->values.resize(static_cast<std::size_t>(csr.indices.size()));
    result.weights->row_ptr = std::move(csr.row_ptr);
    result.weights->indices = std::move(csr.indices);
  }
  const std::span<float> lse = result.lse.span<float>();
  context.for_each_chunk(shape.rows(), rows_per_chunk(shape.rows()), [&](Index, Index begin, Index end) {
    RowExecutor executor(inputs, mask, options);
    for (Index row = begin; row < end; ++row) {
      float* weights = result.weights ? result.weights->values.data() + result.weights->row_ptr[row] : nullptr;
      lse[static_cast<std::size_t>(row)] = executor.run(shape.row_of_logical(row), weights);
      dispatch_float(inputs.queries.dtype, "output", [&]<class T>() {
        std::transform(executor.output().begin(), executor.output().end(),
                       static_cast<T*>(result.output.data()) + row * dv, from_float<T>);
      });
    }
  });
  return result;
}

AttentionResult merge(const AttentionResult& a, const AttentionResult& b) {
  const TensorView& left = a.output.view();
  const TensorView& right = b.output.view();
  if (left.shape != right.shape || left.dtype != right.dtype)
    throw ShapeError("merge: attention results " + left.describe() + " and " + right.describe() +
                     "; needed is one shape and dtype");
  AttentionResult result{Tensor(left.dtype, {left.size(0), left.size(1), left.size(2), left.size(3)}),
                         Tensor(DType::f32, {left.size(0), left.size(1), left.size(2)}), std::nullopt};
  const auto lse_a = a.lse.span<float>(), lse_b = b.lse.span<float>();
  const auto lse = result.lse.span<float>();
  const auto dv = static_cast<std::size_t>(left.size(3));
  dispatch_float(left.dtype, "output", [&]<class T>() {
    const auto* from_a = static_cast<const T*>(left.data);
    const auto* from_b = static_cast<const T*>(right.data);
    auto* to = static_cast<T*>(result.output.data());
    for (std::size_t row = 0; row < lse.size(); ++row) {
      const StateMerge merged = merge_states(lse_a[row], lse_b[row]);
      lse[row] = merged.lse;
      for (std::size_t i = row * dv; i < (row + 1) * dv; ++i)
        to[i] = from_float<T>(merged.a * to_float(from_a[i]) + merged.b * to_float(from_b[i]));
    }
  });
  return result;
}

}  // namespace reticle
