#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/executor.hpp>
#include <reticle/attention/row_kernel.hpp>
#include <reticle/attention/state.hpp>
#include <reticle/attention/tile_blocks.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>
#include <reticle/core/ops/dot.hpp>

namespace reticle {
namespace {

/// The smallest float that rounds to infinity in the dtype.
float first_beyond(DType dtype) {
  if (dtype == DType::f16) return 65520.0f;
  if (dtype == DType::bf16) return std::bit_cast<float>(0x7F7F8000u);
  return std::numeric_limits<float>::infinity();
}

constexpr Index kMaxHeadDim = 1024;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Multiply-adds below which waking threads costs more than they save.
constexpr double kMinWorkForThreads = 1e6;

/// Computes a tile of rows: first the keys that they share, then the keys that each row gathers alone. One executor per
/// task, so that buffers are allocated once.
class TileExecutor {
 public:
  TileExecutor(const AttentionInputs& inputs, const Mask& mask, const AttentionOptions& options)
      : inputs_(inputs),
        mask_(mask),
        options_(options),
        product_(tile_product(inputs)),
        blocks_(options.soft_cap, product_),
        own_indices_(kKeysPerStep) {
    std::iota(own_indices_.begin(), own_indices_.end(), 0);
  }

  /// Leaves the outputs in output(r) and the LSEs in lse(r). The normalised weights of a single row go to `weights`, if
  /// not null.
  void run(const TileRows& rows, const TilePlan& plan, float* weights) {
    start(rows);
    if (plan.shared_keys() > 0) {
      if (rows_.count() > kRowPathRows) {
        share_in_tile(plan);
      } else {
        share_in_rows(plan);
      }
    }
    for (Index r = 0; r < rows_.count(); ++r) {
      gather(plan, r, weights);
      if (!finish(r)) return run_one_by_one(rows);
    }
    if (weights != nullptr) normalise(weights);
  }

  std::span<const float> output(Index r) const {
    return {outputs_.data() + r * value_dim(), static_cast<std::size_t>(value_dim())};
  }
  float lse(Index r) const { return lse_[static_cast<std::size_t>(r)]; }

 private:
  Index value_dim() const { return inputs_.values.size(3); }
  float* query(Index r) { return queries_.data() + r * inputs_.head_dim(); }
  RowState& state(Index r) { return states_[static_cast<std::size_t>(r)]; }

  void start(const TileRows& rows) {
    rows_ = rows;
    const RowId first = rows.row(0);
    const Index count = rows.count(), kv_head = inputs_.kv_head(first.head), d = inputs_.head_dim();
    keys_ = head_matrix(inputs_.keys, first.batch, kv_head);
    values_ = head_matrix(inputs_.values, first.batch, kv_head);
    key_rows_ = KeyRows(inputs_, first.batch, kv_head);
    queries_.resize(static_cast<std::size_t>(count * d));
    outputs_.assign(static_cast<std::size_t>(count * value_dim()), 0.0f);
    for (Index r = 0; r < count; ++r) {
      const RowId row = rows.row(r);
      load_row(head_matrix(inputs_.queries, row.batch, row.head), row.query, inputs_.scaling,
               {query(r), static_cast<std::size_t>(d)});
      state(r) = {};
      state(r).output = outputs_.data() + r * value_dim();
      if (inputs_.attention_mask) bias_[static_cast<std::size_t>(r)].emplace(*inputs_.attention_mask, row);
    }
  }

  void share_in_tile(const TilePlan& plan) {
    const Index rows = rows_.count();
    const bool in_pairs = product_ != Bf16Product::exact;
    if (!tile_) tile_.emplace(inputs_.head_dim(), value_dim(), product_, inputs_.scaling);
    tile_->reset(rows);
    const auto d = static_cast<std::size_t>(inputs_.head_dim());
    unscaled_.resize(d);
    for (Index r = 0; r < rows; ++r) {
      std::span<float> given(query(r), d);
      if (in_pairs) {
        const RowId row = rows_.row(r);
        given = unscaled_;
        load_row(head_matrix(inputs_.queries, row.batch, row.head), row.query, 1, given);
      }
      tile_->set_query(r, given);
    }
    blocks_.start(plan, rows, keys_, values_, bias_, key_rows_);
    for (TileBlock block; blocks_.read(block);) tile_->fold(block);
    for (Index r = 0; r < rows; ++r) {
      state(r).max = tile_->max(r);
      state(r).sum = tile_->sum(r);
      tile_->copy_output(r, {state(r).output, static_cast<std::size_t>(value_dim())});
    }
  }

