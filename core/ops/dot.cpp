// One pass over the keys; each key vector is loaded and widened to float once and multiplied with up to four queries
// held in L1. Two accumulators per pair hide the FMA latency for head sizes of 64 and more. Bound by key bandwidth for
// one query, by the horizontal sums for four; a register-blocked tile pays from about 16 queries on and is another
// kernel.
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

template <std::size_t kRows, class T>
void DotRows(const float* HWY_RESTRICT queries, const T* HWY_RESTRICT key, Index d, float* scores, Index stride) {
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  using V = hn::Vec<decltype(tag)>;
  V even[kRows], odd[kRows];
  for (std::size_t r = 0; r < kRows; ++r) even[r] = odd[r] = hn::Zero(tag);
  Index i = 0;
  for (; i + 2 * lanes <= d; i += 2 * lanes) {
    const V k0 = LoadFloat(tag, key + i), k1 = LoadFloat(tag, key + i + lanes);
    for (std::size_t r = 0; r < kRows; ++r) {
      even[r] = hn::MulAdd(hn::LoadU(tag, queries + static_cast<Index>(r) * d + i), k0, even[r]);
      odd[r] = hn::MulAdd(hn::LoadU(tag, queries + static_cast<Index>(r) * d + i + lanes), k1, odd[r]);
    }
  }
  for (; i + lanes <= d; i += lanes) {
    const V k0 = LoadFloat(tag, key + i);
    for (std::size_t r = 0; r < kRows; ++r)
      even[r] = hn::MulAdd(hn::LoadU(tag, queries + static_cast<Index>(r) * d + i), k0, even[r]);
  }
  for (std::size_t r = 0; r < kRows; ++r) {
    float sum = hn::GetLane(hn::SumOfLanes(tag, hn::Add(even[r], odd[r])));
    for (Index tail = i; tail < d; ++tail) sum += queries[static_cast<Index>(r) * d + tail] * to_float(key[tail]);
    scores[static_cast<Index>(r) * stride] = sum;
  }
}

template <class T>
void DotAny(const float* queries, Index rows, const T* key, Index d, float* scores, Index stride) {
  switch (rows) {
    case 1:
      return DotRows<1>(queries, key, d, scores, stride);
    case 2:
      return DotRows<2>(queries, key, d, scores, stride);
    case 3:
      return DotRows<3>(queries, key, d, scores, stride);
    default:
      return DotRows<4>(queries, key, d, scores, stride);
  }
}

void Dot(const float* queries, Index rows, const TensorView& keys, const std::int32_t* indices, Index count,
         float* scores, Index stride) {
  dispatch_float(keys.dtype, "keys", [&]<class T>() {
    const Index d = keys.size(1), key_stride = keys.stride(0), step = keys.stride(1);
    const T* base = static_cast<const T*>(keys.data);
    std::vector<T> packed(step == 1 ? 0 : static_cast<std::size_t>(d));
    for (Index i = 0; i < count; ++i) {
      const T* key = base + (indices == nullptr ? i : indices[i]) * key_stride;
      if (indices != nullptr && i + kPrefetchAhead < count)
        PrefetchVector(base + indices[i + kPrefetchAhead] * key_stride, step == 1 ? d : 1);
      if (step != 1) {
        for (Index j = 0; j < d; ++j) packed[static_cast<std::size_t>(j)] = key[j * step];
        key = packed.data();
      }
      DotAny(queries, rows, key, d, scores + i, stride);
    }
  });
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle {

HWY_EXPORT(Dot);

void dot(const float* queries, Index rows, const TensorView& keys, float* scores, Index stride) {
  HWY_DYNAMIC_DISPATCH(Dot)(queries, rows, keys, nullptr, keys.size(0), scores, stride);
}

void dot_gather(const float* queries, Index rows, const TensorView& keys, const std::int32_t* indices, Index count,
                float* scores, Index stride) {
  HWY_DYNAMIC_DISPATCH(Dot)(queries, rows, keys, indices, count, scores, stride);
}

}  // namespace reticle
#endif
