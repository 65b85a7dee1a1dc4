// Keeps the first keys and a window before each query: StreamingLLM's pattern as a prefill pattern (MInference's
// A-shape and stream_llm). Equal to sink + local, but with the name and the parameters that per-head configs use.
#include <algorithm>
#include <vector>

#include <reticle/core/masker.hpp>

namespace reticle::maskers {

struct AShapeConfig {
  Size n_init = 128;
  Size n_local = 3968;

  static constexpr const char* docs[] = {"keys kept at the start of the sequence",
                                         "keys kept up to and including the query's own position"};
  void validate() const { require(n_local.positive(), "n_local", "must be > 0"); }
};

class AShape final : public Masker {
 public:
  explicit AShape(const AShapeConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    const Index keys = inputs.keys_length();
    const Index init = std::min(config_.n_init.resolve(keys), keys), local = config_.n_local.resolve(keys);
    return Mask::from_runs(
        inputs.shape().one_head(),
        [&](RowId row, FunctionRef<void(Run)> emit) {
          const Index end = std::max<Index>(0, inputs.position(row.query) + 1);
          const Index first_end = std::min(init, end), window = std::max(first_end, end - std::min(local, end));
          emit({0, static_cast<std::int32_t>(first_end), 1});
          emit({static_cast<std::int32_t>(window), static_cast<std::int32_t>(end), 1});
        },
        context);
  }

  /// With a fraction, more of the first keys are kept as the sequence grows.
  bool forgets() const override { return !config_.n_init.is_fraction(); }

  Mask lasting(const AttentionInputs& inputs, Index first, LayerState&, const Context& context) const override {
    const Index keys = inputs.keys_length(), local = std::min(config_.n_local.resolve(first + 1), first + 1);
    const auto init = static_cast<std::int32_t>(std::min(config_.n_init.count(), keys));
    const auto window = static_cast<std::int32_t>(std::clamp<Index>(first + 1 - local, init, keys));
    return Mask::from_runs(
        inputs.one_query().one_row(),
        [&](RowId, FunctionRef<void(Run)> emit) {
          emit({0, init, 1});
          emit({window, static_cast<std::int32_t>(keys), 1});
        },
        context);
  }

  std::vector<Rule> rules(Index keys, int) const override {
    return {Rule{Rule::Kind::sinks, config_.n_init.resolve(keys)},
            Rule{Rule::Kind::window, config_.n_local.resolve(keys)}};
  }

 private:
  AShapeConfig config_;
};

RETICLE_REGISTER_MASKER("a_shape", AShape, AShapeConfig,
                        {.summary = "Keeps the first keys and a sliding window (StreamingLLM as a prefill).",
                         .source = "MInference (Jiang et al. 2024), a_shape and stream_llm; StreamingLLM "
                                   "(Xiao et al. 2023)",
                         .rule = "keys [0, n_init) and (position - n_local, position], no key after the query",
                         .cost = "O(queries) time and memory"});

}  // namespace reticle::maskers
