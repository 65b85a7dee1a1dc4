#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include <reticle/core/base/thread_scratch.hpp>
#include <reticle/core/mask/builder.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/scores.hpp>

namespace reticle {

void ExactScorer::operator()(std::span<const RowId> rows, float* scores) const {
  const Index keys = inputs_.keys_length(), d = inputs_.head_dim(), count = static_cast<Index>(rows.size());
  std::vector<float> packed(static_cast<std::size_t>(count * d));
  for (std::size_t r = 0; r < rows.size(); ++r)
    load_row(head_matrix(inputs_.queries, rows[r].batch, rows[r].head), rows[r].query, inputs_.scaling,
             {packed.data() + static_cast<Index>(r) * d, static_cast<std::size_t>(d)});
  const TensorView visible_to_last = head_matrix(inputs_.keys, rows[0].batch, inputs_.kv_head(rows[0].head))
                                         .slice(0, 0, inputs_.visible_keys(rows.back().query));
  dot(packed.data(), count, visible_to_last, scores, keys);
  for (Index r = 0; r < count; ++r) add_attention_mask(inputs_, rows[static_cast<std::size_t>(r)], scores + r * keys);
}

Mask select_scored(const AttentionInputs& inputs, Scorer scorer,
                   FunctionRef<void(RowId, std::span<float>, Selection&)> choose, const Context& context) {
  const MaskShape shape = inputs.shape();
  // The number of heads scored together: they share a KV head, and their number divides the group.
  const auto heads_together = [&] {
    Index together = std::min(kQueriesPerPass, std::max<Index>(1, inputs.group()));
    while (inputs.group() % together != 0) --together;
    return together;
  };
  return assemble_selections(
      shape, inputs.queries_length() == 1 ? heads_together() : kQueriesPerPass,
      [&](RowId first, std::span<Selection> selections) {
        const auto keys = static_cast<std::size_t>(shape.keys);
        static thread_local constinit ThreadScratch<std::vector<float>> scratch;
        std::vector<float>& scores = scratch.get();
        std::array<RowId, kQueriesPerPass> storage;
        const std::span<const RowId> rows(storage.data(), selections.size());
        for (std::size_t r = 0; r < rows.size(); ++r)
          storage[r] = shape.row_of_stored(shape.stored_row(first) + static_cast<Index>(r));
        if (std::none_of(rows.begin(), rows.end(), [&](RowId row) { return inputs.wants(row.head); })) return;
        scores.resize(keys * rows.size());
        scorer(rows, scores.data());
        for (std::size_t r = 0; r < rows.size(); ++r) {
          if (inputs.wants(rows[r].head)) choose(rows[r], {scores.data() + r * keys, keys}, selections[r]);
        }
      },
      context);
}

Mask select_by_score(const AttentionInputs& inputs, const Mask& previous, Scorer scorer,
                     FunctionRef<void(std::span<const float>, Selection&)> choose, const Context& context) {
  return select_scored(
      inputs, scorer,
      [&](RowId row, std::span<float> scores, Selection& selection) {
        static thread_local constinit ThreadScratch<std::vector<Run>> scratch;
        std::vector<Run>& chosen = scratch.get();
        chosen.clear();
        previous.row(row, chosen);
        exclude(chosen, scores);
        choose(scores, selection);
      },
      context);
}

}  // namespace reticle
