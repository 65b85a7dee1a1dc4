// Samples keys uniformly, so that attention over the sample estimates attention over all keys (Horvitz and Thompson
// 1952). sparse-attention-hub's RandomSampling; unbiased, except with "replacement", which follows the reference.
#include <algorithm>
#include <optional>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::maskers {

struct RandomSamplingConfig {
  double sampling_rate = 0.1;
  bool replacement = false;

  static constexpr const char* docs[] = {"share, in (0, 1], of the keys not chosen yet",
                                         "false: without replacement, unbiased; true: int(sampling_rate * keys) draws "
                                         "with replacement from all keys, as sparse-attention-hub"};
  void validate() const { require(sampling_rate > 0 && sampling_rate <= 1, "sampling_rate", "must be in (0, 1]"); }
};

class RandomSampling final : public Masker {
 public:
  explicit RandomSampling(const RandomSamplingConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask& previous, LayerState& state,
              const Context& context) const override {
    if (!config_.replacement) return Masker::select(inputs, previous, state, context);  // by rules()
    return Mask::from_selections(
        inputs.shape(),
        [&](RowId row, Selection& selection) { draw_with_replacement(inputs, row, context, selection); }, context);
  }

  bool samples() const override { return true; }
  std::vector<Rule> rules(Index, int) const override {
    if (config_.replacement) return {};
    return {Rule{.kind = Rule::Kind::sample, .share = config_.sampling_rate}};
  }

 private:
  /// Draws as the reference does. Recorded draws, an extra tensor "sample_indices" (b, hq, sq, n) I64, replace the
  /// random ones.
  void draw_with_replacement(const AttentionInputs& inputs, RowId row, const Context& context,
                             Selection& selection) const {
    const Index keys = inputs.keys_length();
    if (const std::optional<TensorView> recorded = inputs.extra("sample_indices")) {
      require_rank(*recorded, 4, "sample_indices");
      if (recorded->dtype != DType::i64 || recorded->size(0) != inputs.batch() || recorded->size(1) != inputs.heads() ||
          recorded->size(2) != inputs.queries_length())
        throw ShapeError("sample_indices: " + recorded->describe() + "; expected I64 (b, hq, sq, draws) for " +
                         inputs.shape().describe());
      for (Index i = 0; i < recorded->size(3); ++i) {
        selection.indices.push_back(
            recorded_key(*recorded->at<Index>(row.batch, row.head, row.query, i), inputs, "sample_indices"));
      }
      std::sort(selection.indices.begin(), selection.indices.end());
      selection.indices.erase(std::unique(selection.indices.begin(), selection.indices.end()), selection.indices.end());
    } else {
      Philox random = context.random(inputs.layer, row.batch, row.head, row.query);
      const auto draws = static_cast<Index>(config_.sampling_rate * static_cast<double>(keys));
      sample_with_replacement(keys, draws, random, selection.indices);
    }
    selection.p.assign(selection.indices.size(), static_cast<float>(config_.sampling_rate));
  }

  RandomSamplingConfig config_;
};

RETICLE_REGISTER_MASKER("random_sampling", RandomSampling, RandomSamplingConfig,
                        {.summary = "Samples keys uniformly; each kept key stands for 1 / p keys.",
                         .source = "sparse-attention-hub (RandomSampling); Horvitz and Thompson (1952)",
                         .rule = "round(sampling_rate * n) of the n keys not chosen yet, at least one, p = kept / n",
                         .cost = "O(keys / 64 + kept) time per query, O(kept) memory"});

}  // namespace reticle::maskers