  void share_in_rows(const TilePlan& plan) {
    const Index rows = rows_.count();
    SharedKeys reader(plan, key_rows_);
    for (bool more = reader.read(kKeysPerStep, *step_); more; step_.swap(next_step_)) {
      more = reader.read(kKeysPerStep, *next_step_);
      const Index count = step_->count;
      for (Index first = 0; first < rows; first += kRowsPerStep) {
        const Index taken = std::min(kRowsPerStep, rows - first);
        score(first, taken, step_->keys.data(), count);
        for (Index r = 0; step_->partial && r < taken; ++r)
          drop_unattended(scores_.data() + r * kKeysPerStep, step_->attended, first + r, count);
        const float* inverse_p = nullptr;
        if (!plan.inverse_p.empty()) {
          inverse_p_.resize(static_cast<std::size_t>(kRowsPerStep * kKeysPerStep));
          for (Index r = 0; r < taken; ++r) {
            for (Index i = 0; i < count; ++i)
              inverse_p_[static_cast<std::size_t>(r * kKeysPerStep + i)] =
                  plan.inverse_p[static_cast<std::size_t>((step_->first + i) * rows + first + r)];
          }
          inverse_p = inverse_p_.data();
        }
        const bool last_rows = first + taken == rows;
        fold(first, taken, inverse_p, step_->keys.data(), count,
             last_rows ? UpcomingRows(keys_, next_step_->keys.data(), next_step_->count) : UpcomingRows());
      }
    }
  }

  /// Adds the keys that row r gathers alone; their raw scores also go to `scores`, if not null.
  void gather(const TilePlan& plan, Index r, float* scores) {
    const Index begin = plan.rest_ptr[static_cast<std::size_t>(r)],
                end = plan.rest_ptr[static_cast<std::size_t>(r) + 1];
    const std::int32_t* keys = plan.rest.data() + begin;
    if (key_rows_.moved()) {
      moved_.resize(static_cast<std::size_t>(end - begin));
      key_rows_.find({keys, moved_.size()}, moved_.data());
      keys = moved_.data();
    }
    for (Index at = begin; at < end; at += kKeysPerStep) {
      const Index count = std::min(kKeysPerStep, end - at);
      const std::int32_t* indices = keys + (at - begin);
      const UpcomingRows next(keys_, indices + count, std::min(kKeysPerStep, end - at - count));
      score(r, 1, indices, count);
      if (scores != nullptr) scores = std::copy_n(scores_.data(), count, scores);  // raw for now
      const float* inverse_p = plan.rest_inverse_p.empty() ? nullptr : plan.rest_inverse_p.data() + at;
      if (bias_[static_cast<std::size_t>(r)]) {
        const Index allowed = leave_out_forbidden(indices, inverse_p, count);
        fold(r, 1, inverse_p == nullptr ? nullptr : inverse_p_.data(), allowed_.data(), allowed, next);
      } else {
        fold(r, 1, inverse_p, indices, count, next);
      }
    }
  }

  /// Compacts one row's scores, keys and 1 / p to those that the attention mask allows, into scores_, allowed_ and
  /// inverse_p_. Forbidden keys are removed rather than given weight 0, since 0 times their values may be NaN.
  Index leave_out_forbidden(const std::int32_t* indices, const float* inverse_p, Index count) {
    allowed_.resize(static_cast<std::size_t>(count));
    inverse_p_.resize(std::max(inverse_p_.size(), static_cast<std::size_t>(count)));
    Index allowed = 0;
    for (Index i = 0; i < count; ++i) {
      const auto from = static_cast<std::size_t>(i), to = static_cast<std::size_t>(allowed);
      if (scores_[from] == -kInfinity) continue;
      scores_[to] = scores_[from];
      allowed_[to] = indices[i];
      if (inverse_p != nullptr) inverse_p_[to] = inverse_p[i];
      ++allowed;
    }
    return allowed;
  }

