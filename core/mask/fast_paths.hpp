// Ways to combine two masks that are faster than merging their runs, and their common helpers. All take masks of one
// logical shape with at least one position, and give the same result as combine_rows. Internal to core/mask.
#pragma once

#include <vector>

#include <reticle/core/mask/builder.hpp>
#include <reticle/core/mask/row_kernels.hpp>

namespace reticle {

/// Combines two bit masks by any operation, bandwidth-bound.
Mask combine_bits(SetOp op, const MaskShape& shape, const Mask& a, const Mask& b, const Context& context);
/// Unites two 0/1 masks by setting bits.
Mask unite_as_bits(const MaskShape& shape, const Mask& a, const Mask& b, const Context& context);
/// Unites two masks by `op`, with p for every position.
Mask unite_as_dense(SetOp op, const MaskShape& shape, const Mask& a, const Mask& b, const Context& context);
/// True if both masks are column lists, or one is bits and the other a weighted list, so that the bits are read as
/// columns.
bool merges_by_columns(const Mask& a, const Mask& b);
/// Unites by `op` two masks for which merges_by_columns holds.
Mask unite_columns(SetOp op, const MaskShape& shape, const Mask& a, const Mask& b, const Context& context);

/// A row's columns and, if the mask is weighted, their p.
struct ColumnList {
  const std::int32_t* columns = nullptr;
  const float* p = nullptr;
  Index count = 0;
};
inline ColumnList columns_of(const Csr& csr, Index stored_row) {
  const Index begin = csr.row_ptr[stored_row];
  return {csr.indices.data() + begin, csr.p.empty() ? nullptr : csr.p.data() + begin,
          csr.row_ptr[stored_row + 1] - begin};
}

/// Fills the stored rows of a mask on all threads: fill(row, counts) adds the row's counts to `counts`. Returns the sum
/// over all rows.
template <class Fill>
MaskCounts fill_stored_rows(const MaskShape& shape, const Context& context, Fill&& fill) {
  const Index rows = shape.stored_rows(), chunk = rows_per_chunk(rows);
  std::vector<MaskCounts> chunks(static_cast<std::size_t>((rows - 1) / chunk + 1));
  context.for_each_chunk(rows, chunk, [&](Index index, Index begin, Index end) {
    MaskCounts counts;  // local, because elements of `chunks` share cache lines with other threads
    for (Index row = begin; row < end; ++row) fill(row, counts);
    chunks[static_cast<std::size_t>(index)] = counts;
  });
  MaskCounts sum;
  for (const MaskCounts& counts : chunks) sum += counts;
  return sum;
}

/// The mask with this representation of `kind`, converted if conform chooses another kind for its counts.
Mask conformed(const MaskShape& shape, Representation representation, const MaskCounts& counts, MaskKind kind,
               const Context& context);

/// The same for a representation whose runs have been counted: row r has run_ptr[r + 1] runs.
template <class Rep>
Mask conformed(const MaskShape& shape, Rep rep, Array<Index> run_ptr, const MaskCounts& counts, MaskKind kind,
               const Context& context) {
  if (conform(shape, counts) != MaskKind::runs) return conformed(shape, std::move(rep), counts, kind, context);
  accumulate(run_ptr);
  Array<Interval> intervals(static_cast<std::size_t>(run_ptr.back()));
  Array<float> p(counts.weighted ? intervals.size() : 0);
  const Index rows = shape.stored_rows();
  context.for_each_chunk(rows, rows_per_chunk(rows), [&](Index, Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      auto next = static_cast<std::size_t>(run_ptr[static_cast<std::size_t>(row)]);
      for_each_run(rep, row, shape.keys, [&](Run run) {
        intervals[next] = {run.begin, run.end};
        if (counts.weighted) p[next] = run.p;
        ++next;
      });
    }
  });
  return MaskAssembler::make(shape, Runs{std::move(run_ptr), std::move(intervals), std::move(p)}, counts.entries,
                             counts.weighted);
}

}  // namespace reticle
