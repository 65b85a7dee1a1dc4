// A vertical-slash pattern with as many keys and distances as it takes to cover a share of the last queries' attention.
// sparse-frontier's FlexPrefill.
#include <algorithm>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/vertical_slash.hpp>

namespace reticle::maskers {

struct AdaptiveVerticalSlashConfig {
  double alpha = 0.9;
  Index approximation_size = 512;
  Index min_budget = 256;
  Index attention_sinks = 4;
  Index window_size = 64;
  Index block_size = 1;

  static constexpr const char* docs[] = {
      "share, in [0, 1], of the last queries' attention that the keys, and that the distances, are to cover",
      "last queries whose attention decides; all when there are fewer",
      "least number of keys and of distances",
      "first keys that are always kept, as part of the budget",
      "nearest distances that are always kept, as part of the budget",
      "1: just the verticals and slashes; above: slashes widened to blocks, as by the original's kernel with 64"};
  void validate() const {
    require(alpha >= 0 && alpha <= 1, "alpha", "must be in [0, 1]");
    require_count(approximation_size, "approximation_size");
    require_count(min_budget, "min_budget");
    require_count(attention_sinks, "attention_sinks", 0);
    require_count(window_size, "window_size", 0);
    require_count(block_size, "block_size");
  }
};

class AdaptiveVerticalSlash final : public Masker {
 public:
  explicit AdaptiveVerticalSlash(const AdaptiveVerticalSlashConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    const auto rows = static_cast<double>(std::min(config_.approximation_size, inputs.queries_length()));
    const auto highest = [&](std::vector<float> scores, Index forced) {
      const Index budget = std::max(config_.min_budget, cover(scores, config_.alpha * rows));
      return highest_with_first(std::move(scores), budget, forced);
    };
    return vertical_slash_mask(
        inputs,
        [&](Index batch, Index head) -> VerticalSlash {
          VerticalSlashScores scores = vertical_slash_scores(inputs, batch, head, config_.approximation_size);
          return {highest(std::move(scores.verticals), config_.attention_sinks),
                  highest(std::move(scores.slashes), config_.window_size)};
        },
        config_.block_size, context);
  }

 private:
  AdaptiveVerticalSlashConfig config_;
};

RETICLE_REGISTER_MASKER(
    "adaptive_vertical_slash", AdaptiveVerticalSlash, AdaptiveVerticalSlashConfig,
    {.summary = "A vertical-slash pattern whose sizes cover a share of the last queries' attention.",
     .source = "sparse-frontier (Nawrot et al. 2025), its FlexPrefill",
     .rule = "vertical_slash with sizes max(min_budget, the fewest keys, or distances, whose attention passes alpha)",
     .cost = "O(approximation_size * keys * head_dim) time per head; memory of what is kept"});

}  // namespace reticle::maskers