  /// Computes the scores of rows [first, first + rows), with soft cap and attention mask.
  void score(Index first, Index rows, const std::int32_t* indices, Index count) {
    dot_gather(query(first), rows, keys_, indices, count, scores_.data(), kKeysPerStep,
               UpcomingRows(values_, indices, count));
    for (Index r = 0; r < rows; ++r) {
      float* scores = scores_.data() + r * kKeysPerStep;
      if (options_.soft_cap) {
        const float cap = *options_.soft_cap;
        for (Index i = 0; i < count; ++i) scores[i] = cap * std::tanh(scores[i] / cap);
      }
      if (const auto& bias = bias_[static_cast<std::size_t>(first + r)]) {
        for (Index i = 0; i < count; ++i) {
          const float added = (*bias)(indices[i]);
          scores[i] = added == -kInfinity ? added : scores[i] + added;  // even if the forbidden key holds NaN
        }
      }
    }
  }

  /// `next`: the keys that will be scored after these, to be prefetched.
  void fold(Index first, Index rows, const float* inverse_p, const std::int32_t* indices, Index count,
            const UpcomingRows& next) {
    if (values_.stride(1) == 1) {
      fold_keys(scores_.data(), rows, inverse_p, values_, indices, count, &state(first), next);
    } else {
      packed_.resize(static_cast<std::size_t>(kKeysPerStep * value_dim()));
      pack_rows(values_, indices, count, packed_.data());
      fold_keys(scores_.data(), rows, inverse_p, {packed_.data(), DType::f32, {count, value_dim()}},
                own_indices_.data(), count, &state(first), next);
    }
  }

  /// Writes row r's output and LSE; returns whether they are finite.
  bool finish(Index r) {
    const RowId row = rows_.row(r);
    RowState& state = this->state(r);
    const std::span<float> output(state.output, static_cast<std::size_t>(value_dim()));
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
    float& lse = lse_[static_cast<std::size_t>(r)];
    lse = state.sum == 0 ? -kInfinity : state.max + std::log(state.sum);
    if (state.sum == 0) {
      std::fill(output.begin(), output.end(), 0.0f);
      return true;
    }
    const float bound = first_beyond(inputs_.queries.dtype);
    bool finite = std::abs(lse) < kInfinity, large = false;
    for (float& value : output) {
      value /= state.sum;
      finite &= std::abs(value) < bound;
      large |= bound <= std::abs(value) && std::abs(value) < kInfinity;
    }
    if (finite || (options_.allow_non_finite && rows_.count() == 1)) return true;
    if (rows_.count() > 1) return false;
    throw ValueError("attention: the result of row (" + std::to_string(row.batch) + ", " + std::to_string(row.head) +
                     ", " + std::to_string(row.query) + ") " +
                     (large ? "is too large for the queries' dtype, " + std::string(name_of(inputs_.queries.dtype))
                            : "is not finite: its queries, keys, values or mask hold NaN or infinity, or its scores "
                              "overflow"));
  }

  /// In a tile, keys that a row does not attend to get weight 0, and 0 * NaN or 0 * infinity is NaN: such tiles are
  /// recomputed row by row.
  void run_one_by_one(const TileRows& rows) {
    TilePlanner planner(inputs_, mask_);
    std::vector<float> outputs, lse;
    for (Index r = 0; r < rows.count(); ++r) {
      const RowId row = rows.row(r);
      const TileRows one{row.batch, row.head, 1, row.query, 1};
      run(one, planner.plan(one), nullptr);
      outputs.insert(outputs.end(), output(0).begin(), output(0).end());
      lse.push_back(this->lse(0));
    }
    outputs_.swap(outputs);
    std::copy(lse.begin(), lse.end(), lse_.begin());
  }

