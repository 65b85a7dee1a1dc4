// Keeps every n-th key. Replace the rule in `select` with yours.
#include <cstdint>

#include <reticle/core/masker.hpp>

namespace every_nth {

using namespace reticle;

/// The fields of a JSON config, with defaults. Reflection generates the parser, the error messages, the JSON schema and
/// `reticle describe` from it.
struct EveryNthConfig {
  Index n = 4;

  static constexpr const char* docs[] = {"distance between the keys that are kept"};
  void validate() const { require(n > 0, "n", "must be > 0"); }
};

class EveryNth final : public Masker {
 public:
  explicit EveryNth(const EveryNthConfig& config) : n_(config.n) {}

  /// The keys to add for each query, ascending. `previous` holds the keys that earlier maskers chose; the pipeline
  /// merges the result, and removes keys that a causal config forbids. inputs.queries (b, hq, sq, d), inputs.keys (b,
  /// hkv, sk, d).
  Mask select(const AttentionInputs& inputs, const Mask& /*previous*/, LayerState& /*state*/,
              const Context& context) const override {
    return Mask::from_selections(
        inputs.shape().one_head(),  // the choice is the same in every head; use inputs.shape() for one per head
        [&](RowId, Selection& selection) {
          for (Index key = 0; key < inputs.keys_length(); key += n_)
            selection.indices.push_back(static_cast<std::int32_t>(key));
        },
        context);
  }

 private:
  Index n_;
};

RETICLE_REGISTER_MASKER("every_nth", EveryNth, EveryNthConfig,
                        {.summary = "Keeps every n-th key.",
                         .source = "your paper",
                         .rule = "keys 0, n, 2n, ...",
                         .cost = "O(queries * keys / n) time and memory"});

}  // namespace every_nth
