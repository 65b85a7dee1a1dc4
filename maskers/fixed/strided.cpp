// Patterns in which every key is reached in two steps, through an intermediate key. Sparse Transformer (Child et al.
// 2019).
#include <algorithm>
#include <vector>

#include <reticle/core/masker.hpp>

namespace reticle::maskers {

enum class StridedPattern : std::uint8_t { strided, fixed };

struct StridedConfig {
  Index stride = 128;
  StridedPattern pattern = StridedPattern::strided;
  Index summary_size = 8;

  static constexpr const char* docs[] = {
      "length of the window, or of the blocks",
      "columns that move with the query, or that stand at the end of each block",
      "keys at the end of each block that every later query sees; of the fixed pattern"};
  void validate() const {
    require_count(stride, "stride");
    require(summary_size > 0 && summary_size <= stride, "summary_size", "must be in [1, stride]");
  }
};

class Strided final : public Masker {
 public:
  explicit Strided(const StridedConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    const Index stride = config_.stride;
    return Mask::from_runs(
        inputs.shape().one_head(),
        [&](RowId row, FunctionRef<void(Run)> emit) {
          const Index position = inputs.position(row.query);
          const auto put = [&](Index begin, Index end) {
            emit({static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end), 1});
          };
          if (position < 0) return;
          if (config_.pattern == StridedPattern::strided) {
            for (Index key = position % stride; key <= position - stride; key += stride) put(key, key + 1);
            put(std::max<Index>(0, position - stride + 1), position + 1);
          } else {
            const Index block_start = position / stride * stride;
            for (Index block = 0; block < block_start; block += stride)
              put(block + stride - config_.summary_size, block + stride);
            put(block_start, position + 1);
          }
        },
        context);
  }

  std::vector<Rule> rules(Index keys, int) const override {
    if (config_.pattern != StridedPattern::strided) return {};
    const Index stride = config_.stride;
    return {Rule{Rule::Kind::window, stride}, Rule{Rule::Kind::window, keys / stride + 1, stride}};
  }

 private:
  StridedConfig config_;
};

RETICLE_REGISTER_MASKER(
    "strided", Strided, StridedConfig,
    {.summary = "Keeps a window and every stride-th key, or the own block and the ends of others.",
     .source = "Sparse Transformer (Child et al. 2019)",
     .rule = "strided: distances < stride and multiples of stride; fixed: keys of the own block and "
             "the last summary_size keys of each block before it",
     .cost = "O(queries * keys / stride) time and memory"});

}  // namespace reticle::maskers
