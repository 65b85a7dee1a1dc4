#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <reticle/core/base/thread_scratch.hpp>
#include <reticle/core/mask/builder.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/device_storage.hpp>
#include <reticle/core/mask/row_kernels.hpp>

namespace reticle {
namespace {

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

/// A finished result, in the representation that its counts call for.
Mask conformed(const MaskShape& shape, Representation representation, const MaskCounts& counts, MaskKind kind,
               const Context& context) {
  Mask result = MaskAssembler::make(shape, std::move(representation), counts.entries, counts.weighted);
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

/// A row's columns and, if the mask is weighted, their p.
struct ColumnList {
  const std::int32_t* columns = nullptr;
  const float* p = nullptr;
  Index count = 0;
};

ColumnList columns_of(const Csr& csr, Index stored_row) {
  const Index begin = csr.row_ptr[stored_row];
  return {csr.indices.data() + begin, csr.p.empty() ? nullptr : csr.p.data() + begin,
          csr.row_ptr[stored_row + 1] - begin};
}

/// Rows of a CSR or bit mask as lists of columns; those of bits are written to a buffer that serves one row.
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

/// The union of two 0/1 masks whose result is dense enough for bits: by setting bits.
Mask unite_as_bits(const MaskShape& shape, const Mask& a, const Mask& b, const Context& context) {
  const Index per_row = BitDense::words_per_row(shape.keys);
  Array<std::uint64_t> words(static_cast<std::size_t>(shape.stored_rows() * per_row));
  const MaskCounts counts = for_each_stored_row(shape, context, [&](Index row) {
    const RowId id = shape.row_of_stored(row);
    std::uint64_t* of_row = words.data() + row * per_row;
    if (a.kind() == MaskKind::csr && b.kind() == MaskKind::csr) {
      const ColumnList left = columns_of(std::get<Csr>(a.representation()), a.shape().stored_row(id));
      const ColumnList right = columns_of(std::get<Csr>(b.representation()), b.shape().stored_row(id));
      return unite_columns_as_bits(left.columns, left.count, right.columns, right.count, of_row, per_row);
    }
    std::fill_n(of_row, per_row, std::uint64_t{0});
    for (const Mask* mask : {&a, &b}) {
      const Index stored = mask->shape().stored_row(id);
      if (const auto* bits = std::get_if<BitDense>(&mask->representation())) {
        combine_words(BitOp::unite, of_row, bits->words.data() + stored * per_row, of_row, per_row);
      } else if (const auto* csr = std::get_if<Csr>(&mask->representation())) {
        const ColumnList columns = columns_of(*csr, stored);
        set_bits(columns.columns, columns.count, 0, of_row);
      } else {
        std::visit(
            [&](const auto& rep) {
              for_each_run(rep, stored, shape.keys, [&](Run run) { set_bit_range(of_row, run.begin, run.end); });
            },
            mask->representation());
      }
    }
    return combine_words(BitOp::unite, of_row, of_row, of_row, per_row);
  });
  return conformed(shape, BitDense{std::move(words)}, counts, MaskKind::bits, context);
}

/// The same mask by runs: `run_ptr` says how many each row has.
template <class Rep>
Mask as_runs(const MaskShape& shape, const Rep& rep, Array<Index> run_ptr, const MaskCounts& counts,
             const Context& context) {
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

/// Counts of rows become where each begins.
void accumulate(Array<Index>& row_ptr) {
  row_ptr[0] = 0;
  for (std::size_t row = 1; row < row_ptr.size(); ++row) row_ptr[row] += row_ptr[row - 1];
}

/// Writes a row of either mask over the other's, p of every position.
template <class Op>
void add_row(const Mask& mask, RowId id, float* of_row) {
  const Index stored = mask.shape().stored_row(id), keys = mask.shape().keys;
  if (const auto* dense = std::get_if<WeightedDense>(&mask.representation())) {
    const float* from = dense->p.data() + stored * keys;
    for (Index k = 0; k < keys; ++k) of_row[k] = Op::p(of_row[k], from[k]);
    return;
  }
  std::visit(
      [&](const auto& rep) {
        for_each_run(rep, stored, keys, [&](Run run) {
          for (std::int32_t k = run.begin; k < run.end; ++k) of_row[k] = Op::p(of_row[k], run.p);
        });
      },
      mask.representation());
}

/// The union of two masks that is weighted and dense: both are written over a row of p. 4 bytes per position, and for
/// CSR operands a read and a write where an entry falls.
template <class Op>
Mask unite_as_dense(const MaskShape& shape, const Mask& a, const Mask& b, MergeRule rule, const Context& context) {
  const Index keys = shape.keys, rows = shape.stored_rows(), chunk = rows_per_chunk(rows);
  Array<float> p(static_cast<std::size_t>(rows * keys));
  Array<Index> run_ptr(static_cast<std::size_t>(rows) + 1);
  std::vector<MaskCounts> of_chunk(static_cast<std::size_t>((rows - 1) / chunk + 1));
  context.for_each_chunk(rows, chunk, [&](Index index, Index begin, Index end) {
    MaskCounts& sum = of_chunk[static_cast<std::size_t>(index)];
    for (Index row = begin; row < end; ++row) {
      const RowId id = shape.row_of_stored(row);
      float* of_row = p.data() + row * keys;
      RowCounts counts;
      if (a.kind() == MaskKind::csr && b.kind() == MaskKind::csr) {
        const ColumnList left = columns_of(std::get<Csr>(a.representation()), a.shape().stored_row(id));
        const ColumnList right = columns_of(std::get<Csr>(b.representation()), b.shape().stored_row(id));
        counts = unite_columns_as_dense(static_cast<UnionRule>(rule), left.columns, left.p, left.count, right.columns,
                                        right.p, right.count, of_row, keys, sum.weighted);
      } else {
        std::fill_n(of_row, keys, 0.0f);
        add_row<Op>(a, id, of_row);
        add_row<Op>(b, id, of_row);
        counts = count_dense(of_row, keys, sum.weighted);
      }
      run_ptr[static_cast<std::size_t>(row) + 1] = counts.runs;
      sum.entries += counts.entries;
      sum.runs += counts.runs;
    }
  });
  MaskCounts counts;
  for (const MaskCounts& part : of_chunk) {
    counts.entries += part.entries;
    counts.runs += part.runs;
    counts.weighted |= part.weighted;
  }
  WeightedDense dense{std::move(p)};
  if (conform(shape, counts) == MaskKind::runs) {
    accumulate(run_ptr);
    return as_runs(shape, dense, std::move(run_ptr), counts, context);
  }
  return conformed(shape, std::move(dense), counts, MaskKind::dense, context);
}

/// Whether both are lists of columns, or are to be read as such: bits beside a weighted list.
bool merges_by_columns(const Mask& a, const Mask& b) {
  const auto listed = [](const Mask& mask) { return mask.kind() == MaskKind::csr; };
  const auto bits_beside = [](const Mask& bits, const Mask& list) {
    return bits.kind() == MaskKind::bits && list.kind() == MaskKind::csr && list.weighted();
  };
  return (listed(a) && listed(b)) || bits_beside(a, b) || bits_beside(b, a);
}

/// Whether a union is to be formed as p of every position: one operand is stored so, or it is weighted and the operands
/// so full that, if they are independent, it takes fewer bytes that way (4 a position against 8 an entry).
bool dense_union(const MaskShape& shape, const Mask& a, const Mask& b) {
  if (shape.positions() == 0) return false;
  if (a.kind() == MaskKind::dense || b.kind() == MaskKind::dense) return true;
  if (!merges_by_columns(a, b) || !(a.weighted() || b.weighted())) return false;
  return a.density() + b.density() - a.density() * b.density() > 0.5;
}

/// The union of two masks that merge by columns.
Mask unite_columns(const MaskShape& shape, const Mask& a, const Mask& b, MergeRule rule, const Context& context) {
  const Index rows = shape.stored_rows(), chunk = rows_per_chunk(rows);
  const bool weighted = a.weighted() || b.weighted();
  std::vector<Index> room(static_cast<std::size_t>((rows - 1) / chunk + 1), 0);
  Index least = 0;  // entries of the result
  const ColumnReader of_a(a), of_b(b);
  for (Index row = 0; row < rows; ++row) {
    const RowId id = shape.row_of_stored(row);
    const Index left = of_a.count(id), right = of_b.count(id);
    least += std::max(left, right);
    room[static_cast<std::size_t>(row / chunk)] += left + right;
  }
  const Index bytes_as_bits = (BitDense::words_per_row(shape.keys) - 1) * Index{sizeof(std::uint64_t)} * rows;
  if (!weighted && least * Index{sizeof(std::int32_t)} > bytes_as_bits) return unite_as_bits(shape, a, b, context);

  // Merged where each chunk has room for both operands, then moved together: no second buffer, and the gaps are small
  // unless the operands are alike. One thread takes the chunks in order, and leaves no gaps.
  const bool in_order = context.pool->threads() == 1;
  std::vector<Index> start(room.size() + 1, 0);
  for (std::size_t i = 0; i < room.size(); ++i) start[i + 1] = start[i] + room[i] + kSlack;
  Array<std::int32_t> indices(static_cast<std::size_t>(start.back()));
  Array<float> p(static_cast<std::size_t>(weighted ? start.back() : 0));
  Array<Index> row_ptr(static_cast<std::size_t>(rows) + 1), run_ptr(row_ptr.size());
  std::vector<MaskCounts> of_chunk(room.size());
  context.for_each_chunk(rows, chunk, [&](Index index, Index begin, Index end) {
    ColumnReader read_a(a), read_b(b);
    MaskCounts counts;
    std::int32_t* columns = indices.data() + start[static_cast<std::size_t>(index)];
    float* columns_p = p.data() + (weighted ? start[static_cast<std::size_t>(index)] : 0);
    for (Index row = begin; row < end; ++row) {
      const RowId id = shape.row_of_stored(row);
      const ColumnList left = read_a.row(id), right = read_b.row(id);
      std::int32_t* const to = columns + counts.entries;
      Index& entries = row_ptr[static_cast<std::size_t>(row) + 1];
      if (weighted) {
        entries = merge_weighted_columns(static_cast<UnionRule>(rule), left.columns, left.p, left.count, right.columns,
                                         right.p, right.count, to, columns_p + counts.entries);
      } else {
        const RowCounts merged = merge_columns(left.columns, left.count, right.columns, right.count, to);
        entries = merged.entries;
        run_ptr[static_cast<std::size_t>(row) + 1] = merged.runs;
      }
      counts.entries += entries;
    }
    for (Index row = begin, at = 0; row < end; ++row) {
      const Index entries = row_ptr[static_cast<std::size_t>(row) + 1];
      Index& runs = run_ptr[static_cast<std::size_t>(row) + 1];
      if (weighted) runs = count_runs(columns + at, columns_p + at, entries);
      counts.runs += runs;
      at += entries;
    }
    counts.weighted = weighted && std::any_of(columns_p, columns_p + counts.entries, [](float x) { return x < 1; });
    of_chunk[static_cast<std::size_t>(index)] = counts;
    if (in_order) start[static_cast<std::size_t>(index) + 1] = start[static_cast<std::size_t>(index)] + counts.entries;
  });
  MaskCounts counts;
  for (std::size_t i = 0; i < of_chunk.size(); ++i) {
    const auto from = start[i], size = of_chunk[i].entries;
    if (from > counts.entries) {
      std::copy_n(indices.begin() + from, size, indices.begin() + counts.entries);
      if (weighted) std::copy_n(p.begin() + from, size, p.begin() + counts.entries);
    }
    counts.entries += size;
    counts.runs += of_chunk[i].runs;
    counts.weighted |= of_chunk[i].weighted;
  }
  const bool alike = static_cast<Index>(indices.size()) > counts.entries + counts.entries / 4;
  indices.resize(static_cast<std::size_t>(counts.entries));
  p.resize(static_cast<std::size_t>(counts.weighted ? counts.entries : 0));
  if (alike || p.empty()) p.shrink_to_fit();
  if (alike) indices.shrink_to_fit();
  accumulate(row_ptr);
  Csr merged{std::move(row_ptr), std::move(indices), std::move(p)};
  if (conform(shape, counts) == MaskKind::runs) {
    accumulate(run_ptr);
    return as_runs(shape, merged, std::move(run_ptr), counts, context);
  }
  return conformed(shape, std::move(merged), counts, MaskKind::csr, context);
}

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
      // Where queries share a row, the first one sees least.
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

template <class Op>
Mask combine(const Mask& a, const Mask& b, const Context& context, std::optional<MergeRule> rule = std::nullopt) {
  const MaskShape shape = a.shape().sharing_both(b.shape());
  if (shape.positions() > 0 && a.kind() == MaskKind::bits && b.kind() == MaskKind::bits)
    return combine_bits(kBitOp<Op>, shape, a, b, context);
  if (rule && dense_union(shape, a, b)) return unite_as_dense<Op>(shape, a, b, *rule, context);
  const bool to_bits = (a.kind() == MaskKind::bits || b.kind() == MaskKind::bits) && !a.weighted() && !b.weighted();
  if (rule && shape.positions() > 0 && to_bits) return unite_as_bits(shape, a, b, context);
  if (rule && shape.positions() > 0 && merges_by_columns(a, b)) return unite_columns(shape, a, b, *rule, context);
  return assemble(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        static thread_local constinit ThreadScratch<std::array<std::vector<Run>, 2>> scratch;
        auto& [left, right] = scratch.get();
        decode(a, row, left);
        decode(b, row, right);
        combine_rows<Op>(left, right, emit);
      },
      context);
}

/// Two masks of which one at least lies on a GPU, combined there; a full one goes there for it.
Mask combine_on_device(SetOp op, const char* name, const Mask& a, const Mask& b, const Context& context) {
  std::shared_ptr<const DeviceStorage> moved;
  const auto there = [&](const Mask& mask) -> const DeviceStorage& {
    if (mask.on_device() != nullptr) return *mask.on_device();
    if (mask.kind() != MaskKind::full)
      throw DeviceError(std::string(name) + ": one mask lies on " + a.device().describe() + ", the other on " +
                        b.device().describe() + "; expected one device (to() brings a mask to another)");
    moved = store_on_gpu(mask, context);
    return *moved;
  };
  const DeviceStorage& left = there(a);
  const DeviceStorage& right = there(b);
  return Mask::stored(left.combine(right, op, context));
}

bool lie_on_device(const Mask& a, const Mask& b) { return a.on_device() != nullptr || b.on_device() != nullptr; }

constexpr SetOp set_op_of(MergeRule rule) {
  switch (rule) {
    case MergeRule::add:
      return SetOp::add;
    case MergeRule::max:
      return SetOp::max;
    case MergeRule::independent:
      break;
  }
  return SetOp::independent;
}

}  // namespace

Mask merge(const Mask& a, const Mask& b, MergeRule rule, const Context& context) {
  a.shape().require_same_logical(b.shape(), "merge");
  if (a.kind() == MaskKind::empty || b.kind() == MaskKind::full) return b;
  if (b.kind() == MaskKind::empty || a.kind() == MaskKind::full) return a;
  if (lie_on_device(a, b)) return combine_on_device(set_op_of(rule), "merge", a, b, context);
  switch (rule) {
    case MergeRule::add:
      return combine<row_op::Add>(a, b, context, rule);
    case MergeRule::max:
      return combine<row_op::Max>(a, b, context, rule);
    case MergeRule::independent:
      return combine<row_op::Independent>(a, b, context, rule);
  }
  return a;
}

Mask intersect(const Mask& a, const Mask& b, const Context& context) {
  a.shape().require_same_logical(b.shape(), "intersect");
  if (a.kind() == MaskKind::empty || b.kind() == MaskKind::full) return a;
  if (b.kind() == MaskKind::empty || a.kind() == MaskKind::full) return b;
  if (lie_on_device(a, b)) return combine_on_device(SetOp::intersect, "intersect", a, b, context);
  return combine<row_op::Intersect>(a, b, context);
}

Mask subtract(const Mask& a, const Mask& b, const Context& context) {
  a.shape().require_same_logical(b.shape(), "subtract");
  if (a.kind() == MaskKind::empty || b.kind() == MaskKind::empty) return a;
  if (b.kind() == MaskKind::full) return Mask::empty(a.shape());
  if (lie_on_device(a, b)) return combine_on_device(SetOp::subtract, "subtract", a, b, context);
  return combine<row_op::Subtract>(a, b, context);
}

Mask complement(const Mask& mask, const Context& context) {
  if (mask.weighted())
    throw ShapeError("complement: " + describe(mask) +
                     " has p below 1; only a 0/1 mask has a complement (see support)");
  return subtract(Mask::full(mask.shape()), mask, context);
}

Mask restrict_causal(const Mask& mask, const Context& context) {
  if (mask.kind() == MaskKind::empty || !reaches_beyond_causality(mask, context)) return mask;
  MaskShape shape = mask.shape();
  shape.shared_queries = false;
  return assemble(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        static thread_local constinit ThreadScratch<std::vector<Run>> scratch;
        std::vector<Run>& runs = scratch.get();
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
        static thread_local constinit ThreadScratch<std::vector<Run>> scratch;
        std::vector<Run>& runs = scratch.get();
        decode(mask, row, runs);
        for (const Run& run : runs) emit(Run{run.begin, run.end, 1.0f});
      },
      context);
}

}  // namespace reticle
