// The mask algebra. p of a result at one position, from the operands' p there, a and b (0: not attended):
//
//     merge, add           min(1, a + b)        the additive rule of pipelines
//     merge, max           max(a, b)
//     merge, independent   1 - (1-a)(1-b)       the probability of being in one of two independent samples
//     intersect            min(a, b)
//     subtract             b = 0 ? a : 0        the positions of a that b does not attend
//     complement           1 - a                0/1 masks only
//
// merge is associative and commutative (to rounding of p), Empty is its identity and Full absorbs; 0/1 masks are a
// Boolean algebra. Results never depend on how the operands are stored, nor on the number of threads. ShapeError when
// the logical shapes differ.
#pragma once

#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// Applies any binary operation: merge(a, b, add) is combine(a, b, SetOp::add).
RETICLE_API Mask combine(const Mask& a, const Mask& b, SetOp op, const Context& context = {});

/// The operations that are unions.
enum class MergeRule : std::uint8_t { add, max, independent };
constexpr SetOp op_of(MergeRule rule) {
  return rule == MergeRule::add ? SetOp::add : rule == MergeRule::max ? SetOp::max : SetOp::independent;
}

RETICLE_API Mask merge(const Mask& a, const Mask& b, MergeRule rule = MergeRule::add, const Context& context = {});
inline Mask intersect(const Mask& a, const Mask& b, const Context& context = {}) {
  return combine(a, b, SetOp::intersect, context);
}
inline Mask subtract(const Mask& a, const Mask& b, const Context& context = {}) {
  return combine(a, b, SetOp::subtract, context);
}
/// The positions that the mask does not attend to. ShapeError for a weighted mask.
RETICLE_API Mask complement(const Mask& mask, const Context& context = {});
/// The same positions with p = 1.
RETICLE_API Mask support(const Mask& mask, const Context& context = {});

inline Mask operator|(const Mask& a, const Mask& b) { return merge(a, b); }
inline Mask operator&(const Mask& a, const Mask& b) { return intersect(a, b); }
inline Mask operator-(const Mask& a, const Mask& b) { return subtract(a, b); }
inline Mask operator~(const Mask& mask) { return complement(mask); }

}  // namespace reticle
