// Chooses per head between two patterns: if block means predict the last queries' attention, each block of queries
// chooses its blocks of keys by them; otherwise the head gets a vertical-slash pattern of blocks. The sizes cover a
// share of the attention. FlexPrefill (Lai et al. 2025), as MInference ships it.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/observed_attention.hpp>
#include <reticle/core/ops/query_blocks.hpp>
#include <reticle/core/ops/vertical_slash.hpp>

namespace reticle::maskers {

struct FlexPrefillConfig {
  double gamma = 0.9;
  double tau = 0.1;
  Index block_size = 128;
  Index min_budget = 1;
  std::optional<Index> max_budget;
  std::optional<Index> tokens_per_block;

  static constexpr const char* docs[] = {
      "share, in [0, 1], of attention that the pattern is to cover",
      "Jensen-Shannon distance of block means to the last queries' attention; below it each block of queries chooses",
      "queries and keys per block",
      "least number of keys for the vertical, and for the slash blocks",
      "greatest number of keys for each; absent: all",
      "keys or distances that make a block of the budget; absent: block_size. The original always divides by 128"};
  void validate() const {
    require(gamma >= 0 && gamma <= 1, "gamma", "must be in [0, 1]");
    require(tau >= 0, "tau", "must be >= 0");
    require_count(block_size, "block_size");
    require_count(min_budget, "min_budget");
    require(!max_budget || *max_budget >= min_budget, "max_budget", "must be at least min_budget");
    if (max_budget) require_count(*max_budget, "max_budget");
    if (tokens_per_block) require_count(*tokens_per_block, "tokens_per_block");
  }
};

class FlexPrefill final : public Masker {
 public:
  explicit FlexPrefill(const FlexPrefillConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    const Index size = config_.block_size, keys = inputs.keys_length();
    if (keys <= std::max(2 * size, blocks_for(config_.min_budget) * size)) return Mask::full(inputs.shape());
    return query_block_mask(
        inputs, size,
        [&](Index batch, Index head, std::span<std::vector<Run>> runs) {
          if (!runs.empty()) select_head(inputs, batch, head, runs);
        },
        context);
  }

 private:
  Index blocks_for(Index tokens) const { return (tokens + config_.block_size - 1) / config_.block_size; }

  void select_head(const AttentionInputs& inputs, Index batch, Index head, std::span<std::vector<Run>> runs) const {
    const Index size = config_.block_size, keys = inputs.keys_length();
    const Index blocks = blocks_for(keys), window = std::min(size, inputs.queries_length());
    const VerticalSlashScores scores = vertical_slash_scores(inputs, batch, head, size);
    const BlockMeans key_means = key_block_means(inputs, batch, head, size, BlockMeans::Divisor::rows);

    std::vector<float> verticals(static_cast<std::size_t>(blocks)), slashes(static_cast<std::size_t>(blocks));
    for (Index i = 0; i < keys; ++i) {
      // Slashes are pooled from the farthest on, so that a short last block holds the nearest ones.
      verticals[static_cast<std::size_t>(i / size)] += scores.verticals[static_cast<std::size_t>(i)];
      slashes[static_cast<std::size_t>(i / size)] += scores.slashes[static_cast<std::size_t>(keys - 1 - i)];
    }
    const bool query_aware = estimate_distance(inputs, batch, head, window, key_means, verticals) < config_.tau;
    const auto budget = [&](std::span<const float> attention) {
      const Index least = blocks_for(config_.min_budget);
      if (query_aware) return least;
      const Index greatest = config_.max_budget ? std::min(blocks_for(*config_.max_budget), blocks) : blocks;
      const Index covering =
          cover(attention, config_.gamma * static_cast<double>(window)) / config_.tokens_per_block.value_or(size) + 1;
      return std::clamp(covering, std::min(least, greatest), greatest);
    };
    const std::vector<std::int32_t> kept_verticals = highest_with_first(verticals, budget(scores.verticals), 1);
    std::reverse(slashes.begin(), slashes.end());  // now by distance in blocks
    const std::vector<std::int32_t> kept_slashes = highest_with_first(slashes, budget(scores.slashes), 1);

    const Index first = QueryBlocks(inputs, size).first;
    std::vector<std::vector<std::uint8_t>> kept(runs.size(),
                                                std::vector<std::uint8_t>(static_cast<std::size_t>(blocks), 0));
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const Index query_block = first + static_cast<Index>(i);
      for (const std::int32_t vertical : kept_verticals) kept[i][static_cast<std::size_t>(vertical)] = 1;
      for (const std::int32_t slash : kept_slashes) {
        if (slash <= query_block) kept[i][static_cast<std::size_t>(query_block - slash)] = 1;
      }
    }
    if (query_aware) add_chosen_by_queries(inputs, batch, head, key_means, kept);
    for (std::size_t i = 0; i < runs.size(); ++i) {
      std::vector<std::int32_t> kept_blocks;
      for (Index block = 0; block <= first + static_cast<Index>(i); ++block) {
        if (kept[i][static_cast<std::size_t>(block)] != 0) kept_blocks.push_back(static_cast<std::int32_t>(block));
      }
      append_blocks(kept_blocks, size, runs[i]);
    }
  }

