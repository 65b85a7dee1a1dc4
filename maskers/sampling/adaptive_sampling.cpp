// Samples as many keys per row as are needed to estimate its softmax denominator within epsilon with probability 1 -
// delta: a small base sample estimates the spread of the weights, and the central limit theorem turns the spread into a
// budget. vAttention (Desai et al. 2025); sparse-attention-hub's AdaptiveSampling. Unbiased, except with "replacement",
// which follows the reference.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/adaptive_sample.hpp>
#include <reticle/core/ops/scores.hpp>
#include <reticle/core/ops/statistics.hpp>

namespace reticle::maskers {

struct AdaptiveSamplingConfig {
  Size base_rate_sampling = 0.1;
  double epsilon = 0.1;
  double delta = 0.1;
  Size init_offset = 0;
  Size local_offset = 0;
  bool replacement = false;

  static constexpr const char* docs[] = {
      "base sample, at least 2: a count, or a fraction below 1 of the candidates; 0 samples nothing",
      "relative error of the softmax denominator, in (0, 1)",
      "probability, in (0, 1), of a larger error",
      "keys at the start that are not sampled from",
      "keys at the end that are not sampled from",
      "false: without replacement, two-sided; true: with, one-sided and biased, as sparse-attention-hub"};
  void validate() const {
    require(!base_rate_sampling.is_fraction() || base_rate_sampling.fraction() < 1, "base_rate_sampling",
            "must be a count or a fraction in [0, 1)");
    require(epsilon > 0 && epsilon < 1, "epsilon", "must be in (0, 1)");
    require(delta > 0 && delta < 1, "delta", "must be in (0, 1)");
  }
};

class AdaptiveSampling final : public Masker {
 public:
  explicit AdaptiveSampling(const AdaptiveSamplingConfig& config)
      : config_(config), z_(normal_quantile(config.replacement ? 1 - config.delta : 1 - config.delta / 2)) {}

  Mask select(const AttentionInputs& inputs, const Mask& previous, LayerState& state,
              const Context& context) const override {
    if (!config_.base_rate_sampling.positive()) return Mask::empty(inputs.shape());
    if (!config_.replacement) return Masker::select(inputs, previous, state, context);
    const Recorded recorded = recorded_draws(inputs, previous, context);
    return select_scored(
        inputs, ExactScorer(inputs),
        [&](RowId row, std::span<const float> scores, Selection& selection) {
          Philox random = context.random(inputs.layer, row.batch, row.head, row.query);
          draw_with_replacement(inputs, RowWeights(scores, previous, row), row, recorded, random, selection);
        },
        context);
  }

  bool samples() const override { return true; }
  std::vector<Rule> rules(Index keys, int) const override {
    if (config_.replacement || !config_.base_rate_sampling.positive()) return {};
    return {Rule{.kind = Rule::Kind::adaptive,
                 .base = config_.base_rate_sampling,
                 .epsilon = config_.epsilon,
                 .quantile = z_,
                 .first = config_.init_offset.resolve(keys),
                 .last = keys - config_.local_offset.resolve(keys)}};
  }

 private:
  /// The reference's random choices, if they are given as extra tensors.
  struct Recorded {
    std::optional<TensorView> base;   // (b, hq, sq, base sample) I64
    std::optional<TensorView> draws;  // (sum of budgets) I64
    std::vector<Index> first_draw;    // per row
  };

  Index begin(const AttentionInputs& inputs) const { return config_.init_offset.resolve(inputs.keys_length()); }
  Index end(const AttentionInputs& inputs) const {
    return inputs.keys_length() - config_.local_offset.resolve(inputs.keys_length());
  }

  /// The budget of a row with the given base sample: floor((z s R / (epsilon D))^2), at least the size of the base
  /// sample.
  Index reference_budget(Index range, std::span<const std::int32_t> base, const RowWeights& weights) const {
    const double deviation = std::max(weights.moments(base).second, 1e-8);
    std::vector<std::int32_t> distinct(base.begin(), base.end());
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    double sampled = 0;
    for (const std::int32_t key : distinct) sampled += weights.of(key);
    const auto size = static_cast<double>(range), base_count = static_cast<double>(base.size());
    const double denominator = weights.chosen_sum + sampled * size / base_count;
    const double ratio = z_ * deviation * size / std::max(config_.epsilon * denominator, 1e-8);
    const auto budget = static_cast<Index>(std::floor(std::clamp(ratio * ratio, 1.0, size)));
    return std::min(range, std::max(budget, static_cast<Index>(base.size())));
  }

