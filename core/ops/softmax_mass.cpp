// The operations of MassScale::of, in the same order and never fused, on a vector of scores at a time: about 30
// instructions per 8 scores with AVX-512.
#include <reticle/core/ops/softmax_mass.hpp>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/softmax_mass.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void Masses(const MassScale& scale, const float* scores, Index count, std::uint64_t* to) {
  Index i = 0;
  const auto from = [&](auto tag) HWY_ATTR {
    const hn::Rebind<float, decltype(tag)> floats;
    const hn::RebindToSigned<decltype(tag)> integers;
    const hn::RebindToUnsigned<decltype(tag)> masses;
    const auto highest = hn::Set(tag, scale.highest()), one = hn::Set(tag, static_cast<double>(scale.one()));
    const auto constant = [&](double x) HWY_ATTR { return hn::Set(tag, x); };
    for (; i + static_cast<Index>(hn::Lanes(tag)) <= count; i += static_cast<Index>(hn::Lanes(tag))) {
      const auto score = hn::PromoteTo(tag, hn::LoadU(floats, scores + i));
      const auto x = hn::Mul(hn::Sub(score, highest), constant(1.4426950408889634));
      const auto weighs = hn::Gt(x, constant(-62));  // false for NaN, -infinity and negligible scores
      const auto whole = hn::Trunc(hn::Sub(hn::IfThenElseZero(weighs, x), constant(0.5)));
      const auto r = hn::Mul(hn::Sub(hn::IfThenElseZero(weighs, x), whole), constant(0.6931471805599453));
      const auto r2 = hn::Mul(r, r);
      const auto low =
          hn::Add(hn::Add(constant(1), r), hn::Mul(r2, hn::Add(constant(0.5), hn::Mul(r, constant(1.0 / 6)))));
      const auto high =
          hn::Add(hn::Add(constant(1.0 / 24), hn::Mul(r, constant(1.0 / 120))), hn::Mul(r2, constant(1.0 / 720)));
      const auto sum = hn::Add(low, hn::Mul(hn::Mul(r2, r2), high));
      const auto scaled = hn::BitCast(masses, hn::ConvertTo(integers, hn::Mul(sum, one)));
      const auto shift = hn::BitCast(masses, hn::ConvertTo(integers, hn::Neg(whole)));
      const auto mass = hn::IfThenElseZero(hn::RebindMask(masses, weighs), hn::Shr(scaled, shift));
      const auto is_highest = hn::RebindMask(masses, hn::Eq(score, highest));
      hn::StoreU(hn::IfThenElse(is_highest, hn::Set(masses, scale.one()), mass), masses, to + i);
    }
  };
  from(hn::ScalableTag<double>());
  from(hn::CappedTag<double, 1>());
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle {

HWY_EXPORT(Masses);

void masses(const MassScale& scale, std::span<const float> scores, std::uint64_t* to) {
  HWY_DYNAMIC_DISPATCH(Masses)(scale, scores.data(), static_cast<Index>(scores.size()), to);
}

}  // namespace reticle
#endif
