// Keeps the fewest keys whose attention mass exceeds a share of the whole, by exact scores: the upper bound of adaptive
// budgets. sparse-attention-hub's OracleTopP; Twilight (Lin et al. 2025) names the rule top-p.
#include <vector>

#include <reticle/core/masker.hpp>

namespace reticle::maskers {

struct OracleTopPConfig {
  double top_p = 0.9;

  static constexpr const char* docs[] = {"share, in [0, 1], of the attention mass of the keys not chosen yet"};
  void validate() const { require(top_p >= 0 && top_p <= 1, "top_p", "must be in [0, 1]"); }
};

class OracleTopP final : public Masker {
 public:
  explicit OracleTopP(const OracleTopPConfig& config) : top_p_(config.top_p) {}

  std::vector<Rule> rules(Index, int) const override { return {Rule{.kind = Rule::Kind::top_p, .share = top_p_}}; }

 private:
  double top_p_;
};

RETICLE_REGISTER_MASKER(
    "oracle_top_p", OracleTopP, OracleTopPConfig,
    {.summary = "Keeps the fewest keys whose exact attention mass exceeds top_p.",
     .source = "sparse-attention-hub (OracleTopP)",
     .rule = "the smallest prefix, by descending score, whose softmax mass over the keys not chosen yet "
             "exceeds top_p",
     .cost = "O(queries * keys * head_dim) time, memory of what is kept"});

}  // namespace reticle::maskers
