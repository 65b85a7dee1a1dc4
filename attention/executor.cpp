#include <algorithm>
#include <array>
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

/// The positions that two rows attend to with the same p.
struct SamePositions {
  static float p(float a, float b) { return a == b ? a : 0.0f; }
};

/// Below this many shared keys in all, and keys per run, looking for what rows share costs more than it saves.
constexpr Index kLeastShared = 32;

/// Computes a few rows at a time, rows of one KV head: the keys that all of them attend to, each loaded once, and then
/// what each has besides. One per task, so that its buffers are made once.
class RowsExecutor {
 public:
  RowsExecutor(const AttentionInputs& inputs, const Mask& mask, const AttentionOptions& options)
      : inputs_(inputs),
        mask_(mask),
        options_(options),
        queries_(static_cast<std::size_t>(kRowsPerStep * inputs.head_dim())),
        outputs_(static_cast<std::size_t>(kRowsPerStep * inputs.values.size(3))),
        scores_(static_cast<std::size_t>(kRowsPerStep * kKeysPerStep)),
        inverse_p_(kKeysPerStep),
        indices_(kKeysPerStep),
        own_indices_(kKeysPerStep) {
    for (Index i = 0; i < kKeysPerStep; ++i) own_indices_[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
    if (inputs.values.stride(3) != 1)
      packed_values_.resize(static_cast<std::size_t>(kKeysPerStep * inputs.values.size(3)));
  }

  /// At most kRowsPerStep rows of one KV head. Leaves the outputs in output(r) and the LSEs in lse(r). The normalised
  /// weights of a single row go to `weights`, if not null.
  void run(std::span<const RowId> rows, float* weights) {
    rows_ = rows;
    const Index kv_head = inputs_.kv_head(rows[0].head), d = inputs_.head_dim();
    keys_ = head_matrix(inputs_.keys, rows[0].batch, kv_head);
    values_ = head_matrix(inputs_.values, rows[0].batch, kv_head);
    std::fill(outputs_.begin(), outputs_.end(), 0.0f);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      bias_[r].reset();
      if (inputs_.attention_mask) bias_[r].emplace(*inputs_.attention_mask, rows[r]);
      load_row(head_matrix(inputs_.queries, rows[r].batch, rows[r].head), rows[r].query, inputs_.scaling,
               std::span(queries_).subspan(r * static_cast<std::size_t>(d), static_cast<std::size_t>(d)));
      states_[r] = {};
      states_[r].output = outputs_.data() + static_cast<Index>(r) * inputs_.values.size(3);
      attended(rows[r], runs_[r]);
    }
    find_shared();
    if (!shared_.empty()) stream(shared_, 0, static_cast<Index>(rows.size()), nullptr);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      if (!shared_.empty()) {
        rest_.clear();
        combine_rows<row_op::Subtract>(runs_[r], shared_, [&](Run run) { rest_.push_back(run); });
        runs_[r].swap(rest_);
      }
      stream(runs_[r], static_cast<Index>(r), 1, weights);
      lse_[r] = finish(rows[r], states_[r]);
    }
    if (weights != nullptr) normalise(weights);
  }

  std::span<const float> output(std::size_t r) const {
    return {states_[r].output, static_cast<std::size_t>(inputs_.values.size(3))};
  }
  float lse(std::size_t r) const { return lse_[r]; }

 private:
  /// A row's runs, up to what causality leaves.
  void attended(RowId row, std::vector<Run>& runs) const {
    runs.clear();
    mask_.row(row, runs);
    const auto visible = static_cast<std::int32_t>(inputs_.visible_keys(row.query));
    while (!runs.empty() && runs.back().begin >= visible) runs.pop_back();
    if (!runs.empty()) runs.back().end = std::min(runs.back().end, visible);
  }

  void find_shared() {
    shared_.clear();
    if (rows_.size() < 2) return;
    const auto others = std::span(runs_).subspan(1, rows_.size() - 1);
    if (std::all_of(others.begin(), others.end(), [&](const auto& runs) { return runs == runs_[0]; })) {
      shared_ = runs_[0];
      return;
    }
    // Scattered keys that differ have little in common.
    if (keys_in(runs_[0]) < kLeastShared * static_cast<Index>(runs_[0].size())) return;
    shared_ = runs_[0];
    for (const std::vector<Run>& runs : others) {
      rest_.clear();
      combine_rows<SamePositions>(shared_, runs, [&](Run run) { rest_.push_back(run); });
      shared_.swap(rest_);
    }
    if (keys_in(shared_) < kLeastShared) shared_.clear();
  }

  static Index keys_in(std::span<const Run> runs) {
    Index count = 0;
    for (const Run& run : runs) count += run.end - run.begin;
    return count;
  }

  /// Folds the runs' keys into rows [first, first + rows); a single row's raw scores also go to `scores`.
  void stream(std::span<const Run> runs, Index first, Index rows, float* scores) {
    Index pending = 0;
    for (const Run& run : runs) {
      for (Index key = run.begin; key < run.end;) {
        const Index count = std::min<Index>(run.end - key, kKeysPerStep - pending);
        for (Index i = 0; i < count; ++i) {
          indices_[static_cast<std::size_t>(pending + i)] = static_cast<std::int32_t>(key + i);
          inverse_p_[static_cast<std::size_t>(pending + i)] = 1.0f / run.p;
        }
        key += count;
        pending += count;
        if (pending == kKeysPerStep) {
          scores = step(std::exchange(pending, 0), first, rows, scores);
        }
      }
    }
    if (pending > 0) step(pending, first, rows, scores);
  }

  /// Folds the first `count` pending keys; returns where the next step's scores go.
  float* step(Index count, Index first, Index rows, float* weights) {
    dot_gather(queries_.data() + first * inputs_.head_dim(), rows, keys_, indices_.data(), count, scores_.data(),
               kKeysPerStep);
    for (Index r = 0; r < rows; ++r) {
      float* scores = scores_.data() + r * kKeysPerStep;
      if (options_.soft_cap) {
        const float cap = *options_.soft_cap;
        for (Index i = 0; i < count; ++i) scores[i] = cap * std::tanh(scores[i] / cap);
      }
      if (const auto& bias = bias_[static_cast<std::size_t>(first + r)]) {
        for (Index i = 0; i < count; ++i) scores[i] += (*bias)(indices_[static_cast<std::size_t>(i)]);
      }
    }
    if (weights != nullptr) weights = std::copy_n(scores_.data(), count, weights);  // raw for now
    const float* inverse_p = mask_.weighted() ? inverse_p_.data() : nullptr;
    RowState* states = states_.data() + first;
    if (packed_values_.empty()) {
      fold_keys(scores_.data(), rows, inverse_p, values_, indices_.data(), count, states);
    } else {
      fold_keys(scores_.data(), rows, inverse_p, pack_values(count), own_indices_.data(), count, states);
    }
    return weights;
  }

  TensorView pack_values(Index count) {
    const Index dv = inputs_.values.size(3);
    dispatch_float(values_.dtype, "values", [&]<class T>() {
      for (Index i = 0; i < count; ++i) {
        for (Index j = 0; j < dv; ++j)
          packed_values_[static_cast<std::size_t>(i * dv + j)] =
              to_float(*values_.at<T>(indices_[static_cast<std::size_t>(i)], j));
      }
    });
    return {packed_values_.data(), DType::f32, {count, dv}};
  }

  float finish(RowId row, RowState& state) const {
    const std::span<float> output(state.output, static_cast<std::size_t>(inputs_.values.size(3)));
    if (!options_.sink_logits.empty()) {
      const float sink = options_.sink_logits[static_cast<std::size_t>(row.head)];
      const float max = std::max(state.max, sink);
      if (max != -kInfinity) {
        const float rescale = std::exp(state.max - max);
        state.sum = state.sum * rescale + std::exp(sink - max);
        state.max = max;
        for (float& value : output) value *= rescale;
      }
    }
    if (state.sum == 0) return -kInfinity;
    const float lse = state.max + std::log(state.sum);
    bool finite = std::abs(lse) < kInfinity;
    for (float& value : output) {
      value /= state.sum;
      finite &= std::abs(value) < kInfinity;
    }
    if (!finite && !options_.allow_non_finite)
      throw ValueError(
          "attention: the result of row (" + std::to_string(row.batch) + ", " + std::to_string(row.head) + ", " +
          std::to_string(row.query) +
          ") is not finite: its queries, keys, values or mask hold NaN or infinity, or its scores overflow");
    return lse;
  }

  /// Of the first row, over all that its mask holds: keys that causality forbids weigh nothing.
  void normalise(float* weights) const {
    std::vector<Run> runs;
    mask_.row(rows_[0], runs);
    const Index visible = inputs_.visible_keys(rows_[0].query);
    for (const Run& run : runs) {
      for (Index key = run.begin; key < run.end; ++key, ++weights)
        *weights = key < visible && lse_[0] != -kInfinity ? std::exp(*weights - lse_[0]) / run.p : 0.0f;
    }
  }

  const AttentionInputs& inputs_;
  const Mask& mask_;
  const AttentionOptions& options_;
  std::span<const RowId> rows_;
  TensorView keys_, values_;
  std::array<std::optional<AttentionMaskRow>, kRowsPerStep> bias_;
  std::array<RowState, kRowsPerStep> states_;
  std::array<std::vector<Run>, kRowsPerStep> runs_;
  std::array<float, kRowsPerStep> lse_{};
  std::vector<float> queries_, outputs_, scores_, inverse_p_, packed_values_;
  std::vector<std::int32_t> indices_, own_indices_;
  std::vector<Run> shared_, rest_;
};

