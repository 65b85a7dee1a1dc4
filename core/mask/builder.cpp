#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/mask/builder.hpp>
#include <reticle/core/mask/row_kernels.hpp>

namespace reticle {

void accumulate(Array<Index>& row_ptr) {
  row_ptr[0] = 0;
  for (std::size_t row = 1; row < row_ptr.size(); ++row) row_ptr[row] += row_ptr[row - 1];
}

Index rows_per_chunk(Index rows) { return std::clamp<Index>(rows / 256, 1, 4096); }

namespace {

using RowRuns = FunctionRef<void(RowId, FunctionRef<void(Run)>)>;

Run clip(Run run, Index keys) {
  return {std::max(run.begin, 0), static_cast<std::int32_t>(std::min<Index>(run.end, keys)), run.p};
}

/// Assembles one representation in a second pass over rows whose counts are known. runs and csr take the number of runs
/// of row r in row_ptr[r + 1]; in their results row_ptr holds offsets.
class SecondPass {
 public:
  SecondPass(const MaskShape& shape, const Context& context, RowRuns rows, std::span<const std::int32_t> entries_of_row)
      : shape_(shape), context_(context), rows_(rows), entries_of_row_(entries_of_row) {}

  Representation runs(Array<Index> row_ptr, const MaskCounts& counts) {
    accumulate(row_ptr);
    Array<Interval> intervals(static_cast<std::size_t>(counts.runs));
    Array<float> p(static_cast<std::size_t>(counts.weighted ? counts.runs : 0));
    for_each_row(row_ptr, [&](Index row, Run run, Index& done) {
      const auto at = static_cast<std::size_t>(row_ptr[static_cast<std::size_t>(row)] + done);
      require_as_counted(row_ptr, row, ++done);
      intervals[at] = {run.begin, run.end};
      if (!p.empty()) p[at] = run.p;
    });
    return Runs{std::move(row_ptr), std::move(intervals), std::move(p)};
  }

  Representation csr(Array<Index> row_ptr, const MaskCounts& counts) {
    for (std::size_t row = 0; row < entries_of_row_.size(); ++row) row_ptr[row + 1] = entries_of_row_[row];
    accumulate(row_ptr);
    Array<std::int32_t> indices(static_cast<std::size_t>(counts.entries));
    Array<float> p(static_cast<std::size_t>(counts.weighted ? counts.entries : 0));
    for_each_row(row_ptr, [&](Index row, Run run, Index& done) {
      auto at = static_cast<std::size_t>(row_ptr[static_cast<std::size_t>(row)] + done);
      require_as_counted(row_ptr, row, done += run.end - run.begin);
      for (std::int32_t k = run.begin; k < run.end; ++k, ++at) {
        indices[at] = k;
        if (!p.empty()) p[at] = run.p;
      }
    });
    return Csr{std::move(row_ptr), std::move(indices), std::move(p)};
  }

  Representation bits() {
    const Index per_row = BitDense::words_per_row(shape_.keys);
    Array<std::uint64_t> words(static_cast<std::size_t>(shape_.stored_rows() * per_row), 0);
    for_each_row({},
                 [&](Index row, Run run, Index&) { set_bit_range(words.data() + row * per_row, run.begin, run.end); });
    return BitDense{std::move(words)};
  }

  Representation dense() {
    Array<float> p(static_cast<std::size_t>(shape_.stored_rows() * shape_.keys), 0.0f);
    for_each_row({}, [&](Index row, Run run, Index&) {
      std::fill(p.data() + row * shape_.keys + run.begin, p.data() + row * shape_.keys + run.end, run.p);
    });
    return WeightedDense{std::move(p)};
  }

 private:
  [[noreturn]] void refuse_changed(Index row) const {
    throw ValueError("mask " + shape_.describe() + ": row " + std::to_string(row) +
                     " is another than when it was counted: what it is made from changed meanwhile");
  }
  /// Throws once the second pass has emitted more runs or entries (`done`) for a row than the first pass counted.
  void require_as_counted(std::span<const Index> row_ptr, Index row, Index done) const {
    if (done > length_of(row_ptr, row)) refuse_changed(row);
  }
  static Index length_of(std::span<const Index> row_ptr, Index row) {
    return row_ptr[static_cast<std::size_t>(row) + 1] - row_ptr[static_cast<std::size_t>(row)];
  }

  /// `row_ptr` holds the rows' offsets, in representations stored by rows; it is empty for bits and dense.
  template <class Put>
  void for_each_row(std::span<const Index> row_ptr, Put&& put) {
    const Index rows = shape_.stored_rows();
    context_.for_each_chunk(rows, rows_per_chunk(rows), [&](Index, Index begin, Index end) {
      for (Index row = begin; row < end; ++row) {
        Index done = 0;
        std::int32_t last = 0, entries = 0;
        auto emit = [&](Run run) {
          if (run.begin < last || !(run.p <= 1)) refuse_changed(row);
          last = run.end;
          entries += run.end - run.begin;
          put(row, run, done);
        };
        RunJoiner join(emit);
        rows_(shape_.row_of_stored(row), [&](Run run) {
          run = clip(run, shape_.keys);
          if (run.begin < run.end && run.p > 0) join(run.begin, run.end, run.p);
        });
        join.flush();
        if (entries != entries_of_row_[static_cast<std::size_t>(row)] ||
            (!row_ptr.empty() && done != length_of(row_ptr, row)))
          refuse_changed(row);
      }
    });
  }

