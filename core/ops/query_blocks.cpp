#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <reticle/core/base/thread_scratch.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/query_blocks.hpp>

namespace reticle {
namespace {

Index first_query(const AttentionInputs& inputs) { return std::max<Index>(0, -inputs.position(0)); }

}  // namespace

QueryBlocks::QueryBlocks(const AttentionInputs& inputs, Index block_size) : size(block_size) {
  const Index begin = inputs.position(first_query(inputs)), end = inputs.keys_length();
  if (begin >= end) return;
  first = begin / size;
  count = (end - 1) / size + 1 - first;
}

Mask query_block_mask(const AttentionInputs& inputs, Index block_size,
                      FunctionRef<void(Index, Index, std::span<std::vector<Run>>)> keys_of, const Context& context) {
  const MaskShape shape = inputs.shape();
  const QueryBlocks blocks(inputs, block_size);
  const auto per_head = static_cast<std::size_t>(blocks.count);
  std::vector<std::vector<Run>> chosen(static_cast<std::size_t>(shape.batch * shape.heads) * per_head);
  context.for_each_chunk(shape.batch * shape.heads, 1, [&](Index, Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      if (per_head == 0 || !inputs.wants(i % shape.heads)) continue;
      keys_of(i / shape.heads, i % shape.heads,
              std::span(chosen).subspan(static_cast<std::size_t>(i) * per_head, per_head));
    }
  });
  return Mask::from_runs(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        const Index position = inputs.position(row.query);
        if (position < 0) return;
        const auto block = static_cast<std::size_t>(position / blocks.size - blocks.first);
        for (Run run : chosen[static_cast<std::size_t>(row.batch * shape.heads + row.head) * per_head + block]) {
          if (run.begin > position) break;
          run.end = std::min(run.end, static_cast<std::int32_t>(position + 1));
          emit(run);
        }
      },
      context);
}

Mask key_block_mask(const AttentionInputs& inputs, Index block_size, Index lists,
                    FunctionRef<void(RowId, std::vector<std::int32_t>&)> choose, const Context& context) {
  const MaskShape shape = inputs.shape();
  if (lists == 0) return Mask::empty(shape);
  const Index heads_per_list = shape.heads / lists, rows = shape.batch * lists * shape.queries;
  std::vector<std::vector<std::int32_t>> chosen(static_cast<std::size_t>(rows));
  context.for_each_chunk(rows, 16, [&](Index, Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      const RowId row{i / shape.queries / lists, i / shape.queries % lists, i % shape.queries};
      bool wanted = false;
      for (Index head = row.head * heads_per_list; head < (row.head + 1) * heads_per_list; ++head)
        wanted = wanted || inputs.wants(head);
      if (wanted && inputs.position(row.query) >= 0) choose(row, chosen[static_cast<std::size_t>(i)]);
    }
  });
  return Mask::from_runs(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        static thread_local constinit ThreadScratch<std::vector<Run>> scratch;
        std::vector<Run>& runs = scratch.get();
        runs.clear();
        append_blocks(chosen[static_cast<std::size_t>((row.batch * lists + row.head / heads_per_list) * shape.queries +
                                                      row.query)],
                      block_size, runs);
        const Index end = inputs.position(row.query) + 1;
        for (const Run& run : runs) {
          if (run.begin < end) emit({run.begin, static_cast<std::int32_t>(std::min<Index>(run.end, end)), 1});
        }
      },
      context);
}

void append_blocks(std::span<const std::int32_t> blocks, Index size, std::vector<Run>& runs) {
  for (const std::int32_t block : blocks) {
    const auto begin = static_cast<std::int32_t>(std::min(block * size, kMaxColumns));
    const auto end = static_cast<std::int32_t>(std::min((Index{block} + 1) * size, kMaxColumns));
    if (!runs.empty() && runs.back().end == begin) {
      runs.back().end = end;
    } else {
      runs.push_back({begin, end, 1});
    }
  }
}

namespace {

/// Row 0 of the matrix (n, d) is at position `first_position` >= 0. Only rows with counts(row) enter the means.
BlockMeans block_means(const TensorView& matrix, Index first_position, Index size, BlockMeans::Divisor divisor,
                       FunctionRef<bool(Index)> counts) {
  BlockMeans result;
  result.first = first_position / size;
  result.head_dim = matrix.size(1);
  const Index rows = matrix.size(0);
  if (rows == 0) return result;
  result.blocks = (first_position + rows - 1) / size + 1 - result.first;
  const auto d = static_cast<std::size_t>(result.head_dim);
  result.means.resize(static_cast<std::size_t>(result.blocks) * d);
  result.empty.resize(static_cast<std::size_t>(result.blocks));
  std::vector<float> row(d);
  std::vector<double> sum(d);
  for (Index block = 0; block < result.blocks; ++block) {
    const Index begin = std::max<Index>(0, (result.first + block) * size - first_position);
    const Index end = std::min(rows, (result.first + block + 1) * size - first_position);
    std::fill(sum.begin(), sum.end(), 0.0);
    Index rows_read = 0;
    for (Index i = begin; i < end; ++i) {
      if (!counts(i)) continue;
      ++rows_read;
      load_row(matrix, i, 1, row);
      for (std::size_t c = 0; c < d; ++c) sum[c] += static_cast<double>(row[c]);
    }
    result.empty[static_cast<std::size_t>(block)] = rows_read == 0 ? 1 : 0;
    const auto count = static_cast<double>(divisor == BlockMeans::Divisor::rows ? std::max<Index>(1, rows_read) : size);
    for (std::size_t c = 0; c < d; ++c)
      result.means[static_cast<std::size_t>(block) * d + c] = static_cast<float>(sum[c] / count);
  }
  return result;
}

}  // namespace

void BlockMeans::score(std::span<const float> query, std::span<float> scores) const {
  dot(query.data(), 1, TensorView(means.data(), DType::f32, {blocks, head_dim}), scores.data(), blocks);
  for (std::size_t i = 0; i < empty.size(); ++i) {
    if (empty[i] != 0) scores[i] = -std::numeric_limits<float>::infinity();
  }
}

BlockMeans query_block_means(const AttentionInputs& inputs, Index batch, Index head, Index size) {
  const Index first = first_query(inputs);
  return block_means(head_matrix(inputs.queries, batch, head).slice(0, first, inputs.queries_length()),
                     inputs.position(first), size, BlockMeans::Divisor::rows, [](Index) { return true; });
}

BlockMeans key_block_means(const AttentionInputs& inputs, Index batch, Index head, Index size,
                           BlockMeans::Divisor divisor) {
  const ReachableKeys reachable(inputs, batch, inputs.kv_head(head));
  return block_means(head_matrix(inputs.keys, batch, inputs.kv_head(head)), 0, size, divisor, reachable);
}

}  // namespace reticle
