// Soft-capped scores (Gemma 2). Included by kernels only, once per target.
#if defined(RETICLE_CORE_OPS_SOFT_CAP_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef RETICLE_CORE_OPS_SOFT_CAP_INL_HPP
#undef RETICLE_CORE_OPS_SOFT_CAP_INL_HPP
#else
#define RETICLE_CORE_OPS_SOFT_CAP_INL_HPP
#endif

#include <hwy/highway.h>

#include <reticle/core/ops/exp-inl.hpp>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {

/// cap * tanh(score / cap), computed with exp. The error is a few units in the last place of `cap`, the scale of the
/// scores.
template <class D, class V = hwy::HWY_NAMESPACE::Vec<D>>
HWY_INLINE V SoftCap(D tag, V scores, float cap) {
  namespace hn = hwy::HWY_NAMESPACE;
  const V one = hn::Set(tag, 1.0f), zero = hn::Zero(tag);
  const V twice = hn::Mul(hn::Abs(scores), hn::Set(tag, 2.0f / cap));
  const V e = SoftmaxExp(tag, hn::Sub(zero, twice));  // in (0, 1]
  const V tanh = hn::Div(hn::Sub(one, e), hn::Add(one, e));
  return hn::CopySign(hn::Mul(tanh, hn::Set(tag, cap)), scores);
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
