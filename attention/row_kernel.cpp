// Online softmax (Milakov and Gimelshein 2018) in steps of 256 keys, so that scores and weights stay in L1 and the
// output is rescaled once per step. Output vectors of up to four rows are kept in registers while the step's values
// stream past: bytes read = count * dv * size, flops = 2 * rows * count * dv. Bound by value bandwidth for one row, by
// multiply-adds for four.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include <reticle/attention/row_kernel.hpp>

#define HWY_WANT_AVX3_DL  // multiplies pairs of 16-bit integers and adds them in one instruction
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/row_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// must follow foreach_target.h
#include <reticle/core/ops/exp-inl.hpp>
#include <reticle/core/ops/load-inl.hpp>
#include <reticle/core/ops/quantised-inl.hpp>

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
  auto sum = hn::Zero(tag);
  const auto weigh = [&](auto s, auto inverse) { return hn::Mul(SoftmaxExp(tag, hn::Sub(s, shift)), inverse); };
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

template <std::size_t kRows, std::size_t kVectors, class T>
void AddColumns(const float* weights, const T* values, Index stride, const std::int32_t* indices, Index count,
                Index column, const RowState* states, const UpcomingRows& next) {
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  using V = hn::Vec<decltype(tag)>;
  V sums[kRows][kVectors];
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t v = 0; v < kVectors; ++v)
      sums[r][v] = hn::LoadU(tag, states[r].output + column + static_cast<Index>(v) * lanes);
  }
  for (Index i = 0; i < count; ++i) {
    const T* value = values + indices[i] * stride + column;
    PrefetchRow(values + column, stride, indices, count, i, static_cast<Index>(kVectors) * lanes, next);
    V loaded[kVectors];
    for (std::size_t v = 0; v < kVectors; ++v) loaded[v] = LoadFloat(tag, value + static_cast<Index>(v) * lanes);
    for (std::size_t r = 0; r < kRows; ++r) {
      const V weight = hn::Set(tag, weights[static_cast<Index>(r) * kKeysPerStep + i]);
      for (std::size_t v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(weight, loaded[v], sums[r][v]);
    }
  }
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t v = 0; v < kVectors; ++v)
      hn::StoreU(sums[r][v], tag, states[r].output + column + static_cast<Index>(v) * lanes);
  }
}

/// Keys whose sums stay in integers: so few that 15-bit weights times codes fit into 32 bits.
inline constexpr Index kKeysPerSum = 32, kMaxRoundedWeight = 16383;
static_assert(kKeysPerSum * kMaxRoundedWeight * kMaxQuantised <= std::numeric_limits<std::int32_t>::max());

/// Up to 32 values, and their weights times their scales as multiples of the largest over 2^14.
struct RoundedWeights {
  const std::int8_t* values[kKeysPerSum];
  HWY_ALIGN std::int16_t weights[kRowsPerStep][kKeysPerSum];
  float steps[kRowsPerStep];
};

/// Integers that are summed over a block of keys, as floats: [row][channel], the channels of a vector in the order that
/// interleaving two vectors leaves.
using QuantisedSums = float[kRowsPerStep][kMaxQuantisedWidth];

#if HWY_TARGET == HWY_SCALAR
template <std::size_t kRows, std::size_t kVectors, DType kDType>
void AddCodes(const RoundedWeights& block, Index count, const QuantisedLayout<kDType>& layout, Index at,
              QuantisedSums& sums) {
  for (std::size_t r = 0; r < kRows; ++r) {
    for (Index channel = at; channel < at + static_cast<Index>(kVectors) * CodeLanes(); ++channel) {
      std::int32_t sum = 0;
      for (Index i = 0; i < count; ++i) sum += block.weights[r][i] * layout.channel(block.values[i], channel);
      sums[r][channel] += static_cast<float>(sum) * block.steps[r];
    }
  }
}
#else
/// Adds a block of keys to the channels of kVectors vectors from `at` on.
template <std::size_t kRows, std::size_t kVectors, DType kDType>
HWY_INLINE void AddCodes(const RoundedWeights& block, Index count, const QuantisedLayout<kDType>& layout, Index at,
                         QuantisedSums& sums) {
  const CodeTag tag;
  const hn::RepartitionToWide<CodeTag> wide;
  const hn::Rebind<float, decltype(wide)> floats;
  const auto lanes = static_cast<Index>(hn::Lanes(tag)), half = lanes / 2;
  hn::Vec<decltype(wide)> low[kRows][kVectors], high[kRows][kVectors];
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t v = 0; v < kVectors; ++v) low[r][v] = high[r][v] = hn::Zero(wide);
  }
  for (Index i = 0; i < count; i += 2) {
    hn::Vec<CodeTag> pairs_low[kVectors], pairs_high[kVectors];
    for (std::size_t v = 0; v < kVectors; ++v) {
      const Index channel = at + static_cast<Index>(v) * lanes;
      const auto first = LoadCodes(block.values[i], layout, channel),
                 second = LoadCodes(block.values[i + 1], layout, channel);
      pairs_low[v] = hn::InterleaveLower(tag, first, second);
      pairs_high[v] = hn::InterleaveUpper(tag, first, second);
    }
    for (std::size_t r = 0; r < kRows; ++r) {
      std::int32_t pair;
      std::memcpy(&pair, block.weights[r] + i, sizeof(pair));
      const auto weights = hn::BitCast(tag, hn::Set(wide, pair));
      for (std::size_t v = 0; v < kVectors; ++v) {
        low[r][v] = AddPairProducts(weights, pairs_low[v], low[r][v]);
        high[r][v] = AddPairProducts(weights, pairs_high[v], high[r][v]);
      }
    }
  }
  for (std::size_t r = 0; r < kRows; ++r) {
    const auto step = hn::Set(floats, block.steps[r]);
    for (std::size_t v = 0; v < kVectors; ++v) {
      float* to = sums[r] + at + static_cast<Index>(v) * lanes;
      hn::StoreU(hn::MulAdd(hn::ConvertTo(floats, low[r][v]), step, hn::LoadU(floats, to)), floats, to);
      hn::StoreU(hn::MulAdd(hn::ConvertTo(floats, high[r][v]), step, hn::LoadU(floats, to + half)), floats, to + half);
    }
  }
}
#endif