  /// Turns a single row's scores into weights, one for each entry of its mask; keys that causality forbids get 0.
  void normalise(float* weights) const {
    std::vector<Run> runs;
    const RowId row = rows_.row(0);
    mask_.row(row, runs);
    const Index visible = inputs_.visible_keys(row.query);
    for (const Run& run : runs) {
      for (Index key = run.begin; key < run.end; ++key, ++weights)
        *weights = key < visible && lse_[0] != -kInfinity ? std::exp(*weights - lse_[0]) / run.p : 0.0f;
    }
  }

  const AttentionInputs& inputs_;
  const Mask& mask_;
  const AttentionOptions& options_;
  Bf16Product product_;
  TileRows rows_;
  TensorView keys_, values_;
  KeyRows key_rows_;
  TileBias bias_;
  TileBlocks blocks_;
  std::array<RowState, kTileRows> states_;
  std::array<float, kTileRows> lse_{};
  std::array<float, static_cast<std::size_t>(kRowsPerStep* kKeysPerStep)> scores_;
  std::vector<float> queries_, unscaled_, outputs_, inverse_p_, packed_;
  std::unique_ptr<SharedKeys::Step> step_ = std::make_unique<SharedKeys::Step>(),
                                    next_step_ = std::make_unique<SharedKeys::Step>();
  std::vector<std::int32_t> own_indices_, moved_, allowed_;
  std::optional<TileState> tile_;
};

/// `ready`: one plan per tile, or empty to plan each tile as it is reached.
AttentionResult run(const AttentionInputs& inputs, const Mask& mask, std::span<const TilePlan> ready,
                    const AttentionOptions& options, const Context& context) {
  options.validate(inputs);
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
  const Tiling tiling(inputs, mask, options.weights ? Grouping::single_rows : Grouping::tiles);
  const Index tiles = tiling.count();
  const auto work = static_cast<double>(mask.nnz()) * static_cast<double>(inputs.head_dim() + dv);
  const Index per_chunk = work < kMinWorkForThreads ? tiles : tiling.per_task();
  context.for_each_chunk(tiles, per_chunk, [&](Index, Index begin, Index end) {
    TilePlanner planner(inputs, mask);
    TileExecutor executor(inputs, mask, options);
    for (Index tile = begin; tile < end; ++tile) {
      const TileRows rows = tiling.rows(tile);
      const auto number = [&](RowId row) { return (row.batch * shape.heads + row.head) * shape.queries + row.query; };
      executor.run(
          rows, ready.empty() ? planner.plan(rows) : ready[static_cast<std::size_t>(tile)],
          result.weights ? result.weights->values.data() + result.weights->row_ptr[number(rows.row(0))] : nullptr);
      for (Index r = 0; r < rows.count(); ++r) {
        const Index row = number(rows.row(r));
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

}  // namespace

void AttentionOptions::validate(const AttentionInputs& inputs) const {
  for (const auto& [width, name] :
       {std::pair{inputs.head_dim(), "queries"}, std::pair{inputs.values.size(3), "values"}}) {
    if (width > kMaxHeadDim)
      throw ShapeError(std::string(name) + ": head size is " + std::to_string(width) + "; at most " +
                       std::to_string(kMaxHeadDim) + " is supported");
  }
  if (!sink_logits.empty() && static_cast<Index>(sink_logits.size()) != inputs.heads())
    throw ShapeError("sink_logits: has " + std::to_string(sink_logits.size()) + " entries; expected one for each of " +
                     std::to_string(inputs.heads()) + " heads");
  if (soft_cap && !(*soft_cap > 0 && *soft_cap < kInfinity))
    throw ValueError("soft_cap is " + std::to_string(*soft_cap) + "; expected a finite number > 0");
}

namespace {

/// Attention on the GPU into newly allocated tensors.
template <class How>
AttentionResult on_gpu(const AttentionInputs& inputs, const How& how, const AttentionOptions& options,
                       const Context& context) {
  inputs.validate();
  options.validate(inputs);
  AttentionResult result = cuda::empty_result(inputs, context.stream);
  attention_into(inputs, how, result.output.data(), static_cast<float*>(result.lse.data()), options, context);
  return result;
}

/// Attention to keys of which the last are given as they were before they were quantised: to both sets apart, merged.
AttentionResult attend_to_recent(const AttentionInputs& inputs, const Mask& mask, const AttentionOptions& options,
                                 const Context& context) {
  const Index length = inputs.keys_length(), older = length - inputs.recent_keys->size(2);
  AttentionInputs recent = inputs;
  recent.keys = *inputs.recent_keys;
  recent.values = *inputs.recent_values;
  recent.recent_keys.reset();
  recent.recent_values.reset();
  if (older == 0) return run(recent, mask, {}, options, context);
  if (options.weights) throw ValueError("weights: expected keys that are all quantised, or none");
  // The queries' positions are the whole sequence's, which neither part knows.
  const Mask allowed = inputs.causal ? restrict_causal(mask, context) : mask;
  AttentionInputs before = inputs;
  before.keys = inputs.keys.slice(2, 0, older);
  before.values = inputs.values.slice(2, 0, older);
  before.recent_keys.reset();
  before.recent_values.reset();
  before.causal = recent.causal = false;
  if (inputs.attention_mask && inputs.attention_mask->size(3) != 1) {
    before.attention_mask = inputs.attention_mask->slice(3, 0, older);
    recent.attention_mask = inputs.attention_mask->slice(3, older, length);
  }
  AttentionOptions without_sinks = options;
  without_sinks.sink_logits = {};
  return merge(run(before, slice(allowed, Dim::keys, 0, older, context), {}, without_sinks, context),
               run(recent, slice(allowed, Dim::keys, older, length, context), {}, options, context));
}

bool lie_on_gpu(const AttentionInputs& inputs) { return inputs.queries.device.kind == Device::Kind::cuda; }

}  // namespace

AttentionResult attention(const AttentionInputs& inputs, const Pattern& pattern, const AttentionOptions& options,
                          const Context& context) {
  if (lie_on_gpu(inputs)) return on_gpu(inputs, pattern, options, context);
  inputs.validate();
  const Mask mask = mask_of(pattern, inputs, context);
  require_mask_fits(inputs, mask);
  if (inputs.recent_keys) return attend_to_recent(inputs, mask, options, context);
  return run(inputs, mask, {}, options, context);
}

void attention_into(const AttentionInputs& inputs, const Pattern& pattern, void* output, float* lse,
                    const AttentionOptions& options, const Context& context) {
  inputs.validate_on(Device::Kind::cuda);
  cuda::attend(inputs, pattern, options, context, output, lse);
}

void attention_into(const AttentionInputs& inputs, const AttentionPlan& plan, void* output, float* lse,
                    const AttentionOptions& options, const Context& context) {
  inputs.validate_on(Device::Kind::cuda);
  cuda::attend(inputs, plan.on_gpu(), options, context, output, lse);
}

AttentionResult attention(const AttentionInputs& inputs, const AttentionPlan& plan, const AttentionOptions& options,
                          const Context& context) {
  if (lie_on_gpu(inputs)) return on_gpu(inputs, plan, options, context);
  inputs.validate();
  plan.require_fits(inputs);
  if (inputs.recent_keys) return attend_to_recent(inputs, plan.mask(), options, context);
  // Weights come out row by row, in the order of the mask's entries, which plans by tile do not preserve.
  return run(inputs, plan.mask(), options.weights ? std::span<const TilePlan>() : plan.tiles(), options, context);
}

AttentionResult merge(const AttentionResult& a, const AttentionResult& b) {
  const TensorView& left = a.output.view();
  const TensorView& right = b.output.view();
  if (left.shape != right.shape || left.dtype != right.dtype)
    throw ShapeError("merge: attention results " + left.describe() + " and " + right.describe() +
                     "; expected one shape and dtype");
  require_rank(left, 4, "merge: output");
  for (const AttentionResult* given : {&a, &b}) {
    const TensorView& lse = given->lse.view();
    if (lse.rank != 3 || !std::equal(lse.shape.begin(), lse.shape.begin() + 3, left.shape.begin()))
      throw ShapeError("merge: lse " + lse.describe() + " is not of output " + left.describe());
  }
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
