// A masker that the tests drop into maskers/: nothing else is touched.
#include <reticle/core/masker.hpp>

namespace reticle::maskers {

struct EveryNthConfig {
  Index stride = 8;

  static constexpr const char* docs[] = {"distance from one kept key to the next"};
  void validate() const { require(stride > 0, "stride", "must be > 0"); }
};

class EveryNth final : public Masker {
 public:
  explicit EveryNth(const EveryNthConfig& config) : stride_(config.stride) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    return Mask::from_selections(
        inputs.shape().one_row(),
        [&](RowId, Selection& selection) {
          for (Index key = 0; key < inputs.keys_length(); key += stride_)
            selection.indices.push_back(static_cast<std::int32_t>(key));
        },
        context);
  }

 private:
  Index stride_;
};

RETICLE_REGISTER_MASKER("every_nth", EveryNth, EveryNthConfig,
                        {.summary = "Keeps every stride-th key.",
                         .source = "tests",
                         .rule = "keys 0, stride, 2 stride, ...",
                         .cost = "O(keys / stride)"});

}  // namespace reticle::maskers
