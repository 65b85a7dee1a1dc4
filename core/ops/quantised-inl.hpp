// Rows of codes as vectors of 16-bit integers, and exact products of them. Included by kernels only, once per target.
#if defined(RETICLE_CORE_OPS_QUANTISED_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef RETICLE_CORE_OPS_QUANTISED_INL_HPP
#undef RETICLE_CORE_OPS_QUANTISED_INL_HPP
#else
#define RETICLE_CORE_OPS_QUANTISED_INL_HPP
#endif

#include <hwy/highway.h>

#include <reticle/core/tensor/quantised_rows.hpp>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {

/// Vectors of at most one group.
using CodeTag = hwy::HWY_NAMESPACE::CappedTag<std::int16_t, kQuantisedGroup>;

#if HWY_TARGET == HWY_SCALAR
/// Channels that a kernel advances by; here it reads them one by one.
HWY_INLINE Index CodeLanes() { return 8; }

template <DType kDType>
HWY_INLINE void DequantiseRow(const std::int8_t* row, const QuantisedLayout<kDType>& layout, Index width, float* to) {
  for (Index i = 0; i < width; ++i) to[i] = static_cast<float>(layout.channel(row, i)) * layout.scale(row);
}
#else
/// Channels that a kernel advances by: the lanes of a vector.
HWY_INLINE Index CodeLanes() { return static_cast<Index>(hwy::HWY_NAMESPACE::Lanes(CodeTag())); }

/// Codes times multiplier, Lanes(tag) channels from channel `at` of a row on.
template <DType kDType>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<CodeTag> LoadCodes(const std::int8_t* row, const QuantisedLayout<kDType>& layout,
                                                      Index at) {
  namespace hn = hwy::HWY_NAMESPACE;
  const CodeTag tag;
  const auto multiplier = hn::Set(tag, row[layout.multipliers() + at / kQuantisedGroup]);
  if constexpr (kDType == DType::q8) {
    const hn::Rebind<std::int8_t, CodeTag> narrow;
    return hn::Mul(hn::PromoteTo(tag, hn::LoadU(narrow, row + at)), multiplier);
  } else {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(row) + at / kQuantisedGroup * layout.kGroupBytes;
    const auto eight = hn::Set(tag, 8);
    if (hn::Lanes(tag) == static_cast<std::size_t>(kQuantisedGroup)) {
      const hn::Half<CodeTag> half;
      const hn::Rebind<std::uint8_t, decltype(half)> narrow;
      const auto pairs = hn::PromoteTo(half, hn::LoadU(narrow, bytes));
      const auto codes = hn::Combine(tag, hn::ShiftRight<4>(pairs), hn::And(pairs, hn::Set(half, 15)));
      return hn::Mul(hn::Sub(codes, eight), multiplier);
    }
    const hn::Rebind<std::uint8_t, CodeTag> narrow;
    const Index in_group = at % kQuantisedGroup;
    const auto pairs = hn::PromoteTo(tag, hn::LoadU(narrow, bytes + in_group % (kQuantisedGroup / 2)));
    const auto codes = in_group < kQuantisedGroup / 2 ? hn::And(pairs, hn::Set(tag, 15)) : hn::ShiftRight<4>(pairs);
    return hn::Mul(hn::Sub(codes, eight), multiplier);
  }
}

/// Lane i of the result is sums[i] + a[2i] * b[2i] + a[2i + 1] * b[2i + 1], exact while it fits.
template <class V, class V32 = hwy::HWY_NAMESPACE::Vec<hwy::HWY_NAMESPACE::RepartitionToWide<CodeTag> > >
HWY_INLINE V32 AddPairProducts(V a, V b, V32 sums) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RepartitionToWide<CodeTag> wide;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
  // vpdpwssd by name: Highway 1.0 enables another instruction set than its target says, and the intrinsic with it.
  (void)wide;
  asm("vpdpwssd %2, %1, %0" : "+v"(sums.raw) : "v"(a.raw), "v"(b.raw));
  return sums;
