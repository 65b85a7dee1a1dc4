#include <reticle/core/mask/builder.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/row_kernels.hpp>

namespace reticle {
namespace {

void require_same_shape(const Mask& a, const Mask& b, const char* operation) {
  if (!a.shape().same_logical(b.shape()))
    throw ShapeError(std::string(operation) + ": masks of shapes " + a.shape().describe() + " and " +
                     b.shape().describe() + "; needed is one shape (broadcast_to gives it)");
}

void decode(const Mask& mask, RowId row, std::vector<Run>& runs) {
  runs.clear();
  mask.row(row, runs);
}

/// The word-wise twin of an operation on 0/1 masks.
template <class Op>
constexpr BitOp kBitOp = BitOp::unite;
template <>
constexpr BitOp kBitOp<row_op::Intersect> = BitOp::intersect;
template <>
constexpr BitOp kBitOp<row_op::Subtract> = BitOp::subtract;

/// Fills rows on all threads: row(stored row) returns what it holds; the counts are summed.
template <class Row>
MaskCounts for_each_stored_row(const MaskShape& shape, const Context& context, Row&& row_counts) {
  const Index rows = shape.stored_rows(), chunk = rows_per_chunk(rows);
  std::vector<RowCounts> of_chunk(static_cast<std::size_t>((rows - 1) / chunk + 1));
  context.for_each_chunk(rows, chunk, [&](Index chunk_index, Index begin, Index end) {
    RowCounts sum;
    for (Index row = begin; row < end; ++row) {
      const RowCounts counts = row_counts(row);
      sum.entries += counts.entries;
      sum.runs += counts.runs;
    }
    of_chunk[static_cast<std::size_t>(chunk_index)] = sum;
  });
  MaskCounts counts;
  for (const RowCounts& part : of_chunk) {
    counts.entries += part.entries;
    counts.runs += part.runs;
  }
  return counts;
}

/// A finished 0/1 result, in the representation that its counts call for.
Mask conformed(const MaskShape& shape, Representation representation, const MaskCounts& counts, MaskKind kind,
               const Context& context) {
  Mask result = MaskAssembler::make(shape, std::move(representation), counts.entries, false);
  if (conform(shape, counts) == kind) return result;
  return assemble(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        std::visit([&](const auto& rep) { for_each_run(rep, shape.stored_row(row), shape.keys, emit); },
                   result.representation());
      },
      context);
}

/// Bit-dense with bit-dense: one pass at memory speed (24 bytes moved per 64 positions), when the result stays
/// bit-dense.
Mask combine_bits(BitOp op, const MaskShape& shape, const Mask& a, const Mask& b, const Context& context) {
  const Index per_row = BitDense::words_per_row(shape.keys);
  const std::uint64_t* left = std::get<BitDense>(a.representation()).words.data();
  const std::uint64_t* right = std::get<BitDense>(b.representation()).words.data();
  Array<std::uint64_t> words(static_cast<std::size_t>(shape.stored_rows() * per_row));
  const MaskCounts counts = for_each_stored_row(shape, context, [&](Index row) {
    const RowId id = shape.row_of_stored(row);
    return combine_words(op, left + a.shape().stored_row(id) * per_row, right + b.shape().stored_row(id) * per_row,
                         words.data() + row * per_row, per_row);
  });
  return conformed(shape, BitDense{std::move(words)}, counts, MaskKind::bits, context);
}

/// A row's columns.
std::span<const std::int32_t> columns_of(const Mask& mask, RowId row) {
  const auto& csr = std::get<Csr>(mask.representation());
  const Index stored = mask.shape().stored_row(row), begin = csr.row_ptr[stored];
  return csr.indices.span().subspan(static_cast<std::size_t>(begin),
                                    static_cast<std::size_t>(csr.row_ptr[stored + 1] - begin));
}

/// The union of two 0/1 CSR masks: by merging columns or, where the result is too dense for CSR anyway, by setting bits.
Mask unite_columns(const MaskShape& shape, const Mask& a, const Mask& b, const Context& context) {
  const Index rows = shape.stored_rows(), chunk = rows_per_chunk(rows), per_row = BitDense::words_per_row(shape.keys);
  Index least = 0;  // entries of the result
  std::vector<Index> room(static_cast<std::size_t>((rows - 1) / chunk + 1), 0);
  for (Index row = 0; row < rows; ++row) {
    const RowId id = shape.row_of_stored(row);
    const auto left = static_cast<Index>(columns_of(a, id).size()), right = static_cast<Index>(columns_of(b, id).size());
    least += std::max(left, right);
    room[static_cast<std::size_t>(row / chunk)] += left + right;
  }
  if (least * Index{sizeof(std::int32_t)} > rows * (per_row - 1) * Index{sizeof(std::uint64_t)}) {
    Array<std::uint64_t> words(static_cast<std::size_t>(rows * per_row));
    const MaskCounts counts = for_each_stored_row(shape, context, [&](Index row) {
      const RowId id = shape.row_of_stored(row);
      std::uint64_t* of_row = words.data() + row * per_row;
      std::fill_n(of_row, per_row, std::uint64_t{0});
      for (const Mask* mask : {&a, &b}) {
        const std::span<const std::int32_t> columns = columns_of(*mask, id);
        set_bits(columns.data(), static_cast<Index>(columns.size()), of_row);
      }
      return combine_words(BitOp::unite, of_row, of_row, of_row, per_row);
    });
    return conformed(shape, BitDense{std::move(words)}, counts, MaskKind::bits, context);
  }

  std::vector<Array<std::int32_t>> merged(room.size());
  Array<Index> row_ptr(static_cast<std::size_t>(rows) + 1);
  std::vector<MaskCounts> of_chunk(room.size());
  context.for_each_chunk(rows, chunk, [&](Index index, Index begin, Index end) {
    Array<std::int32_t>& columns = merged[static_cast<std::size_t>(index)];
    MaskCounts& counts = of_chunk[static_cast<std::size_t>(index)];
    columns.resize(static_cast<std::size_t>(room[static_cast<std::size_t>(index)] + kMergeSlack));
    for (Index row = begin; row < end; ++row) {
      const RowId id = shape.row_of_stored(row);
      const std::span<const std::int32_t> left = columns_of(a, id), right = columns_of(b, id);
      const RowCounts of_row = merge_columns(left.data(), static_cast<Index>(left.size()), right.data(),
                                             static_cast<Index>(right.size()), columns.data() + counts.entries);
      row_ptr[static_cast<std::size_t>(row) + 1] = of_row.entries;
      counts.entries += of_row.entries;
      counts.runs += of_row.runs;
    }
  });
  MaskCounts counts;
  std::vector<Index> start(of_chunk.size());
  for (std::size_t i = 0; i < of_chunk.size(); ++i) {
    start[i] = counts.entries;
    counts.entries += of_chunk[i].entries;
    counts.runs += of_chunk[i].runs;
  }
  row_ptr[0] = 0;
  for (std::size_t row = 1; row < row_ptr.size(); ++row) row_ptr[row] += row_ptr[row - 1];
  Array<std::int32_t> indices(static_cast<std::size_t>(counts.entries));
  context.for_each_chunk(static_cast<Index>(merged.size()), 1, [&](Index, Index begin, Index end) {
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
      std::copy_n(merged[i].data(), of_chunk[i].entries, indices.data() + start[i]);
  });
  return conformed(shape, Csr{std::move(row_ptr), std::move(indices), {}}, counts, MaskKind::csr, context);
}

template <class Op>
Mask combine(const Mask& a, const Mask& b, const Context& context) {
  const MaskShape shape = a.shape().sharing_both(b.shape());
  if (shape.positions() > 0 && a.kind() == MaskKind::bits && b.kind() == MaskKind::bits)
    return combine_bits(kBitOp<Op>, shape, a, b, context);
  if (kBitOp<Op> == BitOp::unite && shape.positions() > 0 && a.kind() == MaskKind::csr && b.kind() == MaskKind::csr &&
      !a.weighted() && !b.weighted())
    return unite_columns(shape, a, b, context);
  return assemble(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        thread_local std::vector<Run> left, right;
        decode(a, row, left);
        decode(b, row, right);
        combine_rows<Op>(left, right, emit);
      },
      context);
}

}  // namespace

