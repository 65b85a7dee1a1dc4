// Streaming softmax (Milakov and Gimelshein 2018) in steps of 256 keys, so that scores and weights stay in L1 and the
// rescaling of the output is paid once per step. Four output vectors are kept in registers while the step's values
// stream past: bytes read = count * dv * size, flops = 2 * count * dv. Bound by value bandwidth.
#include <reticle/attention/row_kernel.hpp>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/row_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// must follow foreach_target.h
#include <hwy/contrib/math/math-inl.h>

#include <reticle/core/ops/load-inl.hpp>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// The maximum of the scores; NaN when one is NaN.
float MaxOrNaN(const float* scores, Index count) {
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  auto max = hn::Set(tag, -std::numeric_limits<float>::infinity());
  auto sum_of_nans = hn::Zero(tag);
  Index i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto s = hn::LoadU(tag, scores + i);
    max = hn::Max(max, s);
    sum_of_nans = hn::Add(sum_of_nans, hn::IfThenElseZero(hn::IsNaN(s), s));
  }
  float result = hn::GetLane(hn::MaxOfLanes(tag, max));
  const float nan = hn::GetLane(hn::SumOfLanes(tag, sum_of_nans));
  if (nan != nan) return nan;
  for (; i < count; ++i) {
    if (scores[i] != scores[i]) return scores[i];
    result = scores[i] > result ? scores[i] : result;
  }
  return result;
}

/// scores_i = exp(scores_i - max) * inverse_p_i; returns their sum.
float Weigh(float* scores, const float* inverse_p, Index count, float max) {
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  const auto shift = hn::Set(tag, max);
  const auto lowest = hn::Set(tag, -104.0f);  // exp is 0 below; Exp is not defined at -infinity
  auto sum = hn::Zero(tag);
  const auto weigh = [&](auto s, auto inverse) {
    const auto x = hn::Sub(s, shift);
    return hn::Mul(hn::IfThenElseZero(hn::Ge(x, lowest), hn::Exp(tag, hn::Max(x, lowest))), inverse);
  };
  const auto one = hn::Set(tag, 1.0f);
  Index i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto w = weigh(hn::LoadU(tag, scores + i), inverse_p == nullptr ? one : hn::LoadU(tag, inverse_p + i));
    hn::StoreU(w, tag, scores + i);
    sum = hn::Add(sum, w);
  }
  float total = hn::GetLane(hn::SumOfLanes(tag, sum));
  for (; i < count; ++i) {
    const auto w = weigh(hn::Set(tag, scores[i]), inverse_p == nullptr ? one : hn::Set(tag, inverse_p[i]));
    scores[i] = hn::GetLane(w);
    total += scores[i];
  }
  return total;
}

template <std::size_t kVectors, class T>
void AddColumns(const float* weights, const T* values, Index stride, const std::int32_t* indices, Index count,
                float* output) {
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  hn::Vec<decltype(tag)> sums[kVectors];
  for (std::size_t v = 0; v < kVectors; ++v) sums[v] = hn::LoadU(tag, output + static_cast<Index>(v) * lanes);
  for (Index i = 0; i < count; ++i) {
    const auto weight = hn::Set(tag, weights[i]);
    const T* value = values + indices[i] * stride;
    for (std::size_t v = 0; v < kVectors; ++v)
      sums[v] = hn::MulAdd(weight, LoadFloat(tag, value + static_cast<Index>(v) * lanes), sums[v]);
  }
  for (std::size_t v = 0; v < kVectors; ++v) hn::StoreU(sums[v], tag, output + static_cast<Index>(v) * lanes);
}

void FoldKeys(float* scores, const float* inverse_p, const TensorView& values, const std::int32_t* indices, Index count,
              RowState& state, float* output) {
  const Index dv = values.size(1);
  const float step_max = MaxOrNaN(scores, count);
  if (!(step_max < std::numeric_limits<float>::infinity())) {  // NaN, or an overflow that no maximum can tame
    state.sum = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  if (step_max == -std::numeric_limits<float>::infinity()) return;
  if (step_max > state.max) {
    const float rescale = std::exp(state.max - step_max);  // 0 for the first step
    state.max = step_max;
    state.sum *= rescale;
    for (Index j = 0; j < dv; ++j) output[j] *= rescale;
  }
  state.sum += Weigh(scores, inverse_p, count, state.max);
  dispatch_float(values.dtype, "values", [&]<class T>() {
    const auto* base = static_cast<const T*>(values.data);
    const Index stride = values.stride(0);
    const auto lanes = static_cast<Index>(hn::Lanes(hn::ScalableTag<float>()));
    Index j = 0;
    for (; j + 4 * lanes <= dv; j += 4 * lanes) AddColumns<4>(scores, base + j, stride, indices, count, output + j);
    for (; j + lanes <= dv; j += lanes) AddColumns<1>(scores, base + j, stride, indices, count, output + j);
    for (; j < dv; ++j) {
      for (Index i = 0; i < count; ++i) output[j] += scores[i] * to_float(base[indices[i] * stride + j]);
    }
  });
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle {

HWY_EXPORT(FoldKeys);

void fold_keys(float* scores, const float* inverse_p, const TensorView& values, const std::int32_t* indices,
               Index count, RowState& state, float* output) {
  HWY_DYNAMIC_DISPATCH(FoldKeys)(scores, inverse_p, values, indices, count, state, output);
}

}  // namespace reticle
#endif
