#include <algorithm>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include <reticle/core/mask/builder.hpp>
#include <reticle/core/mask/reshape.hpp>

namespace reticle {
namespace {

template <class Emit>
void emit_row(const Mask& mask, RowId row, Emit&& emit) {
  std::visit([&](const auto& rep) { for_each_run(rep, mask.shape().stored_row(row), mask.shape().keys, emit); },
             mask.representation());
}

/// Counting sort of (row, column, p) entries by column: linear in entries and columns.
Mask transpose_csr(const Csr& rep, const MaskShape& from, const MaskShape& to, bool weighted) {
  const Index heads = from.stored_rows() / from.queries;
  Array<Index> row_ptr(static_cast<std::size_t>(to.stored_rows()) + 1, 0);
  Array<std::int32_t> indices(static_cast<std::size_t>(rep.indices.size()));
  Array<float> p(weighted ? indices.size() : 0);
  for (Index head = 0; head < heads; ++head) {
    const Index first = rep.row_ptr[head * from.queries], last = rep.row_ptr[(head + 1) * from.queries];
    for (Index i = first; i < last; ++i) ++row_ptr[static_cast<std::size_t>(head * from.keys + rep.indices[i]) + 1];
  }
  for (std::size_t row = 1; row < row_ptr.size(); ++row) row_ptr[row] += row_ptr[row - 1];
  std::vector<Index> next(row_ptr.begin(), row_ptr.end() - 1);
  for (Index head = 0; head < heads; ++head) {
    for (Index q = 0; q < from.queries; ++q) {
      const Index row = head * from.queries + q;
      for (Index i = rep.row_ptr[row]; i < rep.row_ptr[row + 1]; ++i) {
        const auto at = static_cast<std::size_t>(next[static_cast<std::size_t>(head * from.keys + rep.indices[i])]++);
        indices[at] = static_cast<std::int32_t>(q);
        if (weighted) p[at] = rep.p[i];
      }
    }
  }
  return Mask::csr(to, std::move(row_ptr), std::move(indices), std::move(p));
}

/// A set of queries with their p, as maximal runs in a map whose keys are the runs' begins.
class ActiveQueries {
 public:
  void insert(std::int32_t query, float p) {
    Run run{query, query + 1, p};
    auto after = runs_.lower_bound(query);
    if (after != runs_.end() && after->second.begin == run.end && after->second.p == p) {
      run.end = after->second.end;
      after = runs_.erase(after);
    }
    if (after != runs_.begin()) {
      Run& before = std::prev(after)->second;
      if (before.end == query && before.p == p) {
        before.end = run.end;
        return;
      }
    }
    runs_.emplace_hint(after, query, run);
  }
  void erase(std::int32_t query) {
    const auto holder = std::prev(runs_.upper_bound(query));
    const Run run = holder->second;
    runs_.erase(holder);
    if (run.begin < query) runs_.emplace(run.begin, Run{run.begin, query, run.p});
    if (query + 1 < run.end) runs_.emplace(query + 1, Run{query + 1, run.end, run.p});
  }
  const std::map<std::int32_t, Run>& runs() const { return runs_; }

