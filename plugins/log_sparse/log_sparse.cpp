// A plugin: a masker built against the installed package only. The same file in maskers/ would be a built-in masker.
// Keeps the query's position and keys at exponentially growing distances. LogSparse Transformer (Li et al. 2019).
#include <vector>

#include <reticle/core/masker.hpp>

namespace log_sparse {

using namespace reticle;

struct LogSparseConfig {
  Index base = 2;

  static constexpr const char* docs[] = {"how much farther each kept key lies than the one before it"};
  void validate() const { require(base > 1, "base", "must be > 1"); }
};

class LogSparse final : public Masker {
 public:
  explicit LogSparse(const LogSparseConfig& config) : base_(config.base) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    return Mask::from_selections(
        inputs.shape().one_head(),
        [&](RowId row, Selection& selection) {
          const Index position = inputs.position(row.query);
          if (position < 0) return;
          std::vector<std::int32_t>& keys = selection.indices;
          keys.push_back(static_cast<std::int32_t>(position));
          for (Index distance = 1; distance <= position; distance *= base_) {
            keys.insert(keys.begin(), static_cast<std::int32_t>(position - distance));
            if (distance > position / base_) break;
          }
        },
        context);
  }

 private:
  Index base_;
};

RETICLE_REGISTER_MASKER("log_sparse", LogSparse, LogSparseConfig,
                        {.summary = "Keeps keys at exponentially growing distances.",
                         .source = "LogSparse Transformer (Li et al. 2019)",
                         .rule = "keys position and position - base^i",
                         .cost = "O(queries * log keys) time and memory"});

}  // namespace log_sparse
