// Scores blocks by sums along antidiagonals: a few products represent a whole tile. XAttention (Xu et al. 2025), as
// MInference ships it, without its errors at the first chunk.
#include <algorithm>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/observed_attention.hpp>
#include <reticle/core/ops/query_blocks.hpp>

namespace reticle::maskers {

struct XAttentionConfig {
  Index stride = 8;
  double threshold = 0.9;
  Index block_size = 128;
  double norm = 1;

  static constexpr const char* docs[] = {
      "rows of a group: the queries of one group meet the keys of another along one antidiagonal",
      "share, in [0, 1], of a block row's estimated mass that is kept",
      "queries and keys per block; a multiple of stride", "further divisor of the scores"};
  void validate() const {
    require(stride > 0 && stride <= 1024, "stride", "must be in [1, 1024]");
    require(threshold >= 0 && threshold <= 1, "threshold", "must be in [0, 1]");
    require_count(block_size, "block_size");
    require(block_size % stride == 0, "block_size", "must be a multiple of stride");
    require(norm > 0, "norm", "must be > 0");
  }
};

/// A head's rows in groups of `stride` positions, each group one long vector. Positions without a row, and rows that do
/// not count, are zeros.
struct Groups {
  std::vector<float> values;  // (count, width)
  Index first = 0, count = 0, width = 0;

  Groups(const TensorView& matrix, Index first_position, Index stride, bool reversed, float factor,
         FunctionRef<bool(Index)> counts)
      : first(first_position / stride), width(stride * matrix.size(1)) {
    const Index rows = matrix.size(0), d = matrix.size(1);
    if (rows == 0) return;
    count = (first_position + rows - 1) / stride + 1 - first;
    values.resize(static_cast<std::size_t>(count * width), 0.0f);
    for (Index i = 0; i < rows; ++i) {
      if (!counts(i)) continue;
      const Index position = first_position + i, within = position % stride;
      const Index at = (position / stride - first) * stride + (reversed ? stride - 1 - within : within);
      load_row(matrix, i, factor,
               std::span(values).subspan(static_cast<std::size_t>(at * d), static_cast<std::size_t>(d)));
    }
  }
};

class XAttention final : public Masker {
 public:
  explicit XAttention(const XAttentionConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    return query_block_mask(
        inputs, config_.block_size,
        [&](Index batch, Index head, std::span<std::vector<Run>> runs) {
          if (runs.empty()) return;
          const Index start = std::max<Index>(0, -inputs.position(0));
          const float factor = inputs.scaling / static_cast<float>(static_cast<double>(config_.stride) * config_.norm);
          const Groups queries(head_matrix(inputs.queries, batch, head).slice(0, start, inputs.queries_length()),
                               inputs.position(start), config_.stride, true, factor, [](Index) { return true; });
          const ReachableKeys reachable(inputs, batch, inputs.kv_head(head));
          const Groups keys(head_matrix(inputs.keys, batch, inputs.kv_head(head)), 0, config_.stride, false, 1,
                            reachable);
          const Index first = QueryBlocks(inputs, config_.block_size).first;
          for (std::size_t i = 0; i < runs.size(); ++i)
            append_blocks(chosen(masses(queries, keys, first + static_cast<Index>(i))), config_.block_size, runs[i]);
        },
        context);
  }

 private:
  /// The estimated mass of the key blocks up to that of the queries: softmax over groups, summed over the block's rows.
  std::vector<double> masses(const Groups& queries, const Groups& keys, Index block) const {
    const Index per_block = config_.block_size / config_.stride;
    std::vector<double> mass(static_cast<std::size_t>(block + 1), 0);
    std::vector<float> scores(static_cast<std::size_t>(keys.count) * kQueriesPerPass);
    const Index end = std::min((block + 1) * per_block, queries.first + queries.count);
    for (Index group = std::max(block * per_block, queries.first); group < end; group += kQueriesPerPass) {
      const Index rows = std::min<Index>(kQueriesPerPass, end - group);
      const Index visible = std::min(group + rows, keys.count);
      dot(queries.values.data() + (group - queries.first) * queries.width, rows,
          TensorView(keys.values.data(), DType::f32, {visible, keys.width}), scores.data(), keys.count);
      for (Index r = 0; r < rows; ++r) {
        const auto past = std::span(scores).subspan(static_cast<std::size_t>(r * keys.count),
                                                    static_cast<std::size_t>(std::min(group + r + 1, keys.count)));
        softmax(past);
        for (std::size_t i = 0; i < past.size(); ++i)
          mass[i / static_cast<std::size_t>(per_block)] += static_cast<double>(past[i]);
      }
    }
    return mass;
  }

  /// The first block, the block of the queries, and the heaviest others until the threshold is reached.
  std::vector<std::int32_t> chosen(const std::vector<double>& mass) const {
    const double target = config_.threshold * std::accumulate(mass.begin(), mass.end(), 0.0);
    std::vector<std::int32_t> order(mass.size());
    std::iota(order.begin(), order.end(), 0);
    const auto query_block = static_cast<std::int32_t>(mass.size()) - 1;
    const auto rank = [&](std::int32_t block) {
      return block == 0 || block == query_block ? std::numeric_limits<double>::infinity()
                                                : mass[static_cast<std::size_t>(block)];
    };
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return rank(a) > rank(b); });
    double sum = 0;
    std::size_t kept = 0;
    while (kept < order.size() && (order[kept] == 0 || order[kept] == query_block || sum < target))
      sum += mass[static_cast<std::size_t>(order[kept++])];
    order.resize(kept);
    std::sort(order.begin(), order.end());
    return order;
  }

  XAttentionConfig config_;
};

RETICLE_REGISTER_MASKER(
    "x_attention", XAttention, XAttentionConfig,
    {.summary = "Keeps, per block of queries, the heaviest blocks of keys by antidiagonal scores.",
     .source = "XAttention (Xu et al. 2025); MInference's xattention",
     .rule = "the first block, the own block, and others by descending mass while less than threshold of the row's "
             "mass is selected; mass: softmax over groups of stride keys of sum_i q_(stride-1-i) . k_i / stride / norm",
     .cost = "O(queries * keys * head_dim / stride) time per head; workspace (queries + keys) * head_dim floats"});

}  // namespace reticle::maskers
