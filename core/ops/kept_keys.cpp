#include <algorithm>
#include <limits>
#include <span>
#include <string>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/kept_keys.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle {

void KeptKeys::keep(const AttentionInputs& prompt, Index lists, std::vector<std::vector<std::int32_t>> keys) {
  seen_ = SeenKeys();
  seen_.continue_with(prompt);
  seen_.finish(prompt);
  prompt_ = prompt.keys_length();
  batch_ = prompt.batch();
  heads_ = prompt.heads();
  lists_ = lists;
  keys_ = std::move(keys);
}

void KeptKeys::truncate(Index keys) const {
  if (keys < prompt_)
    throw CannotFollow("it chose what to keep from a prompt of " + std::to_string(prompt_) + " keys, and " +
                       std::to_string(keys) + " are left");
}

void KeptKeys::select(std::span<const Index> rows) {
  if (prompt_ < 0) return;
  select_rows(keys_, rows, batch_);
  batch_ = static_cast<Index>(rows.size());
  seen_.select(rows);
}

Mask KeptKeys::mask(std::string_view masker, const AttentionInputs& inputs, const Context& context) const {
  const MaskShape shape = inputs.shape();
  if (inputs.stage == Stage::prefill) return Mask::full(shape);
  if (prompt_ < 0)
    throw ValueError(std::string(masker) +
                     ": no prefill was observed with this state, so there is nothing to generate from; call the "
                     "pipeline for the prefill first");
  if (inputs.batch() != batch_ || inputs.heads() != heads_ || inputs.keys_length() < prompt_)
    throw ShapeError(std::string(masker) + ": queries " + inputs.queries.describe() + " and keys " +
                     inputs.keys.describe() + " do not continue the prompt of " + std::to_string(prompt_) +
                     " keys, batch " + std::to_string(batch_) + ", " + std::to_string(heads_) + " query heads");
  seen_.require_continued(inputs);
  return Mask::from_runs(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        const auto& kept = keys_[static_cast<std::size_t>(row.batch * lists_ + row.head / (heads_ / lists_))];
        const auto end = static_cast<std::int32_t>(std::max<Index>(0, inputs.position(row.query) + 1));
        for (const std::int32_t key : kept) {
          if (key < end) emit({key, key + 1, 1});
        }
        emit({static_cast<std::int32_t>(prompt_), end, 1});
      },
      context);
}

Mask KeptKeys::lasting(const AttentionInputs& inputs, const Context& context) const {
  if (prompt_ < 0) return Mask::full(inputs.one_query());
  AttentionInputs next = inputs;
  next.queries = inputs.queries.slice(2, inputs.queries_length() - 1, inputs.queries_length());
  next.stage = Stage::generation;
  return mask("what was kept of a prompt", next, context);
}

std::vector<std::int32_t> keep_highest(std::vector<float> importance, Index capacity, Index prefix, Index recent) {
  const auto keys = static_cast<Index>(importance.size());
  constexpr float kFirst = std::numeric_limits<float>::infinity();
  std::fill(importance.begin(), importance.begin() + std::min(prefix, keys), kFirst);
  std::fill(importance.end() - std::min(recent, keys), importance.end(), kFirst);
  std::vector<std::int32_t> kept;
  top_k(importance, capacity, kept);
  return kept;
}

}  // namespace reticle