 private:
  std::map<std::int32_t, Run> runs_;
};

/// Transposes by a sweep over the keys that starts and ends the query runs at each key. Linear in the numbers of input
/// and output runs, not in positions.
Mask transpose_runs(const Mask& mask, const MaskShape& to) {
  const MaskShape& from = mask.shape();
  struct Event {
    std::int32_t query;
    float p;  // 0: the run ends
  };
  Array<Index> row_ptr;
  Array<Interval> intervals;
  Array<float> p;
  row_ptr.push_back(0);
  const Index heads = to.stored_rows() / to.queries;
  std::vector<Run> runs;
  for (Index head = 0; head < heads; ++head) {
    RowId id = to.row_of_stored(head * to.queries);
    std::vector<Index> first_event(static_cast<std::size_t>(from.keys) + 2, 0);
    const auto for_each_event = [&](auto&& event) {
      for (id.query = 0; id.query < from.queries; ++id.query) {
        runs.clear();
        emit_row(mask, id, [&](Run run) { runs.push_back(run); });
        for (const Run& run : runs) {
          event(run.end, Event{static_cast<std::int32_t>(id.query), 0.0f});
          event(run.begin, Event{static_cast<std::int32_t>(id.query), run.p});
        }
      }
    };
    for_each_event([&](std::int32_t key, Event) { ++first_event[static_cast<std::size_t>(key) + 1]; });
    for (std::size_t key = 1; key < first_event.size(); ++key) first_event[key] += first_event[key - 1];
    std::vector<Event> events(static_cast<std::size_t>(first_event.back()));
    std::vector<Index> next(first_event.begin(), first_event.end() - 1);
    for_each_event([&](std::int32_t key, Event event) {
      events[static_cast<std::size_t>(next[static_cast<std::size_t>(key)]++)] = event;
    });
    ActiveQueries active;
    for (Index key = 0; key < from.keys; ++key) {
      const auto begin = first_event[static_cast<std::size_t>(key)],
                 end = first_event[static_cast<std::size_t>(key) + 1];
      // Where one run of a row ends and the next begins at the same key, the end must come first.
      for (Index e = begin; e < end; ++e) {
        if (events[static_cast<std::size_t>(e)].p == 0) active.erase(events[static_cast<std::size_t>(e)].query);
      }
      for (Index e = begin; e < end; ++e) {
        const Event& event = events[static_cast<std::size_t>(e)];
        if (event.p > 0) active.insert(event.query, event.p);
      }
      for (const auto& [start, run] : active.runs()) {
        intervals.push_back({run.begin, run.end});
        if (mask.weighted()) p.push_back(run.p);
      }
      row_ptr.push_back(static_cast<Index>(intervals.size()));
    }
  }
  return Mask::runs(to, std::move(row_ptr), std::move(intervals), std::move(p));
}

}  // namespace

Mask slice(const Mask& mask, Dim dim, Index begin, Index end, const Context& context) {
  MaskShape shape = mask.shape();
  Index* const extents[] = {&shape.batch, &shape.heads, &shape.queries, &shape.keys};
  Index& extent = *extents[static_cast<std::size_t>(dim)];
  if (begin < 0 || begin > end || end > extent)
    throw ShapeError("slice [" + std::to_string(begin) + ", " + std::to_string(end) + ") of an extent of " +
                     std::to_string(extent) + " in mask " + mask.shape().describe());
  if (begin == 0 && end == extent) return mask;
  extent = end - begin;
  return assemble(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        if (dim == Dim::batch) row.batch += begin;
        if (dim == Dim::heads) row.head += begin;
        if (dim == Dim::queries) row.query += begin;
        if (dim != Dim::keys) return emit_row(mask, row, emit);
        emit_row(mask, row, [&](Run run) {
          emit(Run{static_cast<std::int32_t>(std::max<Index>(run.begin, begin) - begin),
                   static_cast<std::int32_t>(std::min<Index>(run.end, end) - begin), run.p});
        });
      },
      context);
}

Mask append_keys(const Mask& mask, Index count, const Context& context) {
  if (count < 0) throw ShapeError("append_keys: " + std::to_string(count) + " is negative");
  MaskShape shape = mask.shape();
  if (count > kMaxColumns - shape.keys)
    throw ShapeError("append_keys: " + std::to_string(count) + " more than " + std::to_string(shape.keys) +
                     " keys; at most 2^31 - 1 can be addressed");
  shape.keys += count;
  return assemble(
      shape, [&](RowId row, FunctionRef<void(Run)> emit) { emit_row(mask, row, emit); }, context);
}

Mask append_queries(const Mask& mask, const Mask& rows, const Context& context) {
  const MaskShape& above = mask.shape();
  const MaskShape& below = rows.shape();
  if (above.batch != below.batch || above.heads != below.heads || above.keys != below.keys)
    throw ShapeError("append_queries: masks of shapes " + above.describe() + " and " + below.describe() +
                     "; expected equal batch, heads and keys");
  MaskShape shape = above.sharing_both(below);
  shape.queries += below.queries;
  shape.shared_queries = false;
  return assemble(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        if (row.query < above.queries) return emit_row(mask, row, emit);
        row.query -= above.queries;
        emit_row(rows, row, emit);
      },
      context);
}

Mask broadcast_to(const Mask& mask, const MaskShape& wanted) {
  MaskShape shape = mask.shape();
  const auto widen = [&](Index& extent, bool& shared, Index to) {
    if (extent == to) return;
    if (extent != 1)
      throw ShapeError("broadcast_to: mask " + mask.shape().describe() + " does not broadcast to " + wanted.describe());
    extent = to;
    shared = true;
  };
  widen(shape.batch, shape.shared_batch, wanted.batch);
  widen(shape.heads, shape.shared_heads, wanted.heads);
  widen(shape.queries, shape.shared_queries, wanted.queries);
  if (shape.keys != wanted.keys)
    throw ShapeError("broadcast_to: mask " + mask.shape().describe() + " has other keys than " + wanted.describe());
  shape.validate();
  const Index stored = mask.shape().rows_per_stored_row() == 0 ? 0 : mask.nnz() / mask.shape().rows_per_stored_row();
  return MaskAssembler::make(shape, mask.representation(), stored, mask.weighted());
}

Mask transpose(const Mask& mask, const Context& context) {
  MaskShape from = mask.shape();
  MaskShape to = from;
  std::swap(to.queries, to.keys);
  to.shared_queries = false;
  if (mask.kind() == MaskKind::empty || from.positions() == 0) return Mask::empty(to);
  if (mask.kind() == MaskKind::full) return Mask::full(to);
  Mask result = mask.kind() == MaskKind::csr && !from.shared_queries
                    ? transpose_csr(std::get<Csr>(mask.representation()), from, to, mask.weighted())
                    : transpose_runs(mask, to);
  return assemble(
      to, [&](RowId row, FunctionRef<void(Run)> emit) { emit_row(result, row, emit); }, context);
}

}  // namespace reticle
