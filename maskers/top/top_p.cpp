// Keeps the fewest keys whose softmax mass exceeds a share, by a scorer that the config names. Twilight (Lin et al.
// 2025) with an approximate scorer.
#include <span>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/named_scorer.hpp>

namespace reticle::maskers {

struct TopPConfig {
  double top_p = 0.9;
  ScorerName scorer = ScorerName::exact;
  Index page_size = 16;

  static constexpr const char* docs[] = {
      "share, in [0, 1], of the softmax mass of the scores of keys not chosen yet",
      "score: exact q.k, value_aware (times its value's norm), page_bounds, page_means, key_norm (smallest)",
      "keys per page of the scorers by page"};
  void validate() const {
    require(top_p >= 0 && top_p <= 1, "top_p", "must be in [0, 1]");
    require_count(page_size, "page_size");
  }
};

class TopP final : public Masker {
 public:
  explicit TopP(const TopPConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask& previous, LayerState& state,
              const Context& context) const override {
    return select_by_score(
        inputs, previous, NamedScorer(config_.scorer, config_.page_size, inputs, state.get<NamedScorerState>(*this)),
        [&](std::span<const float> scores, Selection& selection) { top_p(scores, config_.top_p, selection.indices); },
        context);
  }

  std::vector<Rule> rules(Index, int) const override {
    if (config_.scorer != ScorerName::exact) return {};
    return {Rule{.kind = Rule::Kind::top_p, .share = config_.top_p}};
  }

 private:
  TopPConfig config_;
};

RETICLE_REGISTER_MASKER("top_p", TopP, TopPConfig,
                        {.summary = "Keeps the fewest keys whose mass exceeds top_p, by a scorer of choice.",
                         .source = "sparse-attention-hub (TopP), over any scorer; Twilight (Lin et al. 2025)",
                         .rule = "the smallest prefix, by descending score, whose softmax mass over the keys not "
                                 "chosen yet exceeds top_p",
                         .cost = "O(queries * keys * head_dim) time for exact, / page_size by page; memory of what is "
                                 "kept; a decode step reads new keys only, but for exact products"});

}  // namespace reticle::maskers
