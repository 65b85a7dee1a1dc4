// One pass over the keys. Eight dot products, or 16 where there are 32 registers and four queries, are computed at once
// with queries held in L1: enough independent chains of multiply-adds to hide their latency. Sums across lanes are
// formed for four products at a time. Bound by key bandwidth up to four queries; a register-blocked tile is faster from
// about 16 queries on and is another kernel (matmul-inl.hpp).
#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include <reticle/core/ops/dot.hpp>

#define HWY_WANT_AVX3_DL  // multiplies pairs of 16-bit integers and adds them in one instruction
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/dot.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <reticle/core/ops/load-inl.hpp>
#include <reticle/core/ops/quantised-inl.hpp>
#include <reticle/core/ops/sums-inl.hpp>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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

/// Queries rounded to integers so small that their products with codes fit into 32 bits.
struct RoundedQueries {
  HWY_ALIGN std::array<std::int16_t, static_cast<std::size_t>(kQueriesPerPass* kMaxQuantisedWidth)> values;
  std::array<float, static_cast<std::size_t>(kQueriesPerPass)> steps;
  Index stride;  // d, rounded up to whole groups

  RoundedQueries(const float* queries, Index rows, Index d)
      : stride((d + kQuantisedGroup - 1) / kQuantisedGroup * kQuantisedGroup) {
    const Index most = std::min<Index>(32767, std::numeric_limits<std::int32_t>::max() / (kMaxQuantised * d));
    for (Index r = 0; r < rows; ++r)
      steps[static_cast<std::size_t>(r)] =
          RoundToIntegers(queries + r * d, d, most, values.data() + r * stride, stride);
  }
};

/// Four keys, or one, at a time.
template <DType kDType, std::size_t kRows, std::size_t kKeys>
HWY_INLINE void QuantisedDotBlock(const RoundedQueries& queries, Index first_query,
                                  const std::array<const std::int8_t*, kKeys>& keys,
                                  const QuantisedLayout<kDType>& layout, float* scores, Index stride) {
  const std::int16_t* const base = queries.values.data() + first_query * queries.stride;
  float key_scales[kKeys];
  for (std::size_t k = 0; k < kKeys; ++k) key_scales[k] = layout.scale(keys[k]);
  std::int32_t products[kRows][kKeys];
#if HWY_TARGET == HWY_SCALAR
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t k = 0; k < kKeys; ++k) {
      products[r][k] = 0;
      for (Index i = 0; i < queries.stride; ++i)
        products[r][k] += base[static_cast<Index>(r) * queries.stride + i] * layout.channel(keys[k], i);
    }
  }
#else
  const CodeTag tag;
  const hn::RepartitionToWide<CodeTag> wide;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  hn::Vec<decltype(wide)> sums[kRows * kKeys];
  for (auto& sum : sums) sum = hn::Zero(wide);
  for (Index i = 0; i < queries.stride; i += lanes) {
    hn::Vec<CodeTag> codes[kKeys];
    for (std::size_t k = 0; k < kKeys; ++k) codes[k] = LoadCodes(keys[k], layout, i);
    for (std::size_t r = 0; r < kRows; ++r) {
      const auto query = hn::LoadU(tag, base + static_cast<Index>(r) * queries.stride + i);
      for (std::size_t k = 0; k < kKeys; ++k)
        sums[r * kKeys + k] = AddPairProducts(query, codes[k], sums[r * kKeys + k]);
    }
  }
  for (std::size_t r = 0; r < kRows; ++r) {
    if constexpr (kKeys == 4) {
      StoreSumsOfFour(wide, sums[r * 4], sums[r * 4 + 1], sums[r * 4 + 2], sums[r * 4 + 3], products[r]);
    } else {
      for (std::size_t k = 0; k < kKeys; ++k) products[r][k] = hn::GetLane(hn::SumOfLanes(wide, sums[r * kKeys + k]));
    }
  }
#endif
  const hn::CappedTag<float, kKeys> few;
  const hn::Rebind<std::int32_t, decltype(few)> integers;
  for (std::size_t r = 0; r < kRows; ++r) {
    const auto step = hn::Set(few, queries.steps[static_cast<std::size_t>(first_query) + r]);
    for (std::size_t k = 0; k < kKeys; k += hn::Lanes(few)) {
      const auto product = hn::ConvertTo(few, hn::LoadU(integers, products[r] + k));
      hn::StoreU(hn::Mul(product, hn::Mul(hn::LoadU(few, key_scales + k), step)), few,
                 scores + static_cast<Index>(r) * stride + static_cast<Index>(k));
    }
  }
}

template <DType kDType, std::size_t kRows>
void QuantisedDotRows(const RoundedQueries& queries, Index first_query, const TensorView& keys,
                      const std::int32_t* indices, Index count, float* scores, Index stride, const UpcomingRows& next) {
  const auto* base = static_cast<const std::int8_t*>(keys.data);
  const QuantisedLayout<kDType> layout(keys.size(1));
  const Index key_stride = keys.stride(0), bytes = row_bytes(kDType, keys.size(1));
  const auto key = [&](Index i) { return base + (indices == nullptr ? i : indices[i]) * key_stride; };
  Index i = 0;
  for (; i + 4 <= count; i += 4) {
    if (indices != nullptr) {
      for (Index k = i; k < i + 4; ++k) PrefetchRow(base, key_stride, indices, count, k, bytes, next);
    }
    QuantisedDotBlock<kDType, kRows, 4>(queries, first_query, {key(i), key(i + 1), key(i + 2), key(i + 3)}, layout,
                                        scores + i, stride);
  }
  for (; i < count; ++i)
    QuantisedDotBlock<kDType, kRows, 1>(queries, first_query, {key(i)}, layout, scores + i, stride);
}

template <DType kDType>
void QuantisedDot(const float* queries, Index rows, const TensorView& keys, const std::int32_t* indices, Index count,
                  float* scores, Index stride, const UpcomingRows& next) {
  const RoundedQueries rounded(queries, rows, keys.size(1));
  // As many sums as fit into registers beside the operands.
  constexpr bool kFewRegisters = HWY_ARCH_X86 != 0 && HWY_TARGET > HWY_AVX3;
  constexpr Index kStep = kFewRegisters ? 2 : 4;
  for (Index r = 0; r < rows; r += kStep) {
    float* to = scores + r * stride;
    switch (std::min(kStep, rows - r)) {
      case 1:
        QuantisedDotRows<kDType, 1>(rounded, r, keys, indices, count, to, stride, next);
        break;
      case 2:
        QuantisedDotRows<kDType, 2>(rounded, r, keys, indices, count, to, stride, next);
        break;
      case 3:
        QuantisedDotRows<kDType, 3>(rounded, r, keys, indices, count, to, stride, next);
        break;
      default:
        QuantisedDotRows<kDType, 4>(rounded, r, keys, indices, count, to, stride, next);
    }
  }
}

void Dot(const float* queries, Index rows, const TensorView& keys, const std::int32_t* indices, Index count,
         float* scores, Index stride, const UpcomingRows& next) {
  if (keys.dtype == DType::q8)
    return QuantisedDot<DType::q8>(queries, rows, keys, indices, count, scores, stride, next);
  if (keys.dtype == DType::q4)
    return QuantisedDot<DType::q4>(queries, rows, keys, indices, count, scores, stride, next);
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
