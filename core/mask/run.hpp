// Row algebra: a row of a mask as ascending disjoint runs, and every binary operation on two such rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// True if p is a valid inclusion probability: in (0, 1], and normal, so that 1 / p is finite.
inline bool is_probability(float p) { return p >= std::numeric_limits<float>::min() && p <= 1; }

/// Columns [begin, end), as stored.
struct Interval {
  std::int32_t begin = 0, end = 0;
  bool operator==(const Interval&) const = default;
};

/// Columns [begin, end), each attended with inclusion probability p in (0, 1].
struct Run {
  std::int32_t begin = 0, end = 0;
  float p = 1;
  bool operator==(const Run&) const = default;
};

/// An operation on masks as a function of the two probabilities at one position (0: not attended); p(0, 0) is 0.
namespace row_op {
struct Add {
  RETICLE_HD static float p(float a, float b) { return std::min(1.0f, a + b); }
};
struct Max {
  RETICLE_HD static float p(float a, float b) { return std::max(a, b); }
};
struct Independent {
  RETICLE_HD static float p(float a, float b) { return a == 0 ? b : b == 0 ? a : 1.0f - (1.0f - a) * (1.0f - b); }
};
struct Intersect {
  RETICLE_HD static float p(float a, float b) { return std::min(a, b); }
};
struct Subtract {
  RETICLE_HD static float p(float a, float b) { return b == 0 ? a : 0.0f; }
};
}  // namespace row_op

/// The operations on two masks, by name.
enum class SetOp : std::uint8_t { add, max, independent, intersect, subtract };

/// On 0/1 masks, the three unions are the same operation: or.
constexpr bool is_union(SetOp op) { return op == SetOp::add || op == SetOp::max || op == SetOp::independent; }

/// Calls body with the operation's functor from row_op.
template <class Body>
decltype(auto) with_functor(SetOp op, Body&& body) {
  switch (op) {
    case SetOp::add:
      return body(row_op::Add());
    case SetOp::max:
      return body(row_op::Max());
    case SetOp::independent:
      return body(row_op::Independent());
    case SetOp::intersect:
      return body(row_op::Intersect());
    case SetOp::subtract:
      break;
  }
  return body(row_op::Subtract());
}

/// Numbers of positions and maximal runs in one or more rows.
struct RowCounts {
  std::int64_t entries = 0, runs = 0;
};

/// Joins adjacent runs of equal p before passing them to `emit`; call flush at the end of the row.
template <class Emit>
class RunJoiner {
 public:
  explicit RunJoiner(Emit& emit) : emit_(emit) {}
  void operator()(std::int32_t begin, std::int32_t end, float p) {
    if (pending_.end == begin && pending_.p == p && pending_.begin < pending_.end) {
      pending_.end = end;
      return;
    }
    flush();
    pending_ = {begin, end, p};
  }
  void flush() {
    if (pending_.begin < pending_.end) emit_(pending_);
    pending_ = {};
  }

 private:
  Emit& emit_;
  Run pending_{0, 0, 0};
};

/// Calls emit(Run) with the maximal runs of op(a, b), ascending. Linear in the number of runs.
template <class Op, class Emit>
void combine_rows(std::span<const Run> a, std::span<const Run> b, Emit&& emit) {
  RunJoiner<Emit> join(emit);
  std::size_t i = 0, j = 0;
  std::int32_t at = 0;
  while (i < a.size() || j < b.size()) {
    const std::int32_t a_begin = i < a.size() ? std::max(at, a[i].begin) : INT32_MAX;
    const std::int32_t b_begin = j < b.size() ? std::max(at, b[j].begin) : INT32_MAX;
    at = std::min(a_begin, b_begin);
    const bool in_a = a_begin == at, in_b = b_begin == at;
    const std::int32_t end = std::min(in_a ? a[i].end : a_begin, in_b ? b[j].end : b_begin);
    const float p = Op::p(in_a ? a[i].p : 0.0f, in_b ? b[j].p : 0.0f);
    if (p > 0) join(at, end, p);
    at = end;
    if (i < a.size() && a[i].end <= at) ++i;
    if (j < b.size() && b[j].end <= at) ++j;
  }
  join.flush();
}

}  // namespace reticle
