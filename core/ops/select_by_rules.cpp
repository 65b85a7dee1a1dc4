#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/base/error.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/masker.hpp>
#include <reticle/core/ops/adaptive_sample.hpp>
#include <reticle/core/ops/candidates.hpp>
#include <reticle/core/ops/scores.hpp>
#include <reticle/core/ops/select.hpp>
#include <reticle/core/ops/select_by_rules.hpp>
#include <reticle/core/ops/select_pages.hpp>

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

/// Draws m of a row's n candidates, each included with probability m / n exactly.
Mask sample(const Rule& rule, const AttentionInputs& inputs, const Mask& previous, const Context& context) {
  return Mask::from_selections(
      inputs.shape(),
      [&](RowId row, Selection& selection) {
        std::vector<Run> chosen;
        previous.row(row, chosen);
        const Gaps candidates = candidates_of(inputs, row, chosen);
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

Mask adaptive(const Rule& rule, const AttentionInputs& inputs, const Mask& previous, const Context& context) {
  return select_scored(
      inputs, ExactScorer(inputs),
      [&](RowId row, std::span<const float> scores, Selection& selection) {
        Philox random = context.random(inputs.layer, row.batch, row.head, row.query);
        adaptive_sample(rule, inputs, RowWeights(scores, previous, row), row, random, selection);
      },
      context);
}

Mask best(const Rule& rule, const AttentionInputs& inputs, const Mask& previous, Scorer scorer,
          const Context& context) {
  return select_by_score(
      inputs, previous, scorer,
      [&](std::span<const float> scores, Selection& selection) { top_k(scores, rule.count, selection.indices); },
      context);
}

/// The keys of highest score, where score(inputs, row, scores) of `kept` scores one row at a time.
template <class Kept>
Mask best_by_codes(const Rule& rule, const AttentionInputs& inputs, const Mask& previous, const Kept& kept,
                   const Context& context) {
  return best(
      rule, inputs, previous,
      [&](std::span<const RowId> rows, float* scores) {
        for (const RowId row : rows) {
          kept.score(inputs, row, scores);
          scores += inputs.keys_length();
        }
      },
      context);
}

/// The value, constructed at first use.
template <class T>
T& made(std::optional<T>& kept) {
  return kept ? *kept : kept.emplace();
}

Mask selected(const Rule& rule, const AttentionInputs& inputs, const Mask& previous, KeptByRules& kept,
              const Context& context) {
  switch (rule.kind) {
    case Rule::Kind::sinks:
      return sinks(rule, inputs, context);
    case Rule::Kind::window:
      return window(rule, inputs, context);
    case Rule::Kind::top_k:
      return best(rule, inputs, previous, ExactScorer(inputs), context);
    case Rule::Kind::top_p:
      return select_by_score(
          inputs, previous, ExactScorer(inputs),
          [&](std::span<const float> scores, Selection& selection) { top_p(scores, rule.share, selection.indices); },
          context);
    case Rule::Kind::hashed: {
      HashCodes& codes = made(kept.hashed);
      if (codes.empty()) codes.set_weights(rule.hash->query, rule.hash->key);
      codes.update(inputs, context);
      return best_by_codes(rule, inputs, previous, codes, context);
    }
    case Rule::Kind::quantised: {
      QuantisedKeys& keys = made(kept.quantised);
      keys.update(inputs, *rule.quantiser, context);
      return keys.empty() ? Mask::empty(inputs.shape()) : best_by_codes(rule, inputs, previous, keys, context);
    }
    case Rule::Kind::pages:
      return select_pages(rule, inputs, made(kept.pages), context);
    case Rule::Kind::sample:
      return sample(rule, inputs, previous, context);
    case Rule::Kind::adaptive:
      return adaptive(rule, inputs, previous, context);
    case Rule::Kind::colliding: {
      LshCodes& codes = made(kept.colliding);
      codes.update(inputs, *rule.lsh, context);
      return Mask::from_selections(
          inputs.shape(), [&](RowId row, Selection& selection) { codes.sample(inputs, previous, row, selection); },
          context);
    }
  }
  throw Error("rules: of an unknown kind");
}

void check(std::span<const Rule> rules) {
  for (std::size_t i = 0; i < rules.size(); ++i) {
    const Rule& rule = rules[i];
    const auto refuse = [&](const std::string& what) { throw ValueError("rule " + std::to_string(i) + ": " + what); };
    if (rule.kind == Rule::Kind::pages && (rule.page_size < 1 || rule.label_bits < 1 || rule.label_bits > 16))
      refuse("pages of " + std::to_string(rule.page_size) + " keys, bounds of " + std::to_string(rule.label_bits) +
             " bits; expected at least 1, and 1 to 16");
    if (rule.kind == Rule::Kind::window && rule.dilation < 1)
      refuse("a window of keys " + std::to_string(rule.dilation) + " apart; expected at least 1");
    const bool without = (rule.kind == Rule::Kind::hashed && rule.hash == nullptr) ||
                         (rule.kind == Rule::Kind::quantised && rule.quantiser == nullptr) ||
                         (rule.kind == Rule::Kind::colliding && rule.lsh == nullptr);
    if (without) refuse("goes by codes; expected its hash, quantiser or lsh");
    if (rule.count < 0) refuse(std::to_string(rule.count) + " keys; expected at least 0");
    if (const PqRecipe* recipe = rule.quantiser;
        rule.kind == Rule::Kind::quantised &&
        (recipe->parts < 1 || recipe->centroids < 1 || recipe->centroids > UINT16_MAX + 1 || recipe->init_offset < 0))
      refuse(std::to_string(recipe->parts) + " parts of " + std::to_string(recipe->centroids) + " centroids beyond " +
             std::to_string(recipe->init_offset) + " keys; expected at least 1, 1 to 65536, and at least 0");
    if (const LshRecipe* recipe = rule.lsh;
        rule.kind == Rule::Kind::colliding && (recipe->tables < 1 || recipe->bits < 1))
      refuse(std::to_string(recipe->tables) + " tables of " + std::to_string(recipe->bits) +
             " bits; expected at least 1 of each");
    const auto alike = [&](const Rule& other) { return other.kind == rule.kind; };
    if (rule.keeps() && std::ranges::any_of(rules.first(i), alike))
      refuse("is the second that keeps the same of the keys; expected at most one");
  }
}

}  // namespace

void KeptByRules::truncate(Index keys) {
  each([&](auto& kept) { kept.truncate(keys); });
}

void KeptByRules::select(std::span<const Index> rows) {
  each([&](auto& kept) { kept.select(rows); });
}

Mask select_by_rules(std::span<const Rule> rules, const AttentionInputs& inputs, const Mask& previous,
                     KeptByRules& kept, const Context& context) {
  check(rules);
  if (rules.size() == 1) return selected(rules.front(), inputs, previous, kept, context);
  Mask added = Mask::empty(inputs.shape()), known = previous;
  for (const Rule& rule : rules) {
    const Mask more = selected(rule, inputs, known, kept, context);
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

// Defined here because core/ops, which it uses, is above core/masker in the layering.
Mask Masker::select(const AttentionInputs& inputs, const Mask& previous, LayerState& state,
                    const Context& context) const {
  const std::vector<Rule> masker_rules = rules(inputs.keys_length(), inputs.layer);
  if (masker_rules.empty()) throw Error("masker \"" + type() + "\": has neither rules nor a select of its own");
  KeptByRules none;  // stays empty where no rule keeps anything
  KeptByRules& kept = std::ranges::any_of(masker_rules, &Rule::keeps) ? state.get<KeptByRules>(*this) : none;
  return select_by_rules(masker_rules, inputs, previous, kept, context);
}

}  // namespace reticle
