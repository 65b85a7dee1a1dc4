// exp for softmax weights: arguments at or below some maximum. Included by kernels only, once per target.
#if defined(RETICLE_CORE_OPS_EXP_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef RETICLE_CORE_OPS_EXP_INL_HPP
#undef RETICLE_CORE_OPS_EXP_INL_HPP
#else
#define RETICLE_CORE_OPS_EXP_INL_HPP
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {

/// exp(x) for x <= 88, to 2 units in the last place; 0 below -87, where results would be denormal; 1 at 0. Twelve
/// operations, half of Highway's Exp, which also handles denormals: 2^n * 2^f with n the nearest integer to x / ln 2
/// and a minimax polynomial of degree 6 (relative error 2e-9) for 2^f on [-1/2, 1/2].
template <class D, class V = hwy::HWY_NAMESPACE::Vec<D>>
HWY_INLINE V SoftmaxExp(D tag, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToSigned<D> integer;
  const V lowest = hn::Set(tag, -87.0f), log2_e = hn::Set(tag, 1.44269504f);
  const V clamped = hn::Max(x, lowest);
  const V n = hn::Round(hn::Mul(clamped, log2_e));
  const V f = hn::MulSub(clamped, log2_e, n);
  V power = hn::Set(tag, 0.00015345811f);
  power = hn::MulAdd(power, f, hn::Set(tag, 0.00133999312f));
  power = hn::MulAdd(power, f, hn::Set(tag, 0.00961848896f));
  power = hn::MulAdd(power, f, hn::Set(tag, 0.0555032878f));
  power = hn::MulAdd(power, f, hn::Set(tag, 0.240226469f));
  power = hn::MulAdd(power, f, hn::Set(tag, 0.693147206f));
  power = hn::MulAdd(power, f, hn::Set(tag, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::ConvertTo(integer, n));
  const V result = hn::BitCast(tag, hn::Add(hn::BitCast(integer, power), exponent));
  return hn::IfThenElseZero(hn::Ge(x, lowest), result);
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
