// An A-shape that also keeps every key for the last queries, from which the answer is read: MInference's Tri-shape, and
// TriangleMix.
#include <algorithm>

#include <reticle/core/masker.hpp>

namespace reticle::maskers {

struct TriShapeConfig {
  Size n_init = 128;
  Size n_local = 3968;
  Size n_last = 100;

  static constexpr const char* docs[] = {"keys kept at the start of the sequence",
                                         "keys kept up to and including the query's own position",
                                         "last queries that attend to every key before them"};
  void validate() const { require(n_local.positive(), "n_local", "must be > 0"); }
};

class TriShape final : public Masker {
 public:
  explicit TriShape(const TriShapeConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    const Index keys = inputs.keys_length();
    const Index init = config_.n_init.resolve(keys), local = config_.n_local.resolve(keys);
    const Index dense_from = keys - std::min(config_.n_last.resolve(keys), keys - 1);
    return Mask::from_runs(
        inputs.shape().one_head(),
        [&](RowId row, FunctionRef<void(Run)> emit) {
          const Index end = std::max<Index>(0, inputs.position(row.query) + 1);
          const Index first_end = end > dense_from ? end : std::min(init, end);
          emit({0, static_cast<std::int32_t>(first_end), 1});
          emit({static_cast<std::int32_t>(std::max(first_end, end - std::min(local, end))),
                static_cast<std::int32_t>(end), 1});
        },
        context);
  }

 private:
  TriShapeConfig config_;
};

RETICLE_REGISTER_MASKER("tri_shape", TriShape, TriShapeConfig,
                        {.summary = "Keeps the first keys, a sliding window, and everything for the last queries.",
                         .source = "MInference's tri_shape; TriangleMix (He et al. 2025)",
                         .rule = "an a_shape, and keys [0, position] for queries at the last n_last positions",
                         .cost = "O(queries) time and memory"});

}  // namespace reticle::maskers