  /// The Jensen-Shannon distance between the last queries' attention to blocks of keys and its estimate from block
  /// means.
  static double estimate_distance(const AttentionInputs& inputs, Index batch, Index head, Index window,
                                  const BlockMeans& key_means, std::span<const float> attention_sums) {
    const TensorView queries = head_matrix(inputs.queries, batch, head);
    const Index rows = inputs.queries_length();
    std::vector<float> row(static_cast<std::size_t>(inputs.head_dim())), mean(row.size());
    for (Index query = rows - window; query < rows; ++query) {
      load_row(queries, query, inputs.scaling / static_cast<float>(window), row);
      for (std::size_t c = 0; c < row.size(); ++c) mean[c] += row[c];
    }
    std::vector<float> estimate(static_cast<std::size_t>(key_means.blocks));
    key_means.score(mean, estimate);
    softmax(estimate);
    double divergence = 0;
    for (std::size_t block = 0; block < estimate.size(); ++block) {
      const double p = static_cast<double>(estimate[block]);
      const double q = static_cast<double>(attention_sums[block]) / static_cast<double>(window);
      const double middle = (p + q) / 2;
      if (p > 0) divergence += p * std::log(p / middle) / 2;
      if (q > 0) divergence += q * std::log(q / middle) / 2;
    }
    return std::sqrt(std::max(0.0, divergence));
  }

  /// Adds the most probable blocks, over all blocks of queries together, up to a share gamma of the total probability.
  void add_chosen_by_queries(const AttentionInputs& inputs, Index batch, Index head, const BlockMeans& key_means,
                             std::vector<std::vector<std::uint8_t>>& kept) const {
    const BlockMeans query_means = query_block_means(inputs, batch, head, config_.block_size);
    const auto blocks = static_cast<std::size_t>(key_means.blocks);
    std::vector<float> probabilities(kept.size() * blocks, 0.0f), query(static_cast<std::size_t>(inputs.head_dim()));
    for (std::size_t i = 0; i < kept.size(); ++i) {
      const Index query_block = query_means.first + static_cast<Index>(i);
      const std::span<const float> mean = query_means.of(query_block);
      std::transform(mean.begin(), mean.end(), query.begin(), [&](float x) { return x * inputs.scaling; });
      const std::span<float> row = std::span(probabilities).subspan(i * blocks, blocks);
      key_means.score(query, row);
      softmax(row.first(static_cast<std::size_t>(query_block + 1)));
      std::fill(row.begin() + query_block + 1, row.end(), 0.0f);
    }
    std::vector<std::size_t> order(probabilities.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return probabilities[a] > probabilities[b]; });
    double sum = 0;
    for (const std::size_t i : order) {
      sum += static_cast<double>(probabilities[i]);
      if (sum > config_.gamma * static_cast<double>(kept.size()) || probabilities[i] == 0) break;
      kept[i / blocks][i % blocks] = 1;
    }
  }

  FlexPrefillConfig config_;
};

RETICLE_REGISTER_MASKER(
    "flex_prefill", FlexPrefill, FlexPrefillConfig,
    {.summary = "Per head, blocks by vertical and slash or by query-key means, covering a share of the attention.",
     .source = "FlexPrefill (Lai et al. 2025); MInference's flexprefill",
     .rule = "the first and the highest vertical blocks, the nearest and the highest slash blocks, as many as cover "
             "gamma of the last block_size queries' attention; where softmax of means is within tau of it, "
             "min_budget of both and the most probable blocks up to gamma",
     .cost = "O(block_size * keys * head_dim + (queries * keys / block_size^2) * (head_dim + log)) time per head"});

}  // namespace reticle::maskers
