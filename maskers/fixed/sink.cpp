// Keeps the first keys of the sequence. StreamingLLM (Xiao et al. 2023); sparse-attention-hub's SinkMasker.
#include <algorithm>
#include <vector>

#include <reticle/core/masker.hpp>

namespace reticle::maskers {

struct SinkConfig {
  Size sink_size = 128;

  static constexpr const char* docs[] = {"keys kept at the start of the sequence"};
  void validate() const { require(sink_size.positive(), "sink_size", "must be > 0"); }
};

class Sink final : public Masker {
 public:
  explicit Sink(const SinkConfig& config) : size_(config.sink_size) {}

  bool selects_by_query() const override { return !size_.is_fraction(); }

  /// With a fraction, more keys are kept as the sequence grows.
  bool forgets() const override { return !size_.is_fraction(); }

  Mask lasting(const AttentionInputs& inputs, Index, LayerState&, const Context& context) const override {
    const auto end = static_cast<std::int32_t>(std::min(size_.resolve(inputs.keys_length()), inputs.keys_length()));
    return Mask::intervals(
        inputs.one_query().one_row(),
        [&](RowId) {
          return Interval{0, end};
        },
        context);
  }

  std::vector<Rule> rules(Index keys, int) const override { return {Rule{Rule::Kind::sinks, size_.resolve(keys)}}; }

 private:
  Size size_;
};

RETICLE_REGISTER_MASKER("sink", Sink, SinkConfig,
                        {.summary = "Keeps the first keys of the sequence (attention sinks).",
                         .source = "StreamingLLM (Xiao et al. 2023)",
                         .rule = "keys [0, sink_size) for every query",
                         .cost = "O(1) time and memory",
                         .color = "#0072b2"});

}  // namespace reticle::maskers
