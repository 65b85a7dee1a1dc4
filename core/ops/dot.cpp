// One pass over the keys. Eight dot products, or 16 where there are 32 registers and four queries, are computed at once
// with queries held in L1: enough independent chains of multiply-adds to hide their latency. Sums across lanes are
// formed for four products at a time. Bound by key bandwidth up to four queries; a register-blocked tile is faster from
// about 16 queries on and is another kernel (matmul-inl.hpp).
#include <array>
#include <vector>

#include <reticle/core/ops/dot.hpp>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/dot.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <reticle/core/ops/load-inl.hpp>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR
template <class D, class V = hn::Vec<D>>
void StoreSumsOfFour(D, V a, V b, V c, V d, float* to) {
  const V sums[] = {a, b, c, d};
  for (std::size_t i = 0; i < 4; ++i) to[i] = hn::GetLane(sums[i]);
}
#else
/// Stores the sum of a vector's blocks of four lanes: 4 floats.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreSumOfBlocks(D tag, V v, float* to) {
  if constexpr (hn::MaxLanes(D()) <= 4) {
    hn::StoreU(v, tag, to);
  } else {
    const hn::Half<D> half;
    StoreSumOfBlocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), to);
  }
}

/// Stores the sum of each of four vectors: 4 floats.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreSumsOfFour(D tag, V a, V b, V c, V d, float* to) {
  const hn::Repartition<std::uint64_t, D> pairs;
  const auto ab = hn::BitCast(pairs, hn::Add(hn::InterleaveLower(tag, a, b), hn::InterleaveUpper(tag, a, b)));
  const auto cd = hn::BitCast(pairs, hn::Add(hn::InterleaveLower(tag, c, d), hn::InterleaveUpper(tag, c, d)));
  StoreSumOfBlocks(tag,
                   hn::Add(hn::BitCast(tag, hn::InterleaveLower(pairs, ab, cd)),
                           hn::BitCast(tag, hn::InterleaveUpper(pairs, ab, cd))),
                   to);
}
#endif

/// scores[r * stride + i] = queries_r . key_i, for kRows queries and kKeys keys.
template <std::size_t kRows, std::size_t kKeys, class T>
HWY_INLINE void DotBlock(const float* HWY_RESTRICT queries, const std::array<const T*, kKeys>& keys, Index d,
                         float* HWY_RESTRICT scores, Index stride) {
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  using V = hn::Vec<decltype(tag)>;
  constexpr std::size_t kProducts = (kRows * kKeys + 3) / 4 * 4;
  V sums[kProducts];
  for (V& sum : sums) sum = hn::Zero(tag);
  Index i = 0;
  for (; i + lanes <= d; i += lanes) {
    V key[kKeys];
    for (std::size_t k = 0; k < kKeys; ++k) key[k] = LoadFloat(tag, keys[k] + i);
    for (std::size_t r = 0; r < kRows; ++r) {
      const V query = hn::LoadU(tag, queries + static_cast<Index>(r) * d + i);
      for (std::size_t k = 0; k < kKeys; ++k) sums[r * kKeys + k] = hn::MulAdd(query, key[k], sums[r * kKeys + k]);
    }
  }
  if (kKeys % 4 == 0 && i == d) {
    for (std::size_t p = 0; p < kProducts; p += 4)
      StoreSumsOfFour(tag, sums[p], sums[p + 1], sums[p + 2], sums[p + 3],
                      scores + static_cast<Index>(p / kKeys) * stride + static_cast<Index>(p % kKeys));
    return;
  }
  float products[kProducts];
  for (std::size_t p = 0; p < kProducts; p += 4)
    StoreSumsOfFour(tag, sums[p], sums[p + 1], sums[p + 2], sums[p + 3], products + p);
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t k = 0; k < kKeys; ++k) {
      float product = products[r * kKeys + k];
      for (Index tail = i; tail < d; ++tail)
        product += queries[static_cast<Index>(r) * d + tail] * to_float(keys[k][tail]);
      scores[static_cast<Index>(r) * stride + static_cast<Index>(k)] = product;
    }
  }
}

template <std::size_t kRows, class T>
void DotRows(const float* queries, const T* keys, Index key_stride, const std::int32_t* indices, Index count, Index d,
             float* scores, Index stride, const UpcomingRows& next) {
  // As many sums as fit into registers beside the operands; a query is loaded once for all keys of a block.
  constexpr bool kFewRegisters = HWY_ARCH_X86 != 0 && HWY_TARGET > HWY_AVX3;
  constexpr std::size_t kKeys = (kFewRegisters || kRows < 4 ? 8 : 16) / kRows;
  constexpr auto kStep = static_cast<Index>(kKeys);
  const auto key = [&](Index i) { return keys + (indices == nullptr ? i : indices[i]) * key_stride; };
  Index i = 0;
  for (; i + kStep <= count; i += kStep) {
    std::array<const T*, kKeys> block;
    for (std::size_t k = 0; k < kKeys; ++k) {
      const Index at = i + static_cast<Index>(k);
      block[k] = key(at);
      if (indices != nullptr) PrefetchRow(keys, key_stride, indices, count, at, d, next);
    }
    DotBlock<kRows, kKeys>(queries, block, d, scores + i, stride);
  }
  for (; i < count; ++i) DotBlock<kRows, 1>(queries, std::array<const T*, 1>{key(i)}, d, scores + i, stride);
}

template <class T>
void DotAny(const float* queries, Index rows, const T* keys, Index key_stride, const std::int32_t* indices, Index count,
            Index d, float* scores, Index stride, const UpcomingRows& next) {
  switch (rows) {
    case 1:
      return DotRows<1>(queries, keys, key_stride, indices, count, d, scores, stride, next);
    case 2:
      return DotRows<2>(queries, keys, key_stride, indices, count, d, scores, stride, next);
    case 3:
      return DotRows<3>(queries, keys, key_stride, indices, count, d, scores, stride, next);
    default:
      return DotRows<4>(queries, keys, key_stride, indices, count, d, scores, stride, next);
  }
}

void Dot(const float* queries, Index rows, const TensorView& keys, const std::int32_t* indices, Index count,
         float* scores, Index stride, const UpcomingRows& next) {
  dispatch_float(keys.dtype, "keys", [&]<class T>() {
    const Index d = keys.size(1), key_stride = keys.stride(0), step = keys.stride(1);
    const T* base = static_cast<const T*>(keys.data);
    if (step == 1) return DotAny(queries, rows, base, key_stride, indices, count, d, scores, stride, next);
    std::vector<T> packed(static_cast<std::size_t>(d));
    for (Index i = 0; i < count; ++i) {
      const T* key = base + (indices == nullptr ? i : indices[i]) * key_stride;
      for (Index j = 0; j < d; ++j) packed[static_cast<std::size_t>(j)] = key[j * step];
      DotAny(queries, rows, packed.data(), d, nullptr, 1, d, scores + i, stride, {});
    }
  });
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle {

HWY_EXPORT(Dot);

void dot(const float* queries, Index rows, const TensorView& keys, float* scores, Index stride) {
  HWY_DYNAMIC_DISPATCH(Dot)(queries, rows, keys, nullptr, keys.size(0), scores, stride, {});
}

void dot_gather(const float* queries, Index rows, const TensorView& keys, const std::int32_t* indices, Index count,
                float* scores, Index stride, const UpcomingRows& next) {
  HWY_DYNAMIC_DISPATCH(Dot)(queries, rows, keys, indices, count, scores, stride, next);
}

}  // namespace reticle
#endif