/// Adds a row's sums to its output, in the channels' order: of eight channels, the first four lie in the lower half of
/// a vector, the others in its upper half.
HWY_INLINE void AddInOrder(const float* sums, Index dv, float* output) {
  const Index lanes = CodeLanes(), half = lanes / 2;
  for (Index vector = 0; vector < dv; vector += lanes) {
    for (Index four = 0; four < half; four += 4) {
      float* const to = output + vector + 2 * four;
      const Index left = dv - vector - 2 * four;
      for (Index j = 0; j < std::min<Index>(4, left); ++j) to[j] += sums[vector + four + j];
      for (Index j = 0; j < std::min<Index>(4, left - 4); ++j) to[4 + j] += sums[vector + half + four + j];
    }
  }
}

/// For quantised values: integers of 15 bits times integers of 13, summed exactly over 32 keys, so that a value's codes
/// are unpacked once for all rows and never turned into floats.
template <DType kDType, std::size_t kRows>
void AddQuantisedValues(const float* weights, const TensorView& values, const std::int32_t* indices, Index count,
                        const RowState* states, const UpcomingRows& next) {
  const auto* base = static_cast<const std::int8_t*>(values.data);
  const QuantisedLayout<kDType> layout(values.size(1));
  const Index stride = values.stride(0), bytes = row_bytes(kDType, values.size(1));
  constexpr bool kFewRegisters = HWY_ARCH_X86 != 0 && HWY_TARGET > HWY_AVX3;
  constexpr std::size_t kVectors = kRows == 1 ? 4 : kFewRegisters ? 1 : 2;
  const Index step = static_cast<Index>(kVectors) * CodeLanes();
  HWY_ALIGN QuantisedSums sums;
  RoundedWeights block;
  for (std::size_t r = 0; r < kRows; ++r) std::fill(sums[r], sums[r] + layout.width(), 0.0f);
  for (Index begin = 0; begin < count; begin += kKeysPerSum) {
    const Index taken = std::min(kKeysPerSum, count - begin);
    HWY_ALIGN float scales[kKeysPerSum], scaled[kKeysPerSum];
    for (Index i = 0; i < taken; ++i) {
      PrefetchRow(base, stride, indices, count, begin + i, bytes, next);
      block.values[i] = base + indices[begin + i] * stride;
      scales[i] = layout.scale(block.values[i]);
    }
    if (taken % 2 != 0) block.values[taken] = block.values[taken - 1];  // a partner of weight zero
    for (std::size_t r = 0; r < kRows; ++r) {
      const float* from = weights + static_cast<Index>(r) * kKeysPerStep + begin;
      for (Index i = 0; i < taken; ++i) scaled[i] = from[i] * scales[i];
      block.steps[r] = RoundToIntegers(scaled, taken, kMaxRoundedWeight, block.weights[r], kKeysPerSum);
    }
    Index at = 0;
    for (; at + step <= layout.width(); at += step) AddCodes<kRows, kVectors>(block, taken, layout, at, sums);
    for (; at < layout.width(); at += CodeLanes()) AddCodes<kRows, 1>(block, taken, layout, at, sums);
  }
  for (std::size_t r = 0; r < kRows; ++r) AddInOrder(sums[r], values.size(1), states[r].output);
}

