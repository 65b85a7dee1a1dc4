// Keeps the keys that a small learned indexer scores highest, the same for all heads. DeepSeek Sparse Attention
// (DeepSeek-V3.2-Exp 2025): its lightning indexer, given as extra tensors.
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::maskers {

struct DsaTopKConfig {
  Size top_k = 2048;

  static constexpr const char* docs[] = {"keys added per query, beyond those that all heads chose already"};
  void validate() const { require(top_k.positive(), "top_k", "must be > 0"); }
};

class DsaTopK final : public Masker {
 public:
  explicit DsaTopK(const DsaTopKConfig& config) : top_k_(config.top_k) {}

  Mask select(const AttentionInputs& inputs, const Mask& previous, LayerState&, const Context& context) const override {
    const TensorView queries = indexer(inputs, "indexer_queries"), keys = indexer(inputs, "indexer_keys"),
                     weights = indexer(inputs, "indexer_weights");
    check(inputs, queries, keys, weights);
    const Index k = top_k_.resolve(inputs.keys_length());
    MaskShape shape = inputs.shape();
    shape.shared_heads = true;
    return Mask::from_selections(
        shape,
        [&](RowId row, Selection& selection) {
          std::vector<float> scores = score(inputs, row, queries, keys, weights);
          add_attention_mask(inputs, row, scores.data());
          exclude(chosen_by_all(previous, row), scores);
          top_k(scores, k, selection.indices);
        },
        context);
  }

 private:
  static TensorView indexer(const AttentionInputs& inputs, const char* name) {
    const std::optional<TensorView> tensor = inputs.extra(name);
    if (!tensor)
      throw ShapeError("dsa_top_k: the extra tensor " + std::string(name) +
                       " is missing; expected indexer_queries (b, indexer heads, sq, d), indexer_keys (b, 1, sk, d) "
                       "and indexer_weights (b, indexer heads, sq, 1)");
    require_rank(*tensor, 4, name);
    dispatch_float(tensor->dtype, name, []<class T>() {});
    return *tensor;
  }

  static void check(const AttentionInputs& inputs, const TensorView& queries, const TensorView& keys,
                    const TensorView& weights) {
    const auto is = [](const TensorView& tensor, Index a, Index b, Index c, Index d) {
      return tensor.size(0) == a && tensor.size(1) == b && tensor.size(2) == c && tensor.size(3) == d;
    };
    const Index heads = queries.size(1), d = queries.size(3);
    if (!is(queries, inputs.batch(), heads, inputs.queries_length(), d) ||
        !is(keys, inputs.batch(), 1, inputs.keys_length(), d) ||
        !is(weights, inputs.batch(), heads, inputs.queries_length(), 1))
      throw ShapeError("dsa_top_k: indexer_queries " + queries.describe() + ", indexer_keys " + keys.describe() +
                       ", indexer_weights " + weights.describe() + " do not fit queries " + inputs.queries.describe() +
                       " and keys " + inputs.keys.describe());
  }

  /// scores[k] = sum over indexer heads of weight * max(0, q . k).
  static std::vector<float> score(const AttentionInputs& inputs, RowId row, const TensorView& queries,
                                  const TensorView& keys, const TensorView& weights) {
    const Index heads = queries.size(1), d = queries.size(3), visible = inputs.visible_keys(row.query);
    const TensorView visible_keys = head_matrix(keys, row.batch, 0).slice(0, 0, visible);
    std::vector<float> scores(static_cast<std::size_t>(inputs.keys_length()), 0.0f);
    std::vector<float> packed(static_cast<std::size_t>(kQueriesPerPass * d)),
        products(static_cast<std::size_t>(kQueriesPerPass * visible));
    for (Index head = 0; head < heads; head += kQueriesPerPass) {
      const Index rows = std::min<Index>(kQueriesPerPass, heads - head);
      for (Index r = 0; r < rows; ++r)
        load_row(head_matrix(queries, row.batch, head + r), row.query, 1,
                 {packed.data() + r * d, static_cast<std::size_t>(d)});
      dot(packed.data(), rows, visible_keys, products.data(), visible);
      for (Index r = 0; r < rows; ++r) {
        float weight = 0;
        load_row(head_matrix(weights, row.batch, head + r), row.query, 1, {&weight, 1});
        for (Index key = 0; key < visible; ++key)
          scores[static_cast<std::size_t>(key)] +=
              weight * std::max(0.0f, products[static_cast<std::size_t>(r * visible + key)]);
      }
    }
    return scores;
  }

  static std::vector<Run> chosen_by_all(const Mask& previous, RowId row) {
    std::vector<Run> all, head_runs, both;
    previous.row(row, all);
    const MaskShape& shape = previous.shape();
    for (Index head = 1; head < (shape.shared_heads ? 1 : shape.heads) && !all.empty(); ++head) {
      head_runs.clear();
      both.clear();
      previous.row({row.batch, head, row.query}, head_runs);
      combine_rows<row_op::Intersect>(all, head_runs, [&](Run run) { both.push_back(run); });
      all.swap(both);
    }
    return all;
  }

  Size top_k_;
};

RETICLE_REGISTER_MASKER(
    "dsa_top_k", DsaTopK, DsaTopKConfig,
    {.summary = "Keeps the keys that a lightning indexer scores highest, the same for all heads.",
     .source = "DeepSeek Sparse Attention (DeepSeek-V3.2-Exp 2025)",
     .rule = "the top_k keys of largest sum_j weight_j * max(0, indexer_q_j . indexer_k), among those not chosen yet",
     .cost = "O(queries * keys * indexer heads * indexer head_dim) time",
     .extras = "indexer_queries (b, indexer heads, sq, d), indexer_keys (b, 1, sk, d), indexer_weights (b, indexer "
               "heads, sq, 1)"});

}  // namespace reticle::maskers
