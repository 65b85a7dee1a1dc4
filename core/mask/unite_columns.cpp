#include <algorithm>
#include <variant>
#include <vector>

#include <reticle/core/mask/fast_paths.hpp>

namespace reticle {
namespace {

/// Rows of a CSR or bit mask as column lists. A bit mask's row is decoded to a buffer, which the next call overwrites.
class ColumnReader {
 public:
  explicit ColumnReader(const Mask& mask) : mask_(mask) {
    if (mask.kind() == MaskKind::bits) columns_.resize(static_cast<std::size_t>(mask.shape().keys + kSlack));
  }

  ColumnList row(RowId row) {
    const Index stored = mask_.shape().stored_row(row);
    if (const auto* csr = std::get_if<Csr>(&mask_.representation())) return columns_of(*csr, stored);
    const Index per_row = BitDense::words_per_row(mask_.shape().keys);
    return {columns_.data(), nullptr, columns_of_bits(words(stored), per_row, 0, columns_.data())};
  }

  Index count(RowId row) const {
    const Index stored = mask_.shape().stored_row(row);
    if (const auto* csr = std::get_if<Csr>(&mask_.representation()))
      return csr->row_ptr[stored + 1] - csr->row_ptr[stored];
    return count_bits(words(stored), BitDense::words_per_row(mask_.shape().keys));
  }

 private:
  const std::uint64_t* words(Index stored_row) const {
    return std::get<BitDense>(mask_.representation()).words.data() +
           stored_row * BitDense::words_per_row(mask_.shape().keys);
  }

  const Mask& mask_;
  std::vector<std::int32_t> columns_;
};

/// Offsets at which the chunks of a union are merged. Each chunk reserves space for the entries of both operands, so
/// that no chunk waits for the one before it.
struct ChunkPlan {
  std::vector<Index> start;  // the chunks' offsets, then the total size
  Index min_entries = 0;     // lower bound on the result's entries
};

ChunkPlan plan_chunks(const MaskShape& shape, const Mask& a, const Mask& b) {
  const Index rows = shape.stored_rows(), chunk = rows_per_chunk(rows);
  ChunkPlan plan{std::vector<Index>(static_cast<std::size_t>((rows - 1) / chunk + 2), 0)};
  const ColumnReader reader_a(a), reader_b(b);
  for (Index row = 0; row < rows; ++row) {
    const RowId id = shape.row_of_stored(row);
    const Index left = reader_a.count(id), right = reader_b.count(id);
    plan.min_entries += std::max(left, right);
    plan.start[static_cast<std::size_t>(row / chunk) + 1] += left + right;
  }
  for (std::size_t i = 1; i < plan.start.size(); ++i) plan.start[i] += plan.start[i - 1] + kSlack;
  return plan;
}

/// The result's arrays, with gaps between chunks until close_gaps.
struct MergedColumns {
  Array<std::int32_t> indices;
  Array<float> p;  // empty if neither operand is weighted
  Array<Index> row_ptr, run_ptr;

