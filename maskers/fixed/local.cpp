// Keeps a sliding window that ends at each query's own position. Longformer (Beltagy et al. 2020);
// sparse-attention-hub's LocalMasker, without its early-out to full attention and without erasing what others chose.
#include <reticle/core/masker.hpp>

namespace reticle::maskers {

struct LocalConfig {
  Size window_size = 128;

  static constexpr const char* docs[] = {"keys kept up to and including the query's own position"};
  void validate() const { require(window_size.positive(), "window_size", "must be > 0"); }
};

class Local final : public Masker {
 public:
  explicit Local(const LocalConfig& config) : window_(config.window_size) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    const Index window = std::min(window_.resolve(inputs.keys_length()), inputs.keys_length());
    return Mask::intervals(
        inputs.shape().one_head(),
        [&](RowId row) {
          const Index end = std::max<Index>(0, inputs.position(row.query) + 1);
          return Interval{static_cast<std::int32_t>(std::max<Index>(0, end - window)), static_cast<std::int32_t>(end)};
        },
        context);
  }

 private:
  Size window_;
};

RETICLE_REGISTER_MASKER("local", Local, LocalConfig,
                        {.summary = "Keeps a sliding window that ends at each query's own position.",
                         .source = "Longformer (Beltagy et al. 2020)",
                         .rule = "keys (position - window_size, position]",
                         .cost = "O(queries) time and memory"});

}  // namespace reticle::maskers
