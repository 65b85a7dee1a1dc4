// Keeps whole pages of keys, those with the highest upper bound of q.k. Quest (Tang et al. 2024);
// sparse-attention-hub's QuestTopK, and with share_within_group, keep_current_page and min_pages 1 sparse-frontier's.
#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/page_bounds.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::maskers {

struct QuestTopKConfig {
  Size heavy_size = 0.1;
  Index page_size = 16;
  Index label_bits = 16;
  Index min_pages = 3;
  bool share_within_group = false;
  bool keep_current_page = false;

  static constexpr const char* docs[] = {
      "keys per query; heavy_size / page_size pages are kept, rounded down",
      "keys per page",
      "bits, 1 to 16, of the page bounds; 16 keeps them exact",
      "least number of pages kept, however small heavy_size is",
      "sum page scores over the query heads of a KV head and keep the same pages for all of them",
      "keep the page of the query's own position, and choose among the pages before it"};
  void validate() const {
    require(heavy_size.positive(), "heavy_size", "must be > 0");
    require(page_size > 0, "page_size", "must be > 0");
    require(label_bits > 0 && label_bits <= 16, "label_bits", "must be in [1, 16]");
    require(min_pages > 0, "min_pages", "must be > 0");
  }
};

class QuestTopK final : public Masker {
 public:
  explicit QuestTopK(const QuestTopKConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState& state, const Context& context) const override {
    PageBounds& bounds = state.get<PageBounds>(*this);
    bounds.update(inputs, config_.page_size, config_.label_bits);
    const Index count = pages_kept(inputs.keys_length());
    return Mask::from_selections(
        inputs.shape(),
        [&](RowId row, Selection& selection) {
          std::vector<float> scores = page_scores(inputs, bounds, row);
          const Index current = std::max<Index>(0, inputs.position(row.query)) / config_.page_size;
          std::vector<std::int32_t> pages;
          if (config_.keep_current_page) scores.resize(std::min(scores.size(), static_cast<std::size_t>(current)));
          exclude_forbidden_pages(inputs, row, scores);
          top_k(scores, count, pages);
          if (config_.keep_current_page) pages.push_back(static_cast<std::int32_t>(current));
          add_pages(inputs, row, pages, selection);
        },
        context);
  }

  std::vector<Rule> rules(Index keys, int) const override {
    if (config_.label_bits != 16 || config_.share_within_group || config_.keep_current_page) return {};
    return {Rule{.kind = Rule::Kind::pages, .count = pages_kept(keys), .page_size = config_.page_size}};
  }

 private:
  Index pages_kept(Index keys) const {
    return std::max(config_.min_pages, config_.heavy_size.resolve(keys) / config_.page_size);
  }

  std::vector<float> page_scores(const AttentionInputs& inputs, const PageBounds& bounds, RowId row) const {
    const Index kv_head = inputs.kv_head(row.head), group = inputs.group();
    const Index first = config_.share_within_group ? kv_head * group : row.head;
    const Index last = config_.share_within_group ? first + group : first + 1;
    std::vector<float> query(static_cast<std::size_t>(inputs.head_dim()));
    std::vector<float> scores(static_cast<std::size_t>(bounds.pages())), total(scores.size(), 0.0f);
    for (Index head = first; head < last; ++head) {
      load_row(head_matrix(inputs.queries, row.batch, head), row.query, 1, query);
      bounds.score(query, row.batch, kv_head, scores);
      for (std::size_t page = 0; page < total.size(); ++page) total[page] += scores[page];
    }
    return total;
  }

  /// A page without a key that the query may attend to is not a candidate.
  void exclude_forbidden_pages(const AttentionInputs& inputs, RowId row, std::span<float> scores) const {
    if (!inputs.attention_mask) {
      const Index visible = inputs.visible_keys(row.query),
                  pages = std::min((visible + config_.page_size - 1) / config_.page_size,
                                   static_cast<Index>(scores.size()));
      std::fill(scores.begin() + pages, scores.end(), -std::numeric_limits<float>::infinity());
      return;
    }
    std::vector<std::int32_t> page{0};
    Selection keys;
    for (std::size_t i = 0; i < scores.size(); ++i) {
      page[0] = static_cast<std::int32_t>(i);
      keys.clear();
      add_pages(inputs, row, page, keys);
      if (keys.indices.empty()) scores[i] = -std::numeric_limits<float>::infinity();
    }
  }

  /// The allowed keys of the pages.
  void add_pages(const AttentionInputs& inputs, RowId row, std::span<const std::int32_t> pages, Selection& keys) const {
    std::optional<AttentionMaskRow> bias;
    if (inputs.attention_mask) bias.emplace(*inputs.attention_mask, row);
    for (const std::int32_t page : pages) {
      const Index end = std::min(inputs.visible_keys(row.query), (page + 1) * config_.page_size);
      for (Index key = page * config_.page_size; key < end; ++key) {
        if (!bias || (*bias)(key) > -std::numeric_limits<float>::infinity())
          keys.indices.push_back(static_cast<std::int32_t>(key));
      }
    }
  }

  QuestTopKConfig config_;
};

RETICLE_REGISTER_MASKER(
    "quest_top_k", QuestTopK, QuestTopKConfig,
    {.summary = "Keeps whole pages of keys, those with the highest upper bound of q.k.",
     .source = "Quest (Tang et al. 2024); sparse-attention-hub, sparse-frontier",
     .rule = "the max(min_pages, heavy_size / page_size) pages of largest sum_d max(q_d * least_d, q_d * "
             "largest_d), chosen before or not",
     .cost = "O(queries * keys / page_size * head_dim) time; a decode step reads new keys only; bounds take "
             "2 / page_size of the keys' elements"});

}  // namespace reticle::maskers
