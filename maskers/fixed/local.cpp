// Keeps a sliding window that ends at each query's own position, whole or dilated. Longformer (Beltagy et al. 2020);
// sparse-attention-hub's LocalMasker, without its early-out to full attention and without erasing what others chose.
#include <algorithm>
#include <vector>

#include <reticle/core/masker.hpp>

namespace reticle::maskers {

struct LocalConfig {
  Size window_size = 128;
  Index dilation = 1;

  static constexpr const char* docs[] = {"keys kept up to and including the query's own position",
                                         "distance from one kept key to the next"};
  void validate() const {
    require(window_size.positive(), "window_size", "must be > 0");
    require_count(dilation, "dilation");
  }
};

class Local final : public Masker {
 public:
  explicit Local(const LocalConfig& config) : config_(config) {}

  bool selects_by_query() const override { return !config_.window_size.is_fraction(); }

  /// With a fraction and a dilation, the reach of the window may grow faster than the sequence, so that a later query
  /// returns to a key that an earlier one left out.
  bool forgets() const override { return !config_.window_size.is_fraction() || config_.dilation == 1; }

  Mask lasting(const AttentionInputs& inputs, Index first, LayerState&, const Context& context) const override {
    const Index window = std::min(config_.window_size.resolve(first + 1), first + 1);
    const auto begin = static_cast<std::int32_t>(std::max<Index>(0, first - (window - 1) * config_.dilation));
    const auto end = static_cast<std::int32_t>(inputs.keys_length());
    return Mask::intervals(
        inputs.one_query().one_row(),
        [&](RowId) {
          return Interval{begin, end};
        },
        context);
  }

  std::vector<Rule> rules(Index keys, int) const override {
    return {Rule{Rule::Kind::window, config_.window_size.resolve(keys), config_.dilation}};
  }

 private:
  LocalConfig config_;
};

RETICLE_REGISTER_MASKER("local", Local, LocalConfig,
                        {.summary = "Keeps a sliding window that ends at each query's own position.",
                         .source = "Longformer (Beltagy et al. 2020)",
                         .rule = "keys position - i * dilation, 0 <= i < window_size",
                         .cost = "O(queries) time and memory; O(queries * window_size) when dilated",
                         .color = "#e69f00"});

}  // namespace reticle::maskers
