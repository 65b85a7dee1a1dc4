// Keeps every key up to each query's own position: dense causal attention as a masker. To restrict what other maskers
// choose, set "causal": true on the pipeline instead.
#include <vector>

#include <reticle/core/masker.hpp>

namespace reticle::maskers {

struct CausalConfig {};

class Causal final : public Masker {
 public:
  explicit Causal(const CausalConfig&) {}

  bool selects_by_query() const override { return true; }

  bool forgets() const override { return true; }

  std::vector<Rule> rules(Index keys, int) const override { return {Rule{Rule::Kind::window, keys}}; }
};

RETICLE_REGISTER_MASKER("causal", Causal, CausalConfig,
                        {.summary = "Keeps every key up to each query's own position.",
                         .source = "Transformer decoder (Vaswani et al. 2017)",
                         .rule = "keys [0, position]",
                         .cost = "O(queries) time and memory"});

}  // namespace reticle::maskers
