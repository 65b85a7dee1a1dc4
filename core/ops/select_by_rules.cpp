#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <reticle/core/base/error.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/masker.hpp>
#include <reticle/core/ops/scores.hpp>
#include <reticle/core/ops/select.hpp>
#include <reticle/core/ops/select_by_rules.hpp>

namespace reticle {
namespace {

Mask sinks(const Rule& rule, const AttentionInputs& inputs, const Context& context) {
  const auto end = static_cast<std::int32_t>(std::min(rule.count, inputs.keys_length()));
  return Mask::intervals(
      inputs.shape().one_row(),
      [&](RowId) {
        return Interval{0, end};
      },
      context);
}

Mask window(const Rule& rule, const AttentionInputs& inputs, const Context& context) {
  const Index count = std::min(rule.count, inputs.keys_length());
  return Mask::from_runs(
      inputs.shape().one_head(),
      [&](RowId row, FunctionRef<void(Run)> emit) {
        const auto end = static_cast<std::int32_t>(std::max<Index>(0, inputs.position(row.query) + 1));
        if (rule.dilation == 1) return emit({static_cast<std::int32_t>(std::max<Index>(0, end - count)), end, 1});
        for (Index i = std::min(count, (end + rule.dilation - 1) / rule.dilation); i-- > 0;) {
          const auto key = static_cast<std::int32_t>(end - 1 - i * rule.dilation);
          emit({key, key + 1, 1});
        }
      },
      context);
}

/// m of a row's n candidates, each included with probability m / n exactly.
Mask sample(const Rule& rule, const AttentionInputs& inputs, const Mask& previous, const Context& context) {
  return Mask::from_selections(
      inputs.shape(),
      [&](RowId row, Selection& selection) {
        std::vector<Run> chosen, taken;
        previous.row(row, chosen);
        const std::vector<Run> forbidden = forbidden_keys(inputs, row);
        combine_rows<row_op::Max>(chosen, forbidden, [&](Run run) { taken.push_back(run); });
        const Gaps candidates(taken, inputs.visible_keys(row.query));
        const Index n = candidates.size();
        if (n == 0) return;
        const Index m = sample_size(rule.share, n);
        Philox random = context.random(inputs.layer, row.batch, row.head, row.query);
        sample_without_replacement(n, m, random, selection.indices);
        candidates.to_positions(selection.indices);
        selection.p.assign(selection.indices.size(),
                           static_cast<float>(static_cast<double>(m) / static_cast<double>(n)));
      },
      context);
}

Mask selected(const Rule& rule, const AttentionInputs& inputs, const Mask& previous, const Context& context) {
  switch (rule.kind) {
    case Rule::Kind::sinks:
      return sinks(rule, inputs, context);
    case Rule::Kind::window:
      return window(rule, inputs, context);
    case Rule::Kind::top_k:
      return select_by_score(
          inputs, previous, ExactScorer(inputs),
          [&](std::span<const float> scores, Selection& selection) { top_k(scores, rule.count, selection.indices); },
          context);
    case Rule::Kind::top_p:
      return select_by_score(
          inputs, previous, ExactScorer(inputs),
          [&](std::span<const float> scores, Selection& selection) { top_p(scores, rule.share, selection.indices); },
          context);
    case Rule::Kind::sample:
      return sample(rule, inputs, previous, context);
    default:
      throw Error("rules: pages, codes and adaptive samples are selected by their own maskers; override select");
  }
}

}  // namespace

Mask select_by_rules(std::span<const Rule> rules, const AttentionInputs& inputs, const Mask& previous,
                     const Context& context) {
  if (rules.size() == 1) return selected(rules.front(), inputs, previous, context);
  Mask added = Mask::empty(inputs.shape()), known = previous;
  for (const Rule& rule : rules) {
    const Mask more = selected(rule, inputs, known, context);
    added = merge(added, more, MergeRule::max, context);
    known = merge(known, more, MergeRule::max, context);
  }
  return added;
}

std::optional<Index> entries_of(std::span<const Rule> rules, Index keys) {
  Index chosen = 0;
  bool met_sinks = false, met_window = false, others = false;
  for (const Rule& rule : rules) {
    Index added = 0;
    switch (rule.kind) {
      case Rule::Kind::sinks:
      case Rule::Kind::window: {
        bool& met = rule.kind == Rule::Kind::sinks ? met_sinks : met_window;
        if (met || others || rule.dilation > 1) return std::nullopt;
        met = true;
        added = rule.count;
        break;
      }
      case Rule::Kind::top_k:
      case Rule::Kind::hashed:
        added = rule.count;
        others = true;
        break;
      case Rule::Kind::sample:
        added = sample_size(rule.share, keys - chosen);
        others = true;
        break;
      default:
        return std::nullopt;
    }
    chosen = std::min(keys, chosen + added);
  }
  return chosen;
}

// It is defined here because the door for maskers stands below the operations that it opens to.
Mask Masker::select(const AttentionInputs& inputs, const Mask& previous, LayerState&, const Context& context) const {
  const std::vector<Rule> own = rules(inputs.keys_length(), inputs.layer);
  if (own.empty()) throw Error("masker \"" + type() + "\": has neither rules nor a select of its own");
  return select_by_rules(own, inputs, previous, context);
}

}  // namespace reticle
