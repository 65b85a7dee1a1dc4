// Keeps the keys of the highest attention scores, computed exactly: the upper bound of approximate top-k methods.
// sparse-attention-hub's OracleTopK, with the scaling applied before an additive attention mask.
#include <vector>

#include <reticle/core/masker.hpp>

namespace reticle::maskers {

struct OracleTopKConfig {
  Size heavy_size = 0.1;

  static constexpr const char* docs[] = {"keys added per query, beyond those already chosen"};
  void validate() const { require(heavy_size.positive(), "heavy_size", "must be > 0"); }
};

class OracleTopK final : public Masker {
 public:
  explicit OracleTopK(const OracleTopKConfig& config) : heavy_size_(config.heavy_size) {}

  bool selects_by_query() const override { return !heavy_size_.is_fraction(); }

  std::vector<Rule> rules(Index keys, int) const override {
    return {Rule{Rule::Kind::top_k, heavy_size_.resolve(keys)}};
  }

 private:
  Size heavy_size_;
};

RETICLE_REGISTER_MASKER(
    "oracle_top_k", OracleTopK, OracleTopKConfig,
    {.summary = "Keeps the keys of the highest exact attention scores.",
     .source = "sparse-attention-hub (OracleTopK)",
     .rule = "the heavy_size keys of largest scaling * q.k + attention_mask among those not chosen yet",
     .cost = "O(queries * keys * head_dim) time, O(queries * heavy_size) memory"});

}  // namespace reticle::maskers
