// A plugin: a masker built against the installed package only. The same file, put into maskers/, would be a built-in.
// Keeps every `dilation`-th key of a window that ends at each query's own position. Longformer (Beltagy et al. 2020).
#include <reticle/core/masker.hpp>

namespace dilated_local {

using namespace reticle;

struct DilatedLocalConfig {
  Size window_size = 128;
  Index dilation = 2;

  static constexpr const char* docs[] = {"keys kept up to and including the query's own position",
                                         "distance from one kept key to the next"};
  void validate() const {
    require(window_size.positive(), "window_size", "must be > 0");
    require(dilation > 0, "dilation", "must be > 0");
  }
};

class DilatedLocal final : public Masker {
 public:
  explicit DilatedLocal(const DilatedLocalConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    const Index window = config_.window_size.resolve(inputs.keys_length());
    return Mask::from_selections(
        inputs.shape().one_head(),
        [&](RowId row, Selection& selection) {
          const Index last = inputs.position(row.query);
          const Index count = last < 0 ? 0 : std::min(window, last / config_.dilation + 1);
          for (Index i = count; i-- > 0;)
            selection.indices.push_back(static_cast<std::int32_t>(last - i * config_.dilation));
        },
        context);
  }

 private:
  DilatedLocalConfig config_;
};

RETICLE_REGISTER_MASKER("dilated_local", DilatedLocal, DilatedLocalConfig,
                        {.summary = "Keeps every dilation-th key of a window behind each query.",
                         .source = "Longformer (Beltagy et al. 2020)",
                         .rule = "keys position - i * dilation, 0 <= i < window_size",
                         .cost = "O(queries * window_size) time and memory"});

}  // namespace dilated_local
