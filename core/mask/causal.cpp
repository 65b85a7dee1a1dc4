#include <algorithm>
#include <bit>
#include <variant>
#include <vector>

#include <reticle/core/base/thread_scratch.hpp>
#include <reticle/core/mask/builder.hpp>
#include <reticle/core/mask/causal.hpp>

namespace reticle {
namespace {

/// One past the last column of a stored row; 0 when it has none.
Index end_of_row(const Empty&, Index, Index) { return 0; }
Index end_of_row(const Full&, Index, Index keys) { return keys; }
Index end_of_row(const BitDense& rep, Index row, Index keys) {
  const Index count = BitDense::words_per_row(keys);
  for (Index w = count; w-- > 0;) {
    if (const std::uint64_t word = rep.words[row * count + w]; word != 0) return w * 64 + 64 - std::countl_zero(word);
  }
  return 0;
}
Index end_of_row(const WeightedDense& rep, Index row, Index keys) {
  Index end = keys;
  while (end > 0 && !(rep.p[row * keys + end - 1] > 0)) --end;
  return end;
}
Index end_of_row(const Csr& rep, Index row, Index) {
  const Index end = rep.row_ptr[row + 1];
  return end == rep.row_ptr[row] ? 0 : rep.indices[end - 1] + 1;
}
Index end_of_row(const Runs& rep, Index row, Index) {
  const Index end = rep.row_ptr[row + 1];
  return end == rep.row_ptr[row] ? 0 : rep.intervals[end - 1].end;
}

/// Whether some row attends to a key after its query's position.
bool reaches_beyond_causality(const Mask& mask, const Context& context) {
  const MaskShape& shape = mask.shape();
  const Index rows = shape.stored_rows(), chunk = rows_per_chunk(rows);
  if (shape.positions() == 0) return false;
  std::vector<std::uint8_t> beyond(static_cast<std::size_t>((rows - 1) / chunk + 1), 0);
  context.for_each_chunk(rows, chunk, [&](Index index, Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      // When queries share a row, the first query sees the fewest keys.
      const Index visible = shape.keys - shape.queries + shape.row_of_stored(row).query + 1;
      const Index last =
          std::visit([&](const auto& rep) { return end_of_row(rep, row, shape.keys); }, mask.representation());
      if (last > std::max<Index>(0, visible)) {
        beyond[static_cast<std::size_t>(index)] = 1;
        return;
      }
    }
  });
  return std::ranges::find(beyond, 1) != beyond.end();
}

}  // namespace

Mask restrict_causal(const Mask& mask, const Context& context) {
  if (mask.kind() == MaskKind::empty || !reaches_beyond_causality(mask, context)) return mask;
  MaskShape shape = mask.shape();
  shape.shared_queries = false;
  return assemble(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        static thread_local constinit ThreadScratch<std::vector<Run>> scratch;
        std::vector<Run>& runs = scratch.get();
        runs.clear();
        mask.row(row, runs);
        const Index end = shape.keys - shape.queries + row.query + 1;
        for (Run run : runs) {
          if (run.begin >= end) break;
          run.end = static_cast<std::int32_t>(std::min<Index>(run.end, end));
          emit(run);
        }
      },
      context);
}

Index causal_nnz(const Mask& mask, const Context& context) {
  MaskShape shape = mask.shape();
  shape.shared_queries = false;
  const Index rows = shape.stored_rows(), chunk = rows_per_chunk(rows);
  if (shape.positions() == 0) return 0;
  std::vector<Index> chunks(static_cast<std::size_t>((rows - 1) / chunk + 1));
  context.for_each_chunk(rows, chunk, [&](Index chunk_index, Index begin, Index end) {
    Index count = 0;
    for (Index row = begin; row < end; ++row) {
      const RowId id = shape.row_of_stored(row);
      const Index visible = shape.keys - shape.queries + id.query + 1;
      std::visit(
          [&](const auto& rep) {
            for_each_run(rep, mask.shape().stored_row(id), shape.keys,
                         [&](Run run) { count += std::max<Index>(0, std::min<Index>(run.end, visible) - run.begin); });
          },
          mask.representation());
    }
    chunks[static_cast<std::size_t>(chunk_index)] = count;
  });
  Index total = 0;
  for (const Index count : chunks) total += count;
  return total * shape.rows_per_stored_row();
}

}  // namespace reticle