template <std::size_t kRows>
void AddValues(const float* weights, const TensorView& values, const std::int32_t* indices, Index count,
               RowState* states, const UpcomingRows& next) {
  if (values.dtype == DType::q8)
    return AddQuantisedValues<DType::q8, kRows>(weights, values, indices, count, states, next);
  if (values.dtype == DType::q4)
    return AddQuantisedValues<DType::q4, kRows>(weights, values, indices, count, states, next);
  dispatch_float(values.dtype, "values", [&]<class T>() {
    const auto* base = static_cast<const T*>(values.data);
    const Index stride = values.stride(0), dv = values.size(1);
    const auto lanes = static_cast<Index>(hn::Lanes(hn::ScalableTag<float>()));
    // As many sums as fit into registers beside the values: enough chains to hide the latency of multiply-adds.
    constexpr bool kFewRegisters = HWY_ARCH_X86 != 0 && HWY_TARGET > HWY_AVX3;
    constexpr std::size_t kVectors = (kFewRegisters ? 8 : 16) / (kRows == 1 ? 2 : kRows == 3 ? 4 : kRows);
    constexpr auto kWide = static_cast<Index>(kVectors);
    Index j = 0;
    for (; j + kWide * lanes <= dv; j += kWide * lanes)
      AddColumns<kRows, kVectors>(weights, base, stride, indices, count, j, states, next);
    for (; kWide > 4 && j + 4 * lanes <= dv; j += 4 * lanes)
      AddColumns<kRows, 4>(weights, base, stride, indices, count, j, states, next);
    for (; j + lanes <= dv; j += lanes) AddColumns<kRows, 1>(weights, base, stride, indices, count, j, states, next);
    for (; j < dv; ++j) {
      for (std::size_t r = 0; r < kRows; ++r) {
        for (Index i = 0; i < count; ++i)
          states[r].output[j] +=
              weights[static_cast<Index>(r) * kKeysPerStep + i] * to_float(base[indices[i] * stride + j]);
      }
    }
  });
}

/// Turns a row's scores into weights, and rescales its sum and output to the same maximum.
void WeighRow(float* scores, const float* inverse_p, Index count, Index dv, RowState& state) {
  const float step_max = MaxOrNaN(scores, count);
  if (step_max == -std::numeric_limits<float>::infinity()) {
    std::fill(scores, scores + count, 0.0f);
    return;
  }
  if (!(step_max < std::numeric_limits<float>::infinity())) {  // NaN, or an overflow to +infinity
    std::fill(scores, scores + count, 0.0f);
    state.sum = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  if (step_max > state.max) {
    const float rescale = std::exp(state.max - step_max);  // 0 for the first step
    state.max = step_max;
    state.sum *= rescale;
    for (Index j = 0; j < dv; ++j) state.output[j] *= rescale;
  }
  state.sum += Weigh(scores, inverse_p, count, state.max);
}

void FoldKeys(float* scores, Index rows, const float* inverse_p, const TensorView& values, const std::int32_t* indices,
              Index count, RowState* states, const UpcomingRows& next) {
  for (Index r = 0; r < rows; ++r) {
    const Index at = r * kKeysPerStep;
    WeighRow(scores + at, inverse_p == nullptr ? nullptr : inverse_p + at, count, values.size(1), states[r]);
  }
  switch (rows) {
    case 1:
      return AddValues<1>(scores, values, indices, count, states, next);
    case 2:
      return AddValues<2>(scores, values, indices, count, states, next);
    case 3:
      return AddValues<3>(scores, values, indices, count, states, next);
    default:
      return AddValues<4>(scores, values, indices, count, states, next);
  }
}

void DropUnattended(float* scores, const std::uint64_t* attended, Index row, Index count) {
  Index i = 0;
  const auto drop = [&](auto tag) {
    const hn::Rebind<std::uint32_t, decltype(tag)> narrow;
    const hn::Rebind<float, decltype(tag)> floats;
    const auto bit = hn::Set(tag, std::uint64_t{1} << row);
    const auto nothing = hn::Set(floats, -std::numeric_limits<float>::infinity());
    const auto lanes = static_cast<Index>(hn::Lanes(tag));
    for (; i + lanes <= count; i += lanes) {
      // The bit may be in the upper half of a 64-bit lane, so the set bit is turned into 1 before lanes are narrowed.
      const auto set = hn::IfThenElseZero(hn::TestBit(hn::LoadU(tag, attended + i), bit), hn::Set(tag, 1));
      const auto attends = hn::RebindMask(floats, hn::Ne(hn::TruncateTo(narrow, set), hn::Zero(narrow)));
      hn::StoreU(hn::IfThenElse(attends, hn::LoadU(floats, scores + i), nothing), floats, scores + i);
    }
  };
  drop(hn::ScalableTag<std::uint64_t>());
  drop(hn::CappedTag<std::uint64_t, 1>());
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle {

HWY_EXPORT(FoldKeys);
HWY_EXPORT(DropUnattended);

void fold_keys(float* scores, Index rows, const float* inverse_p, const TensorView& values, const std::int32_t* indices,
               Index count, RowState* states, const UpcomingRows& next) {
  HWY_DYNAMIC_DISPATCH(FoldKeys)(scores, rows, inverse_p, values, indices, count, states, next);
}

void drop_unattended(float* scores, const std::uint64_t* attended, Index row, Index count) {
  HWY_DYNAMIC_DISPATCH(DropUnattended)(scores, attended, row, count);
}

}  // namespace reticle
#endif