#elif HWY_ARCH_X86
  auto unused = sums;
  return hn::ReorderWidenMulAccumulate(wide, a, b, sums, unused);
#else
  const auto low = [&](V v) { return hn::ShiftRight<16>(hn::ShiftLeft<16>(hn::BitCast(wide, v))); };
  const auto high = [&](V v) { return hn::ShiftRight<16>(hn::BitCast(wide, v)); };
  return hn::Add(hn::Add(sums, hn::Mul(low(a), low(b))), hn::Mul(high(a), high(b)));
#endif
}

/// The channels [0, width) of a row as floats.
template <DType kDType>
HWY_INLINE void DequantiseRow(const std::int8_t* row, const QuantisedLayout<kDType>& layout, Index width, float* to) {
  namespace hn = hwy::HWY_NAMESPACE;
  const CodeTag tag;
  const hn::RepartitionToWide<CodeTag> wide;
  const hn::Rebind<float, decltype(wide)> floats;
  const hn::Half<CodeTag> half;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  const auto scale = hn::Set(floats, layout.scale(row));
  HWY_ALIGN float channels[kQuantisedGroup];
  for (Index at = 0; at < width; at += lanes) {
    const auto codes = LoadCodes(row, layout, at);
    float* out = at + lanes <= width ? to + at : channels;
    hn::StoreU(hn::Mul(hn::ConvertTo(floats, hn::PromoteTo(wide, hn::LowerHalf(half, codes))), scale), floats, out);
    hn::StoreU(hn::Mul(hn::ConvertTo(floats, hn::PromoteTo(wide, hn::UpperHalf(half, codes))), scale), floats,
               out + lanes / 2);
    for (Index i = at; out == channels && i < width; ++i) to[i] = channels[i - at];
  }
}

#endif

/// Rounds `count` numbers to multiples of their largest magnitude over `most`, 16-bit integers, and returns that step.
/// NaN when one of the numbers is not finite. Writes whole vectors, zeros at the end.
HWY_INLINE float RoundToIntegers(const float* HWY_RESTRICT numbers, Index count, Index most,
                                 std::int16_t* HWY_RESTRICT to, Index padded) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::CappedTag<float, kQuantisedGroup / 2> tag;
  const hn::Rebind<std::int16_t, decltype(tag)> narrow;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  auto largest = hn::Zero(tag), differences = hn::Zero(tag);  // x - x is NaN unless x is finite
  Index i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto x = hn::LoadU(tag, numbers + i);
    largest = hn::Max(largest, hn::Abs(x));
    differences = hn::Add(differences, hn::Sub(x, x));
  }
  float max = hn::GetLane(hn::MaxOfLanes(tag, largest)), nan = hn::GetLane(hn::SumOfLanes(tag, differences));
  for (; i < count; ++i) {
    const float magnitude = numbers[i] < 0 ? -numbers[i] : numbers[i];
    max = magnitude > max ? magnitude : max;
    nan += numbers[i] - numbers[i];
  }
  const bool usable = max > 0 && nan == 0;
  const auto all = hn::Set(tag, usable ? max : 1.0f), steps = hn::Set(tag, usable ? static_cast<float>(most) : 0.0f);
  const auto round = [&](auto x) { return hn::DemoteTo(narrow, hn::NearestInt(hn::Mul(hn::Div(x, all), steps))); };
  for (i = 0; i + lanes <= count; i += lanes) hn::StoreU(round(hn::LoadU(tag, numbers + i)), narrow, to + i);
  for (; i < padded; i += lanes) {
    HWY_ALIGN float last[kQuantisedGroup / 2] = {};
    for (Index k = i; k < count; ++k) last[k - i] = numbers[k];
    hn::StoreU(round(hn::Load(tag, last)), narrow, to + i);
  }
  return max / static_cast<float>(most) + nan;
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
