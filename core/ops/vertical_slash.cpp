#include <algorithm>
#include <functional>
#include <limits>
#include <span>

#include <reticle/core/base/thread_scratch.hpp>
#include <reticle/core/ops/observed_attention.hpp>
#include <reticle/core/ops/query_blocks.hpp>
#include <reticle/core/ops/select.hpp>
#include <reticle/core/ops/vertical_slash.hpp>

namespace reticle {
namespace {

/// Ascending numbers as runs.
std::vector<Run> runs_of(std::span<const std::int32_t> numbers) {
  std::vector<Run> runs;
  append_blocks(numbers, 1, runs);
  return runs;
}

/// One head's pattern as runs. Slashes are runs of distances: key = position - distance.
struct Pattern {
  std::vector<Run> verticals, slashes;

  void keys_of(Index position, std::vector<Run>& scratch, FunctionRef<void(Run)> emit) const {
    scratch.clear();
    const auto at = static_cast<std::int32_t>(position);
    for (auto slash = slashes.rbegin(); slash != slashes.rend(); ++slash) {
      if (slash->begin <= at) scratch.push_back({std::max(0, at - slash->end + 1), at - slash->begin + 1, 1});
    }
    combine_rows<row_op::Max>(verticals, scratch, [&](Run run) {
      run.end = std::min(run.end, at + 1);
      if (run.begin < run.end) emit(run);
    });
  }
};

/// Appends the keys that MInference's kernel visits for one block of queries. Slashes go from far to near, each as
/// `size` keys; ranges that touch grow in whole steps of `size`. Verticals are added where no range covers them.
void blocks_of(const VerticalSlash& pattern, Index size, Index block, std::vector<Run>& runs) {
  const Index end_of_block = (block + 1) * size;
  std::vector<Run> ranges;
  for (auto slash = pattern.slashes.rbegin(); slash != pattern.slashes.rend(); ++slash) {
    if (*slash >= end_of_block) continue;
    const Index end = std::max(end_of_block - *slash, size);
    const auto begin = static_cast<std::int32_t>(end - size);
    if (ranges.empty() || begin > ranges.back().end) {
      ranges.push_back({begin, static_cast<std::int32_t>(end), 1});
    } else if (end > ranges.back().end) {
      ranges.back().end += static_cast<std::int32_t>(size);
    }
  }
  combine_rows<row_op::Max>(runs_of(pattern.verticals), ranges, [&](Run run) { runs.push_back(run); });
}

}  // namespace

VerticalSlashScores vertical_slash_scores(const AttentionInputs& inputs, Index batch, Index head, Index window) {
  const auto keys = static_cast<std::size_t>(inputs.keys_length());
  std::vector<double> verticals(keys, 0), slashes(keys, 0);
  const Index queries = inputs.queries_length();
  for_each_attention_row(inputs, batch, head, std::max<Index>(0, queries - window), queries,
                         [&](Index query, std::span<const float> probabilities) {
                           const Index position = inputs.position(query);
                           for (Index key = 0; key <= position; ++key) {
                             const auto p = static_cast<double>(probabilities[static_cast<std::size_t>(key)]);
                             verticals[static_cast<std::size_t>(key)] += p;
                             slashes[static_cast<std::size_t>(position - key)] += p;
                           }
                         });
  return {{verticals.begin(), verticals.end()}, {slashes.begin(), slashes.end()}};
}

Index cover(std::span<const float> scores, double share) {
  std::vector<float> descending(scores.begin(), scores.end());
  std::sort(descending.begin(), descending.end(), std::greater<>());
  double sum = 0;
  Index within = 0;
  for (const float score : descending) {
    sum += static_cast<double>(score);
    if (sum > share) break;
    ++within;
  }
  return std::min(within + 1, static_cast<Index>(scores.size()));
}

std::vector<std::int32_t> highest_with_first(std::vector<float> scores, Index count, Index forced) {
  std::fill(scores.begin(), scores.begin() + std::min(forced, static_cast<Index>(scores.size())),
            std::numeric_limits<float>::infinity());
  std::vector<std::int32_t> highest;
  top_k(scores, count, highest);
  return highest;
}

Mask vertical_slash_mask(const AttentionInputs& inputs, FunctionRef<VerticalSlash(Index, Index)> pattern_of,
                         Index block_size, const Context& context) {
  if (block_size > 1) {
    return query_block_mask(
        inputs, block_size,
        [&](Index batch, Index head, std::span<std::vector<Run>> runs) {
          const VerticalSlash pattern = pattern_of(batch, head);
          const Index first = QueryBlocks(inputs, block_size).first;
          for (std::size_t i = 0; i < runs.size(); ++i)
            blocks_of(pattern, block_size, first + static_cast<Index>(i), runs[i]);
        },
        context);
  }
  const MaskShape shape = inputs.shape();
  std::vector<Pattern> patterns(static_cast<std::size_t>(shape.batch * shape.heads));
  context.for_each_chunk(shape.batch * shape.heads, 1, [&](Index, Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      if (!inputs.wants(i % shape.heads)) continue;
      const VerticalSlash pattern = pattern_of(i / shape.heads, i % shape.heads);
      patterns[static_cast<std::size_t>(i)] = {runs_of(pattern.verticals), runs_of(pattern.slashes)};
    }
  });
  return Mask::from_runs(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        static thread_local constinit ThreadScratch<std::vector<Run>> scratch;
        patterns[static_cast<std::size_t>(row.batch * shape.heads + row.head)].keys_of(inputs.position(row.query),
                                                                                       scratch.get(), emit);
      },
      context);
}

}  // namespace reticle
