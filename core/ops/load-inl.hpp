// Loads of 16- and 32-bit floats as float vectors. Included by kernels only, once per target.
#if defined(RETICLE_CORE_OPS_LOAD_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef RETICLE_CORE_OPS_LOAD_INL_HPP
#undef RETICLE_CORE_OPS_LOAD_INL_HPP
#else
#define RETICLE_CORE_OPS_LOAD_INL_HPP
#endif

#include <algorithm>

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <reticle/core/base/types.hpp>
#include <reticle/core/ops/dot.hpp>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {

template <class D>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> LoadFloat(D tag, const float* p) {
  return hwy::HWY_NAMESPACE::LoadU(tag, p);
}

/// Prefetch distance in bytes: a core's share of the bandwidth times the latency of a busy memory (20 GB/s, 400 ns).
inline constexpr Index kPrefetchBytes = 8192;

/// Prefetches `count` elements, which hides memory latency where the hardware cannot guess the next address. The target
/// is the second-level cache, where more requests can wait (1.5 times as fast on Zen 4 as prefetching into the first
/// level).
template <class T>
HWY_INLINE void PrefetchVector(const T* p, Index count) {
  constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));
  for (Index i = 0; i < count; i += kLine) __builtin_prefetch(p + i, 0, 2);
}

/// Called when row i of `count` is about to be used: prefetches the row that comes kPrefetchBytes later, in this matrix
/// or among the upcoming rows.
template <class T>
HWY_INLINE void PrefetchRow(const T* rows, Index stride, const std::int32_t* indices, Index count, Index i, Index width,
                            const UpcomingRows& next) {
  const Index ahead = i + kPrefetchBytes / std::max<Index>(64, width * static_cast<Index>(sizeof(T)));
  if (ahead < count) {
    PrefetchVector(rows + indices[ahead] * stride, width);
  } else if (ahead - count < next.count) {
    PrefetchVector(next.data + next.indices[ahead - count] * next.stride, next.size);
  }
}

/// bfloat16 is the upper half of a float: widen the bits and shift.
template <class D>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> LoadFloat(D tag, const BFloat16* p) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::Rebind<std::uint16_t, D> half;
  const hn::RebindToUnsigned<D> wide;
  const auto bits = hn::LoadU(half, reinterpret_cast<const std::uint16_t*>(p));
  return hn::BitCast(tag, hn::ShiftLeft<16>(hn::PromoteTo(wide, bits)));
}

/// Uses F16C or better where available.
template <class D>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> LoadFloat(D tag, const Half* p) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::Rebind<hwy::float16_t, D> half;
  return hn::PromoteTo(tag, hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(p)));
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