  bool weighted() const { return !p.empty(); }
};

/// Merges rows [begin, end) of both masks into the arrays, from offset `start` on. Runs of weighted rows are counted in
/// a second pass, because reading back vectors just written stalls.
MaskCounts merge_chunk(SetOp op, const MaskShape& shape, const Mask& a, const Mask& b, Index begin, Index end,
                       Index start, MergedColumns& merged) {
  ColumnReader reader_a(a), reader_b(b);
  const bool weighted = merged.weighted();
  std::int32_t* const columns = merged.indices.data() + start;
  float* const columns_p = merged.p.data() + (weighted ? start : 0);
  MaskCounts counts;
  for (Index row = begin; row < end; ++row) {
    const RowId id = shape.row_of_stored(row);
    const ColumnList left = reader_a.row(id), right = reader_b.row(id);
    std::int32_t* const to = columns + counts.entries;
    Index& entries = merged.row_ptr[static_cast<std::size_t>(row) + 1];
    if (weighted) {
      entries = merge_weighted_columns(op, left.columns, left.p, left.count, right.columns, right.p, right.count, to,
                                       columns_p + counts.entries);
    } else {
      const RowCounts union_counts = merge_columns(left.columns, left.count, right.columns, right.count, to);
      entries = union_counts.entries;
      merged.run_ptr[static_cast<std::size_t>(row) + 1] = union_counts.runs;
    }
    counts.entries += entries;
  }
  for (Index row = begin, at = 0; row < end; ++row) {
    const Index entries = merged.row_ptr[static_cast<std::size_t>(row) + 1];
    Index& runs = merged.run_ptr[static_cast<std::size_t>(row) + 1];
    if (weighted) runs = count_runs(columns + at, columns_p + at, entries);
    counts.runs += runs;
    at += entries;
  }
  counts.weighted = weighted && std::any_of(columns_p, columns_p + counts.entries, [](float x) { return x < 1; });
  return counts;
}

/// Moves the chunks together and returns the sum of their counts. Frees unused memory when the operands overlap much,
/// since the gaps are then large.
MaskCounts close_gaps(const std::vector<MaskCounts>& chunks, const std::vector<Index>& start, MergedColumns& merged) {
  MaskCounts counts;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    const Index from = start[i], size = chunks[i].entries;
    if (from > counts.entries) {
      std::copy_n(merged.indices.begin() + from, size, merged.indices.begin() + counts.entries);
      if (merged.weighted()) std::copy_n(merged.p.begin() + from, size, merged.p.begin() + counts.entries);
    }
    counts += chunks[i];
  }
  const bool alike = static_cast<Index>(merged.indices.size()) > counts.entries + counts.entries / 4;
  merged.indices.resize(static_cast<std::size_t>(counts.entries));
  merged.p.resize(static_cast<std::size_t>(counts.weighted ? counts.entries : 0));
  if (alike || merged.p.empty()) merged.p.shrink_to_fit();
  if (alike) merged.indices.shrink_to_fit();
  return counts;
}

}  // namespace

bool merges_by_columns(const Mask& a, const Mask& b) {
  const auto listed = [](const Mask& mask) { return mask.kind() == MaskKind::csr; };
  const auto bits_beside = [](const Mask& bits, const Mask& list) {
    return bits.kind() == MaskKind::bits && list.kind() == MaskKind::csr && list.weighted();
  };
  return (listed(a) && listed(b)) || bits_beside(a, b) || bits_beside(b, a);
}

Mask unite_columns(SetOp op, const MaskShape& shape, const Mask& a, const Mask& b, const Context& context) {
  const Index rows = shape.stored_rows(), chunk = rows_per_chunk(rows);
  const bool weighted = a.weighted() || b.weighted();
  ChunkPlan plan = plan_chunks(shape, a, b);
  if (!weighted && forms_bit_union(shape, plan.min_entries)) return unite_as_bits(shape, a, b, context);

  const auto capacity = static_cast<std::size_t>(plan.start.back());
  MergedColumns merged{Array<std::int32_t>(capacity), Array<float>(weighted ? capacity : 0),
                       Array<Index>(static_cast<std::size_t>(rows) + 1),
                       Array<Index>(static_cast<std::size_t>(rows) + 1)};
  // A single thread takes the chunks in order and leaves no gaps.
  const bool in_order = context.pool->threads() == 1;
  std::vector<MaskCounts> chunks(plan.start.size() - 1);
  context.for_each_chunk(rows, chunk, [&](Index index, Index begin, Index end) {
    const auto i = static_cast<std::size_t>(index);
    chunks[i] = merge_chunk(op, shape, a, b, begin, end, plan.start[i], merged);
    if (in_order) plan.start[i + 1] = plan.start[i] + chunks[i].entries;
  });
  const MaskCounts counts = close_gaps(chunks, plan.start, merged);
  accumulate(merged.row_ptr);
  Csr csr{std::move(merged.row_ptr), std::move(merged.indices), std::move(merged.p)};
  return conformed(shape, std::move(csr), std::move(merged.run_ptr), counts, MaskKind::csr, context);
}

}  // namespace reticle