/// How rows are taken together: heads of one KV head at one query and, where those are few, neighbouring queries. The
/// rows of a group are numbered heads first.
struct RowGroups {
  Index heads, queries;             // per group
  Index head_groups, query_groups;  // of all heads, of a head

  RowGroups(const AttentionInputs& inputs, bool one_by_one) {
    const Index group = std::max<Index>(1, inputs.group());
    heads = one_by_one ? 1 : group % 4 == 0 ? 4 : group % 2 == 0 ? 2 : group % 3 == 0 ? 3 : 1;
    queries = one_by_one ? 1 : kRowsPerStep / heads;
    head_groups = inputs.heads() / heads;
    query_groups = (inputs.queries_length() + queries - 1) / queries;
  }
  Index count(const AttentionInputs& inputs) const { return inputs.batch() * head_groups * query_groups; }

  std::span<const RowId> rows(const AttentionInputs& inputs, Index group, std::array<RowId, kRowsPerStep>& rows) const {
    const Index first_head = group / query_groups % head_groups * heads, first_query = group % query_groups * queries;
    std::size_t count = 0;
    for (Index query = first_query; query < std::min(first_query + queries, inputs.queries_length()); ++query) {
      for (Index head = first_head; head < first_head + heads; ++head)
        rows[count++] = {group / query_groups / head_groups, head, query};
    }
    return {rows.data(), count};
  }
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
  // Weights come out row by row, in the order of the mask's entries.
  const RowGroups groups(inputs, options.weights);
  const Index count = groups.count(inputs);
  context.for_each_chunk(count, rows_per_chunk(count), [&](Index, Index begin, Index end) {
    RowsExecutor executor(inputs, mask, options);
    std::array<RowId, kRowsPerStep> storage;
    for (Index group = begin; group < end; ++group) {
      const std::span<const RowId> rows = groups.rows(inputs, group, storage);
      const auto number = [&](RowId row) { return (row.batch * shape.heads + row.head) * shape.queries + row.query; };
      executor.run(rows,
                   result.weights ? result.weights->values.data() + result.weights->row_ptr[number(rows[0])] : nullptr);
      for (std::size_t r = 0; r < rows.size(); ++r) {
        const Index row = number(rows[r]);
        lse[static_cast<std::size_t>(row)] = executor.lse(r);
        dispatch_float(inputs.queries.dtype, "output", [&]<class T>() {
          std::transform(executor.output(r).begin(), executor.output(r).end(),
                         static_cast<T*>(result.output.data()) + row * dv, from_float<T>);
        });
      }
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