  const MaskShape& shape_;
  const Context& context_;
  RowRuns rows_;
  std::span<const std::int32_t> entries_of_row_;
};

}  // namespace

Mask assemble(const MaskShape& shape, RowRuns rows, const Context& context, std::optional<MaskKind> kind) {
  shape.validate();
  if (shape.positions() == 0) return Mask::empty(shape);
  const Index count = shape.stored_rows();
  const Index chunk = rows_per_chunk(count);
  Array<Index> row_ptr(static_cast<std::size_t>(count) + 1);
  std::vector<std::int32_t> entries_of_row(static_cast<std::size_t>(count));
  std::vector<MaskCounts> chunks(static_cast<std::size_t>((count - 1) / chunk + 1));
  context.for_each_chunk(count, chunk, [&](Index chunk_index, Index begin, Index end) {
    MaskCounts counts;
    for (Index row = begin; row < end; ++row) {
      Index runs = 0;
      std::int32_t entries = 0, last = 0;
      auto emit = [&](Run run) {
        if (run.begin < last || !(run.p <= 1)) {
          throw ShapeError("mask " + shape.describe() + ": row " + std::to_string(row) + " emits [" +
                           std::to_string(run.begin) + ", " + std::to_string(run.end) + ") with p " +
                           std::to_string(run.p) + " after column " + std::to_string(last) +
                           "; expected ascending disjoint runs with p in (0, 1]");
        }
        last = run.end;
        ++runs;
        entries += run.end - run.begin;
        counts.weighted |= run.p < 1;
      };
      RunJoiner join(emit);
      rows(shape.row_of_stored(row), [&](Run run) {
        run = clip(run, shape.keys);
        if (run.begin < run.end && !(run.p <= 0)) join(run.begin, run.end, run.p);
      });
      join.flush();
      row_ptr[static_cast<std::size_t>(row) + 1] = runs;
      entries_of_row[static_cast<std::size_t>(row)] = entries;
      counts.runs += runs;
      counts.entries += entries;
    }
    chunks[static_cast<std::size_t>(chunk_index)] = counts;
  });
  MaskCounts counts;
  for (const MaskCounts& part : chunks) {
    counts.runs += part.runs;
    counts.entries += part.entries;
    counts.weighted |= part.weighted;
  }
  SecondPass pass(shape, context, rows, entries_of_row);
  const auto finish = [&](Representation representation) {
    return MaskAssembler::make(shape, std::move(representation), counts.entries, counts.weighted);
  };
  const bool everything = counts.entries == count * shape.keys && !counts.weighted;
  if ((kind == MaskKind::bits && counts.weighted) || (kind == MaskKind::empty && counts.entries > 0) ||
      (kind == MaskKind::full && !everything))
    throw ShapeError("mask " + shape.describe() + ": its content cannot be stored as " + std::string(name_of(*kind)));
  switch (kind.value_or(conform(shape, counts))) {
    case MaskKind::empty:
      return Mask::empty(shape);
    case MaskKind::full:
      return Mask::full(shape);
    case MaskKind::bits:
      return finish(pass.bits());
    case MaskKind::dense:
      return finish(pass.dense());
    case MaskKind::csr:
      return finish(pass.csr(std::move(row_ptr), counts));
    case MaskKind::runs:
      return finish(pass.runs(std::move(row_ptr), counts));
  }
  return Mask::empty(shape);
}

Mask Mask::from_runs(const MaskShape& shape, RowRuns rows, const Context& context) {
  return assemble(shape, rows, context);
}

Mask Mask::from_selections(const MaskShape& shape, FunctionRef<void(RowId, Selection&)> rows, const Context& context) {
  return assemble_selections(
      shape, 1, [&](RowId row, std::span<Selection> selections) { rows(row, selections[0]); }, context);
}

namespace {

/// The selections of a chunk of rows, concatenated.
struct SelectedRows {
  Selection all;
  MaskCounts counts;
  bool valid = true;  // columns ascend strictly within the keys, p are in (0, 1]

  void add(const Selection& row, Index keys) {
    if (!row.p.empty() && row.p.size() != row.indices.size())
      throw ShapeError("a selection has " + std::to_string(row.indices.size()) + " columns and " +
                       std::to_string(row.p.size()) + " p; expected as many, or no p");
    if (!row.p.empty() && all.p.empty()) all.p.assign(all.indices.size(), 1.0f);
    all.indices.insert(all.indices.end(), row.indices.begin(), row.indices.end());
    if (row.p.empty() && !all.p.empty()) all.p.resize(all.indices.size(), 1.0f);
    all.p.insert(all.p.end(), row.p.begin(), row.p.end());
    check(row, keys);
  }

