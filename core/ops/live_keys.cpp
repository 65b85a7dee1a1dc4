#include <algorithm>
#include <deque>
#include <span>
#include <string>
#include <utility>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/live_keys.hpp>
#include <reticle/core/ops/observed_attention.hpp>

namespace reticle {

void LiveKeys::List::erase(std::size_t i) {
  keys.erase(keys.begin() + static_cast<std::ptrdiff_t>(i));
  if (!scores.empty()) scores.erase(scores.begin() + static_cast<std::ptrdiff_t>(i));
}

void LiveKeys::start(const AttentionInputs& prompt, Index lists_per_batch, std::vector<List> lists) {
  seen_ = SeenKeys();
  seen_.continue_with(prompt);
  seen_.finish(prompt);
  started_ = true;
  prompt_ = prompt.keys_length();
  lists_per_batch_ = lists_per_batch;
  lists_ = std::move(lists);
  before_.assign(lists_.size(), {});
}

void LiveKeys::truncate(Index keys) {
  if (!started_ || keys >= seen_.count()) return;
  if (keys < prompt_)
    throw CannotFollow("it chose what to keep from a prompt of " + std::to_string(prompt_) + " keys, and " +
                       std::to_string(keys) + " are left");
  const auto steps = static_cast<std::size_t>(seen_.count() - keys);
  if (steps > kStepsBack)
    throw CannotFollow("of the " + std::to_string(steps) + " last steps it can take back " +
                       std::to_string(kStepsBack));
  for (std::size_t i = 0; i < lists_.size(); ++i) {
    std::deque<List>& before = before_[i];
    lists_[i] = std::move(before[before.size() - steps]);
    before.resize(before.size() - steps);
  }
  seen_.truncate(keys);
}

Mask LiveKeys::lasting(const AttentionInputs& inputs, Index first, const Context& context) const {
  if (!started_) return Mask::full(inputs.one_query());
  seen_.require_continued(inputs);
  MaskShape shape = inputs.one_query();
  shape.shared_heads = lists_per_batch_ == 1;
  const Index heads = inputs.heads() / lists_per_batch_;
  return Mask::from_runs(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        const auto i = static_cast<std::size_t>(row.batch * lists_per_batch_ + row.head / heads);
        const std::size_t steps = std::min(before_[i].size(), static_cast<std::size_t>(seen_.count() - first));
        const List& list = steps == 0 ? lists_[i] : before_[i][before_[i].size() - steps];
        const auto later = static_cast<std::int32_t>(seen_.count() - static_cast<Index>(steps));
        for (const std::int32_t key : list.keys) emit({key, key + 1, 1});
        emit({later, static_cast<std::int32_t>(seen_.count()), 1});
      },
      context);
}

void LiveKeys::select(std::span<const Index> rows) {
  select_rows(lists_, rows, seen_.batch());
  select_rows(before_, rows, seen_.batch());
  seen_.select(rows);
}

Mask LiveKeys::generate(std::string_view masker, const AttentionInputs& inputs, const Context& context,
                        FunctionRef<void(RowId, List&, std::span<const double>)> evict) {
  MaskShape shape = inputs.shape();
  if (inputs.stage == Stage::prefill) return Mask::full(shape);
  if (!started_)
    throw ValueError(std::string(masker) +
                     ": no prefill was observed with this state, so there is nothing to generate from; call the "
                     "pipeline for the prefill first");
  seen_.continue_with(inputs);
  const Index queries = inputs.queries_length();
  if (inputs.keys_length() - queries != seen_.count())
    throw ShapeError(std::string(masker) + ": the state has seen " + std::to_string(seen_.count()) +
                     " keys, so the next queries start there; given are " + std::to_string(queries) + " queries and " +
                     std::to_string(inputs.keys_length()) + " keys");
  const Index heads = lists_per_batch_ == 0 ? 0 : inputs.heads() / lists_per_batch_;
  const auto count = static_cast<Index>(lists_.size());
  std::vector<std::vector<std::int32_t>> rows(static_cast<std::size_t>(count * queries));
  context.for_each_chunk(count, 1, [&](Index, Index begin, Index end) {
    std::vector<float> probabilities;
    std::vector<double> sum;
    for (Index i = begin; i < end; ++i) {
      List& list = lists_[static_cast<std::size_t>(i)];
      RowId row{i / lists_per_batch_, i % lists_per_batch_, 0};
      std::deque<List>& before = before_[static_cast<std::size_t>(i)];
      for (; row.query < queries; ++row.query) {
        before.push_back(list);
        if (before.size() > kStepsBack) before.pop_front();
        list.keys.push_back(static_cast<std::int32_t>(inputs.position(row.query)));
        rows[static_cast<std::size_t>(i * queries + row.query)] = list.keys;
        sum.assign(list.keys.size(), 0);
        for (Index head = row.head * heads; head < (row.head + 1) * heads; ++head) {
          attend_to(inputs, {row.batch, head, row.query}, list.keys, probabilities);
          for (std::size_t k = 0; k < sum.size(); ++k) sum[k] += static_cast<double>(probabilities[k]);
        }
        evict(row, list, sum);
      }
    }
  });
  seen_.finish(inputs);
  shape.shared_heads = lists_per_batch_ == 1;
  return Mask::from_selections(
      shape,
      [&](RowId row, Selection& selection) {
        const Index list = row.batch * lists_per_batch_ + row.head / heads;
        selection.indices = rows[static_cast<std::size_t>(list * queries + row.query)];
      },
      context);
}

}  // namespace reticle
