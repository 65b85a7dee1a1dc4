// Sums across the lanes of four vectors of 32-bit numbers. Included by kernels only, once per target.
#if defined(RETICLE_CORE_OPS_SUMS_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef RETICLE_CORE_OPS_SUMS_INL_HPP
#undef RETICLE_CORE_OPS_SUMS_INL_HPP
#else
#define RETICLE_CORE_OPS_SUMS_INL_HPP
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR
template <class D, class V = hwy::HWY_NAMESPACE::Vec<D>>
void StoreSumsOfFour(D, V a, V b, V c, V d, hwy::HWY_NAMESPACE::TFromD<D>* to) {
  namespace hn = hwy::HWY_NAMESPACE;
  const V sums[] = {a, b, c, d};
  for (std::size_t i = 0; i < 4; ++i) to[i] = hn::GetLane(sums[i]);
}
#else
/// Stores the sum of a vector's blocks of four lanes: 4 numbers.
template <class D, class V = hwy::HWY_NAMESPACE::Vec<D>>
HWY_INLINE void StoreSumOfBlocks(D tag, V v, hwy::HWY_NAMESPACE::TFromD<D>* to) {
  namespace hn = hwy::HWY_NAMESPACE;
  if constexpr (hn::MaxLanes(D()) <= 4) {
    hn::StoreU(v, tag, to);
  } else {
    const hn::Half<D> half;
    StoreSumOfBlocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), to);
  }
}

/// Stores the sum of each of four vectors: 4 numbers.
template <class D, class V = hwy::HWY_NAMESPACE::Vec<D>>
HWY_INLINE void StoreSumsOfFour(D tag, V a, V b, V c, V d, hwy::HWY_NAMESPACE::TFromD<D>* to) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::Repartition<std::uint64_t, D> pairs;
  const auto ab = hn::BitCast(pairs, hn::Add(hn::InterleaveLower(tag, a, b), hn::InterleaveUpper(tag, a, b)));
  const auto cd = hn::BitCast(pairs, hn::Add(hn::InterleaveLower(tag, c, d), hn::InterleaveUpper(tag, c, d)));
  StoreSumOfBlocks(tag,
                   hn::Add(hn::BitCast(tag, hn::InterleaveLower(pairs, ab, cd)),
                           hn::BitCast(tag, hn::InterleaveUpper(pairs, ab, cd))),
                   to);
}
#endif

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