 private:
  void check(const Selection& row, Index keys) {
    const std::vector<std::int32_t>& columns = row.indices;
    if (columns.empty()) return;
    bool ascending = columns.front() >= 0 && columns.back() < keys;
    Index breaks = 0;
    for (std::size_t i = 1; i < columns.size(); ++i) {
      ascending &= columns[i - 1] < columns[i];
      breaks += Index{columns[i]} - columns[i - 1] != 1 || (!row.p.empty() && row.p[i] != row.p[i - 1]) ? 1 : 0;
    }
    for (const float p : row.p) {
      ascending &= p > 0 && p <= 1;
      counts.weighted |= p < 1;
    }
    counts.entries += static_cast<Index>(columns.size());
    counts.runs += 1 + breaks;
    valid &= ascending;
  }
};

/// Builds a bit mask from valid selections that are dense enough for bits.
Mask selected_bits(const MaskShape& shape, std::span<const SelectedRows> chunks, Index chunk,
                   std::span<const Index> row_ptr, const MaskCounts& counts, const Context& context) {
  const Index per_row = BitDense::words_per_row(shape.keys);
  Array<std::uint64_t> words(static_cast<std::size_t>(shape.stored_rows() * per_row));
  context.for_each_chunk(shape.stored_rows(), chunk, [&](Index index, Index begin, Index end) {
    const std::int32_t* columns = chunks[static_cast<std::size_t>(index)].all.indices.data();
    for (Index row = begin; row < end; ++row) {
      const auto at = static_cast<std::size_t>(row);
      const Index count = row_ptr[at + 1] - row_ptr[at];
      std::fill_n(words.data() + row * per_row, per_row, std::uint64_t{0});
      set_bits(columns, count, 0, words.data() + row * per_row);
      columns += count;
    }
  });
  return MaskAssembler::make(shape, BitDense{std::move(words)}, counts.entries, false);
}

}  // namespace

Mask assemble_selections(const MaskShape& shape, Index group, FunctionRef<void(RowId, std::span<Selection>)> rows,
                         const Context& context) {
  shape.validate();
  if (shape.positions() == 0) return Mask::empty(shape);
  const Index count = shape.stored_rows();
  const Index chunk = (rows_per_chunk(count) + group - 1) / group * group;
  std::vector<SelectedRows> chunks(static_cast<std::size_t>((count - 1) / chunk + 1));
  Array<Index> row_ptr(static_cast<std::size_t>(count) + 1);
  context.for_each_chunk(count, chunk, [&](Index chunk_index, Index begin, Index end) {
    SelectedRows& selected = chunks[static_cast<std::size_t>(chunk_index)];
    std::vector<Selection> selections(static_cast<std::size_t>(group));
    for (Index row = begin; row < end;) {
      const RowId first = shape.row_of_stored(row);
      const Index left_in_head = shape.queries == 1 ? group : shape.shared_queries ? 1 : shape.queries - first.query;
      const std::span<Selection> group_selections(selections.data(),
                                                  static_cast<std::size_t>(std::min({group, end - row, left_in_head})));
      for (Selection& one : group_selections) one.clear();
      rows(first, group_selections);
      for (const Selection& one : group_selections) {
        selected.add(one, shape.keys);
        row_ptr[static_cast<std::size_t>(++row)] = static_cast<Index>(one.indices.size());
      }
    }
  });
  accumulate(row_ptr);
  MaskCounts counts;
  bool valid = true, with_p = false;
  for (const SelectedRows& part : chunks) {
    counts += part.counts;
    valid &= part.valid;
    with_p |= !part.all.p.empty();
  }
  const MaskKind kind = conform(shape, counts);
  if (valid && kind == MaskKind::bits) return selected_bits(shape, chunks, chunk, row_ptr, counts, context);

  Array<std::int32_t> indices(static_cast<std::size_t>(row_ptr.back()));
  Array<float> p(with_p ? indices.size() : 0);
  context.for_each_chunk(count, chunk, [&](Index index, Index begin, Index) {
    SelectedRows& part = chunks[static_cast<std::size_t>(index)];
    const Index at = row_ptr[static_cast<std::size_t>(begin)];
    std::copy(part.all.indices.begin(), part.all.indices.end(), indices.begin() + at);
    if (part.all.p.empty() && with_p) {
      std::fill_n(p.begin() + at, part.all.indices.size(), 1.0f);
    } else if (with_p) {
      std::copy(part.all.p.begin(), part.all.p.end(), p.begin() + at);
    }
    part.all = {};
  });
  if (valid && kind == MaskKind::csr) {
    if (!counts.weighted) p = {};
    return MaskAssembler::make(shape, Csr{std::move(row_ptr), std::move(indices), std::move(p)}, counts.entries,
                               counts.weighted);
  }
  const Mask mask = Mask::csr(shape, std::move(row_ptr), std::move(indices), std::move(p));  // throws when invalid
  return assemble(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        for_each_run(std::get<Csr>(mask.representation()), shape.stored_row(row), shape.keys, emit);
      },
      context);
}

}  // namespace reticle
