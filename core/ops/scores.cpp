#include <limits>

#include <reticle/core/mask/builder.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/scores.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle {

void ExactScorer::operator()(RowId first, Index rows, float* scores) const {
  const Index keys = inputs_.keys_length(), d = inputs_.head_dim();
  const TensorView queries = inputs_.queries.slice(0, first.batch, first.batch + 1)
                                 .slice(1, first.head, first.head + 1)
                                 .slice(2, first.query, first.query + rows);
  Tensor packed = Tensor::copy(queries, DType::f32);
  for (float& value : packed.span<float>()) value *= inputs_.scaling;
  const Index kv_head = inputs_.kv_head(first.head);
  TensorView all_keys(nullptr, inputs_.keys.dtype, {0, 0});
  all_keys.data =
      static_cast<const std::byte*>(inputs_.keys.data) +
      (first.batch * inputs_.keys.stride(0) + kv_head * inputs_.keys.stride(1)) * size_of(inputs_.keys.dtype);
  all_keys.shape = {inputs_.visible_keys(first.query + rows - 1), d};
  all_keys.strides = {inputs_.keys.stride(2), inputs_.keys.stride(3)};
  dot(packed.span<float>().data(), rows, all_keys, scores, keys);
  for (Index r = 0; r < rows; ++r) {
    const RowId row{first.batch, first.head, first.query + r};
    float* of_row = scores + r * keys;
    const Index visible = inputs_.visible_keys(row.query);
    std::fill(of_row + visible, of_row + keys, -std::numeric_limits<float>::infinity());
    if (inputs_.attention_mask) {
      const AttentionMaskRow bias(*inputs_.attention_mask, row);
      for (Index k = 0; k < visible; ++k) of_row[k] += bias(k);
    }
  }
}

Mask select_by_score(const AttentionInputs& inputs, const Mask& previous, Scorer scorer,
                     FunctionRef<void(std::span<const float>, Selection&)> choose, const Context& context) {
  const MaskShape shape = inputs.shape();
  return assemble_selections(
      shape, kQueriesPerPass,
      [&](RowId row, std::span<Selection> selections) {
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
