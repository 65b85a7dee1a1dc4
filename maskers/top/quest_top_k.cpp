// Keeps whole pages of keys, those with the highest upper bound of q.k. Quest (Tang et al. 2024);
// sparse-attention-hub's QuestTopK, and with share_within_group, keep_current_page and min_pages 1 sparse-frontier's.
#include <algorithm>
#include <vector>

#include <reticle/core/masker.hpp>

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

  std::vector<Rule> rules(Index keys, int) const override {
    return {Rule{.kind = Rule::Kind::pages,
                 .count = std::max(config_.min_pages, config_.heavy_size.resolve(keys) / config_.page_size),
                 .page_size = config_.page_size,
                 .label_bits = config_.label_bits,
                 .by_group = config_.share_within_group,
                 .own_page = config_.keep_current_page}};
  }

 private:
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