Mask merge(const Mask& a, const Mask& b, MergeRule rule, const Context& context) {
  require_same_shape(a, b, "merge");
  if (a.kind() == MaskKind::empty || b.kind() == MaskKind::full) return b;
  if (b.kind() == MaskKind::empty || a.kind() == MaskKind::full) return a;
  switch (rule) {
    case MergeRule::add:
      return combine<row_op::Add>(a, b, context);
    case MergeRule::max:
      return combine<row_op::Max>(a, b, context);
    case MergeRule::independent:
      return combine<row_op::Independent>(a, b, context);
  }
  return a;
}

Mask intersect(const Mask& a, const Mask& b, const Context& context) {
  require_same_shape(a, b, "intersect");
  if (a.kind() == MaskKind::empty || b.kind() == MaskKind::full) return a;
  if (b.kind() == MaskKind::empty || a.kind() == MaskKind::full) return b;
  return combine<row_op::Intersect>(a, b, context);
}

Mask subtract(const Mask& a, const Mask& b, const Context& context) {
  require_same_shape(a, b, "subtract");
  if (a.kind() == MaskKind::empty || b.kind() == MaskKind::empty) return a;
  if (b.kind() == MaskKind::full) return Mask::empty(a.shape());
  return combine<row_op::Subtract>(a, b, context);
}

Mask complement(const Mask& mask, const Context& context) {
  if (mask.weighted())
    throw ShapeError("complement: " + describe(mask) +
                     " has p below 1; only a 0/1 mask has a complement (see support)");
  return subtract(Mask::full(mask.shape()), mask, context);
}

Mask restrict_causal(const Mask& mask, const Context& context) {
  if (mask.kind() == MaskKind::empty) return mask;
  MaskShape shape = mask.shape();
  shape.shared_queries = false;
  return assemble(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        thread_local std::vector<Run> runs;
        decode(mask, row, runs);
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
  std::vector<Index> of_chunk(static_cast<std::size_t>((rows - 1) / chunk + 1));
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
    of_chunk[static_cast<std::size_t>(chunk_index)] = count;
  });
  Index total = 0;
  for (const Index count : of_chunk) total += count;
  return total * shape.rows_per_stored_row();
}

Mask support(const Mask& mask, const Context& context) {
  if (!mask.weighted()) return mask;
  return assemble(
      mask.shape(),
      [&](RowId row, FunctionRef<void(Run)> emit) {
        thread_local std::vector<Run> runs;
        decode(mask, row, runs);
        for (const Run& run : runs) emit(Run{run.begin, run.end, 1.0f});
      },
      context);
}

}  // namespace reticle
