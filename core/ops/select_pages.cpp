#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include <reticle/core/ops/select.hpp>
#include <reticle/core/ops/select_pages.hpp>

namespace reticle {
namespace {

std::vector<float> page_scores(const Rule& rule, const AttentionInputs& inputs, const PageBounds& bounds, RowId row) {
  const Index kv_head = inputs.kv_head(row.head), group = inputs.group();
  const Index first = rule.by_group ? kv_head * group : row.head;
  const Index last = rule.by_group ? first + group : first + 1;
  std::vector<float> query(static_cast<std::size_t>(inputs.head_dim()));
  std::vector<float> scores(static_cast<std::size_t>(bounds.pages())), total(scores.size(), 0.0f);
  for (Index head = first; head < last; ++head) {
    load_row(head_matrix(inputs.queries, row.batch, head), row.query, 1, query);
    bounds.score(query, row.batch, kv_head, scores);
    for (std::size_t page = 0; page < total.size(); ++page) total[page] += scores[page];
  }
  return total;
}

/// Appends the allowed keys of the pages.
void add_pages(const Rule& rule, const AttentionInputs& inputs, RowId row, std::span<const std::int32_t> pages,
               Selection& keys) {
  std::optional<AttentionMaskRow> bias;
  if (inputs.attention_mask) bias.emplace(*inputs.attention_mask, row);
  for (const std::int32_t page : pages) {
    const Index end = std::min(inputs.visible_keys(row.query), (page + 1) * rule.page_size);
    for (Index key = page * rule.page_size; key < end; ++key) {
      if (!bias || (*bias)(key) > -std::numeric_limits<float>::infinity())
        keys.indices.push_back(static_cast<std::int32_t>(key));
    }
  }
}

/// A page without a key that the query may attend to is not a candidate.
void exclude_forbidden_pages(const Rule& rule, const AttentionInputs& inputs, RowId row, std::span<float> scores) {
  if (!inputs.attention_mask) {
    const Index visible = inputs.visible_keys(row.query),
                pages = std::min((visible + rule.page_size - 1) / rule.page_size, static_cast<Index>(scores.size()));
    std::fill(scores.begin() + pages, scores.end(), -std::numeric_limits<float>::infinity());
    return;
  }
  std::vector<std::int32_t> page{0};
  Selection keys;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    page[0] = static_cast<std::int32_t>(i);
    keys.clear();
    add_pages(rule, inputs, row, page, keys);
    if (keys.indices.empty()) scores[i] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace

Mask select_pages(const Rule& rule, const AttentionInputs& inputs, PageBounds& bounds, const Context& context) {
  bounds.update(inputs, rule.page_size, rule.label_bits);
  return Mask::from_selections(
      inputs.shape(),
      [&](RowId row, Selection& selection) {
        std::vector<float> scores = page_scores(rule, inputs, bounds, row);
        const Index current = std::max<Index>(0, inputs.position(row.query)) / rule.page_size;
        std::vector<std::int32_t> pages;
        if (rule.own_page) scores.resize(std::min(scores.size(), static_cast<std::size_t>(current)));
        exclude_forbidden_pages(rule, inputs, row, scores);
        top_k(scores, rule.count, pages);
        if (rule.own_page) pages.push_back(static_cast<std::int32_t>(current));
        add_pages(rule, inputs, row, pages, selection);
      },
      context);
}

}  // namespace reticle
