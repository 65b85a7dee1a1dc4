#include <limits>

#include <reticle/core/mask/builder.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/scores.hpp>

namespace reticle {

void ExactScorer::operator()(RowId first, Index rows, float* scores) const {
  const Index keys = inputs_.keys_length(), d = inputs_.head_dim();
  const TensorView queries = head_matrix(inputs_.queries, first.batch, first.head);
  std::vector<float> packed(static_cast<std::size_t>(rows * d));
  for (Index r = 0; r < rows; ++r)
    load_row(queries, first.query + r, inputs_.scaling, {packed.data() + r * d, static_cast<std::size_t>(d)});
  const TensorView visible_to_last = head_matrix(inputs_.keys, first.batch, inputs_.kv_head(first.head))
                                         .slice(0, 0, inputs_.visible_keys(first.query + rows - 1));
  dot(packed.data(), rows, visible_to_last, scores, keys);
  for (Index r = 0; r < rows; ++r)
    add_attention_mask(inputs_, {first.batch, first.head, first.query + r}, scores + r * keys);
}

Mask select_by_score(const AttentionInputs& inputs, const Mask& previous, Scorer scorer,
                     FunctionRef<void(std::span<const float>, Selection&)> choose, const Context& context) {
  const MaskShape shape = inputs.shape();
  return assemble_selections(
      shape, kQueriesPerPass,
      [&](RowId row, std::span<Selection> selections) {
        if (!inputs.wants(row.head)) return;
        const auto keys = static_cast<std::size_t>(shape.keys);
        thread_local std::vector<float> scores;
        thread_local std::vector<Run> chosen;
        scores.resize(keys * selections.size());
        scorer(row, static_cast<Index>(selections.size()), scores.data());
        for (std::size_t r = 0; r < selections.size(); ++r, ++row.query) {
          const std::span<float> of_row(scores.data() + r * keys, keys);
          chosen.clear();
          previous.row(row, chosen);
          exclude(chosen, of_row);
          choose(of_row, selections[r]);
        }
      },
      context);
}

}  // namespace reticle