  std::vector<std::int32_t> base_sample(const AttentionInputs& inputs, Index range, RowId row, const Recorded& recorded,
                                        Philox& random) const {
    std::vector<std::int32_t> base;
    if (recorded.base) {
      for (Index i = 0; i < recorded.base->size(3); ++i)
        base.push_back(
            recorded_key(*recorded.base->at<Index>(row.batch, row.head, row.query, i), inputs, "base_indices"));
      return base;
    }
    // There are at most as many draws as candidates, since no budget is larger.
    for (Index i = std::min(base_sample_size(config_.base_rate_sampling, range), range); i > 0; --i)
      base.push_back(static_cast<std::int32_t>(begin(inputs) + random.below(static_cast<std::uint32_t>(range))));
    return base;
  }

  void draw_with_replacement(const AttentionInputs& inputs, const RowWeights& weights, RowId row,
                             const Recorded& recorded, Philox& random, Selection& selection) const {
    const Index range = end(inputs) - begin(inputs);
    if (range < 2) return;
    const Index budget = reference_budget(range, base_sample(inputs, range, row, recorded, random), weights);
    if (recorded.draws) {
      const Index first = recorded.first_draw[static_cast<std::size_t>(inputs.shape().stored_row(row))];
      for (Index i = first; i < first + budget; ++i)
        selection.indices.push_back(recorded_key(*recorded.draws->at<Index>(i), inputs, "draw_positions"));
      std::sort(selection.indices.begin(), selection.indices.end());
      selection.indices.erase(std::unique(selection.indices.begin(), selection.indices.end()), selection.indices.end());
    } else {
      sample_with_replacement(range, budget, random, selection.indices);
      for (std::int32_t& key : selection.indices) key += static_cast<std::int32_t>(begin(inputs));
    }
    selection.p.assign(selection.indices.size(),
                       static_cast<float>(static_cast<double>(budget) / static_cast<double>(range)));
  }

  /// Recorded draws are stored row after row, so the budgets of all rows are computed first.
  Recorded recorded_draws(const AttentionInputs& inputs, const Mask& previous, const Context& context) const {
    Recorded recorded{inputs.extra("base_indices"), inputs.extra("draw_positions"), {}};
    const MaskShape shape = inputs.shape();
    const Index range = end(inputs) - begin(inputs);
    if (!recorded.base || !recorded.draws || range < 2) return {};
    require_rank(*recorded.base, 4, "base_indices");
    require_rank(*recorded.draws, 1, "draw_positions");
    if (recorded.base->dtype != DType::i64 || recorded.draws->dtype != DType::i64 ||
        recorded.base->size(0) != shape.batch || recorded.base->size(1) != shape.heads ||
        recorded.base->size(2) != shape.queries)
      throw ShapeError("base_indices and draw_positions: " + recorded.base->describe() + " and " +
                       recorded.draws->describe() + "; expected I64 (b, hq, sq, base) and (draws) for " +
                       shape.describe());
    recorded.first_draw.resize(static_cast<std::size_t>(shape.rows()) + 1, 0);
    context.for_each_chunk(shape.rows(), 1, [&](Index, Index begin_row, Index end_row) {
      std::vector<float> scores(static_cast<std::size_t>(shape.keys));
      for (Index i = begin_row; i < end_row; ++i) {
        const RowId row = shape.row_of_logical(i);
        Philox unused(0, 0, 0, 0, 0);
        ExactScorer{inputs}({&row, 1}, scores.data());
        recorded.first_draw[static_cast<std::size_t>(i) + 1] = reference_budget(
            range, base_sample(inputs, range, row, recorded, unused), RowWeights(scores, previous, row));
      }
    });
    std::partial_sum(recorded.first_draw.begin(), recorded.first_draw.end(), recorded.first_draw.begin());
    if (recorded.first_draw.back() != recorded.draws->size(0))
      throw ShapeError("draw_positions: has " + std::to_string(recorded.draws->size(0)) + " draws; the budgets need " +
                       std::to_string(recorded.first_draw.back()));
    return recorded;
  }

  AdaptiveSamplingConfig config_;
  double z_;
};

RETICLE_REGISTER_MASKER(
    "adaptive_sampling", AdaptiveSampling, AdaptiveSamplingConfig,
    {.summary = "Samples as many keys per query as an (epsilon, delta) bound on its denominator needs.",
     .source = "vAttention (Desai et al. 2025); sparse-attention-hub (AdaptiveSampling)",
     .rule =
         "b of the n keys not chosen yet, p = b / n, b the least with z s n sqrt(1/b - 1/n) <= epsilon D; "
         "s and D from a base sample, z the normal quantile of 1 - delta / 2; a bound only where the heavy keys were "
         "chosen before, by a top-k, since a base sample misses them",
     .cost = "O(queries * keys * head_dim) time (exact scores), memory of what is kept"});

}  // namespace reticle::maskers
