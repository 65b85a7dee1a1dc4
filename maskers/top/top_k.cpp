// Keeps the keys of the highest scores, by a scorer that the config names.
#include <span>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/named_scorer.hpp>

namespace reticle::maskers {

struct TopKConfig {
  Size heavy_size = 0.1;
  ScorerName scorer = ScorerName::exact;
  Index page_size = 16;

  static constexpr const char* docs[] = {
      "keys added per query, beyond those already chosen",
      "score: exact q.k, value_aware (times its value's norm), page_bounds, page_means, key_norm (smallest)",
      "keys per page of the scorers by page"};
  void validate() const {
    require(heavy_size.positive(), "heavy_size", "must be > 0");
    require_count(page_size, "page_size");
  }
};

class TopK final : public Masker {
 public:
  explicit TopK(const TopKConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask& previous, LayerState& state,
              const Context& context) const override {
    const Index k = config_.heavy_size.resolve(inputs.keys_length());
    return select_by_score(
        inputs, previous, NamedScorer(config_.scorer, config_.page_size, inputs, state.get<NamedScorerState>(*this)),
        [&](std::span<const float> scores, Selection& selection) { top_k(scores, k, selection.indices); }, context);
  }

  std::vector<Rule> rules(Index keys, int) const override {
    if (config_.scorer != ScorerName::exact) return {};
    return {Rule{Rule::Kind::top_k, config_.heavy_size.resolve(keys)}};
  }

 private:
  TopKConfig config_;
};

RETICLE_REGISTER_MASKER("top_k", TopK, TopKConfig,
                        {.summary = "Keeps the keys of the highest scores, by a scorer of choice.",
                         .source = "sparse-attention-hub (TopK), over any scorer",
                         .rule = "the heavy_size keys of highest score among those not chosen yet",
                         .cost = "O(queries * keys * head_dim) time for exact, / page_size by page; memory of what is "
                                 "kept; a decode step reads new keys only, but for exact products"});

}  // namespace reticle::maskers
