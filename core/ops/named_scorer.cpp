#include <algorithm>
#include <bit>
#include <cmath>
#include <span>
#include <vector>

#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/named_scorer.hpp>

namespace reticle {
namespace {

/// Clears the last eight bits. Rotary embeddings rotate the key of a repeated token, so its norms are equal except for
/// rounding errors, which depend on how many tokens a model computes at once. Without those bits such norms tie, and
/// the lower index wins.
float without_rounding(float x) { return std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & 0xFFFFFF00u); }

}  // namespace

NamedScorer::NamedScorer(ScorerName name, Index page_size, const AttentionInputs& inputs, NamedScorerState& state)
    : name_(name), page_size_(page_size), inputs_(inputs), state_(state) {
  if (name == ScorerName::page_bounds) state.bounds.update(inputs, page_size, 16);
  if (name == ScorerName::page_means) state.means.update(inputs, page_size, page_size);
  if (name != ScorerName::value_aware && name != ScorerName::key_norm) return;
  state.seen.continue_with(inputs);
  state.of_key.resize(static_cast<std::size_t>(inputs.batch() * inputs.kv_heads()));
  const TensorView& tensor = name == ScorerName::key_norm ? inputs.keys : inputs.values;
  std::vector<float> row(static_cast<std::size_t>(tensor.size(3)));
  for (std::size_t i = 0; i < state.of_key.size(); ++i) {
    const auto head = static_cast<Index>(i);
    const TensorView matrix = head_matrix(tensor, head / inputs.kv_heads(), head % inputs.kv_heads());
    state.of_key[i].resize(static_cast<std::size_t>(inputs.keys_length()));
    for (Index key = state.seen.count(); key < inputs.keys_length(); ++key) {
      load_row(matrix, key, 1, row);
      double squares = 0;
      for (const float x : row) squares += static_cast<double>(x) * static_cast<double>(x);
      state.of_key[i][static_cast<std::size_t>(key)] = name == ScorerName::key_norm
                                                           ? -without_rounding(static_cast<float>(std::sqrt(squares)))
                                                           : static_cast<float>(std::log(squares) / 2);
    }
  }
  state.seen.finish(inputs);
}

void NamedScorer::operator()(std::span<const RowId> rows, float* scores) const {
  const Index keys = inputs_.keys_length();
  if (name_ == ScorerName::exact || name_ == ScorerName::value_aware) {
    const ExactScorer exact(inputs_);
    exact(rows, scores);
  }
  for (std::size_t r = 0; r < rows.size() && name_ != ScorerName::exact; ++r)
    score_row(rows[r], scores + static_cast<Index>(r) * keys);
}

void NamedScorer::score_row(RowId row, float* scores) const {
  const Index keys = inputs_.keys_length(), kv_head = inputs_.kv_head(row.head);
  if (name_ == ScorerName::value_aware || name_ == ScorerName::key_norm) {
    const std::vector<float>& terms = state_.of_key[static_cast<std::size_t>(row.batch * inputs_.kv_heads() + kv_head)];
    const bool alone = name_ == ScorerName::key_norm;
    for (Index key = 0; key < keys; ++key)
      scores[key] = (alone ? 0 : scores[key]) + terms[static_cast<std::size_t>(key)];
    if (alone) add_attention_mask(inputs_, row, scores);
    return;
  }
  std::vector<float> query(static_cast<std::size_t>(inputs_.head_dim()));
  load_row(head_matrix(inputs_.queries, row.batch, row.head), row.query, inputs_.scaling, query);
  std::vector<float> pages(static_cast<std::size_t>((keys + page_size_ - 1) / page_size_));
  Index complete = keys / page_size_;
  if (name_ == ScorerName::page_bounds) {
    complete = static_cast<Index>(pages.size());
    state_.bounds.score(query, row.batch, kv_head, pages);
  } else {
    state_.means.score(query, row.batch, kv_head, complete, pages);
  }
  for (Index key = 0; key < std::min(keys, complete * page_size_); ++key)
    scores[key] = pages[static_cast<std::size_t>(key / page_size_)];
  if (complete * page_size_ < keys)
    dot(query.data(), 1, head_matrix(inputs_.keys, row.batch, kv_head).slice(0, complete * page_size_, keys),
        scores + complete * page_size_, keys);
  add_attention_mask(inputs_, row, scores);
}

}  // namespace reticle
