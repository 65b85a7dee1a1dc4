// Keeps the keys that the last queries attend to most, and the distances at which they look back. The variants of
// MInference (Jiang et al. 2024), nano-sparse-attention and sparse-frontier differ in the parameters.
#include <reticle/core/masker.hpp>
#include <reticle/core/ops/vertical_slash.hpp>

namespace reticle::maskers {

struct VerticalSlashConfig {
  Size vertical_size = 1000;
  Size slash_size = 6096;
  Index approximation_window = 64;
  Index attention_sinks = 30;
  Index window_size = 100;
  Index block_size = 1;

  static constexpr const char* docs[] = {
      "keys that every query sees",
      "distances query - key that every query looks back",
      "last queries whose attention decides; all when there are fewer",
      "first keys that are always kept, as part of vertical_size",
      "nearest distances that are always kept, as part of slash_size",
      "1: just the verticals and slashes; above: slashes widened to blocks, as by MInference's kernel with 64"};
  void validate() const {
    require(vertical_size.positive() || slash_size.positive(), "vertical_size", "or slash_size must be > 0");
    require_count(approximation_window, "approximation_window");
    require_count(attention_sinks, "attention_sinks", 0);
    require_count(window_size, "window_size", 0);
    require_count(block_size, "block_size");
  }
};

class VerticalSlashMasker final : public Masker {
 public:
  explicit VerticalSlashMasker(const VerticalSlashConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    const Index keys = inputs.keys_length();
    const Index verticals = config_.vertical_size.resolve(keys), slashes = config_.slash_size.resolve(keys);
    return vertical_slash_mask(
        inputs,
        [&](Index batch, Index head) -> VerticalSlash {
          VerticalSlashScores scores = vertical_slash_scores(inputs, batch, head, config_.approximation_window);
          return {highest_with_first(std::move(scores.verticals), verticals, config_.attention_sinks),
                  highest_with_first(std::move(scores.slashes), slashes, config_.window_size)};
        },
        config_.block_size, context);
  }

 private:
  VerticalSlashConfig config_;
};

RETICLE_REGISTER_MASKER(
    "vertical_slash", VerticalSlashMasker, VerticalSlashConfig,
    {.summary = "Keeps the keys and the distances that the last queries attend to most.",
     .source = "MInference (Jiang et al. 2024); nano-sparse-attention, sparse-frontier",
     .rule = "keys k <= position with k among the vertical_size of largest summed attention, or position - k among the "
             "slash_size distances of largest summed attention, of the last approximation_window queries",
     .cost = "O(approximation_window * keys * head_dim) time per head; memory of what is kept"});

}  // namespace reticle::maskers
