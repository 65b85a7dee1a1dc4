// The k highest of n scores without sorting them.
//
// Narrow: a threshold guessed from a few samples, low enough that more than k scores almost surely pass it, leaves a
// small list of candidates; one pass at load speed. If fewer pass, only that pass is lost.
// Cut: the k-th highest candidate is searched between a score that at least k candidates reach and one that fewer
// reach. Each step counts the candidates at or above a score in between, 16 per instruction with AVX-512; a count of
// exactly k ends the search. That score is interpolated as if ranks followed a logistic distribution (close enough to a
// normal one, tails included): about four steps. If a step does not halve the undecided candidates, the next step
// bisects the bits of floats, in the order of selection: at most 64 steps whatever the distribution.
// Take: one more pass writes the positions in ascending order; of scores equal to the last one it takes the first.
// Bound by reading the scores once when they are many, by the steps over the candidates when they are few.
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include <reticle/core/base/thread_scratch.hpp>
#include <reticle/core/ops/order_key.hpp>
#include <reticle/core/ops/select.hpp>
#include <reticle/core/tensor/buffer.hpp>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/top_k.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// How many scores are at or above the threshold; NaN never is.
Index CountFrom(const float* scores, Index n, float threshold) {
  const hn::ScalableTag<float> tag;
  const hn::RebindToSigned<decltype(tag)> counts;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  const auto least = hn::Set(tag, threshold);
  const auto passing = [&](Index i) HWY_ATTR { return hn::Ge(hn::LoadU(tag, scores + i), least); };
  // Four sums, each below 2^31, so that additions do not wait for one another.
  auto a = hn::Zero(counts), b = a, c = a, d = a;
  const auto one = hn::Set(counts, 1);
  const auto add = [&](auto& sum, Index i)
                       HWY_ATTR { sum = hn::IfThenElse(hn::RebindMask(counts, passing(i)), hn::Add(sum, one), sum); };
  Index i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    add(a, i);
    add(b, i + lanes);
    add(c, i + 2 * lanes);
    add(d, i + 3 * lanes);
  }
  for (; i + lanes <= n; i += lanes) add(a, i);
  Index count = hn::GetLane(hn::SumOfLanes(counts, hn::Add(hn::Add(a, b), hn::Add(c, d))));
  for (; i < n; ++i) count += scores[i] >= threshold ? 1 : 0;
  return count;
}

/// The highest score, ignoring NaN.
float Highest(const float* scores, Index n) {
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  const auto lowest = hn::Set(tag, -std::numeric_limits<float>::infinity());
  auto a = lowest, b = lowest;
  const auto ordered = [&](Index i) HWY_ATTR {
    const auto v = hn::LoadU(tag, scores + i);
    return hn::IfThenElse(hn::IsNaN(v), lowest, v);
  };
  Index i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    a = hn::Max(a, ordered(i));
    b = hn::Max(b, ordered(i + lanes));
  }
  float highest = hn::GetLane(hn::MaxOfLanes(tag, hn::Max(a, b)));
  for (; i < n; ++i) highest = scores[i] > highest ? scores[i] : highest;
  return highest;
}

/// The lowest of the scores at or above the threshold; +infinity if there is none.
float LowestFrom(const float* scores, Index n, float threshold) {
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  const auto least = hn::Set(tag, threshold), infinity = hn::Set(tag, std::numeric_limits<float>::infinity());
  auto a = infinity, b = infinity;
  const auto passing = [&](Index i) HWY_ATTR {
    const auto v = hn::LoadU(tag, scores + i);
    return hn::IfThenElse(hn::Ge(v, least), v, infinity);
  };
  Index i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    a = hn::Min(a, passing(i));
    b = hn::Min(b, passing(i + lanes));
  }
  float lowest = hn::GetLane(hn::MinOfLanes(tag, hn::Min(a, b)));
  for (; i < n; ++i) lowest = scores[i] >= threshold && scores[i] < lowest ? scores[i] : lowest;
  return lowest;
}

/// Writes the scores at or above the threshold and their positions (from `indices`, or 0, 1, ...); returns how many.
/// `to_scores` and `to_indices` have room for n elements and a vector more, and may alias the inputs.
Index CollectFrom(const float* scores, const std::int32_t* indices, Index n, float threshold, float* to_scores,
                  std::int32_t* to_indices) {
  const hn::ScalableTag<float> tag;
  const hn::RebindToSigned<decltype(tag)> positions;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  const auto least = hn::Set(tag, threshold);
  const auto from_zero = hn::Iota(positions, 0);  // hoisted: Highway 1.0 computes it through memory
  Index count = 0, i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto v = hn::LoadU(tag, scores + i);
    const auto passing = hn::Ge(v, least);
    if (hn::AllFalse(tag, passing)) continue;
    const auto lane_indices = indices == nullptr ? hn::Add(from_zero, hn::Set(positions, static_cast<std::int32_t>(i)))
                                                 : hn::LoadU(positions, indices + i);
    hn::StoreU(hn::Compress(v, passing), tag, to_scores + count);
    hn::StoreU(hn::Compress(lane_indices, hn::RebindMask(positions, passing)), positions, to_indices + count);
    count += static_cast<Index>(hn::CountTrue(tag, passing));
  }
  for (; i < n; ++i) {
    if (!(scores[i] >= threshold)) continue;
    to_scores[count] = scores[i];
    to_indices[count++] = indices == nullptr ? static_cast<std::int32_t>(i) : indices[i];
  }
  return count;
}

/// Writes the positions of scores above the cut and of the first `ties` equal to it, at most `most` in all; returns how
/// many. `out` has room for `most` and a vector more.
Index TakeAbove(const float* scores, const std::int32_t* indices, Index n, float cut, Index ties, Index most,
                std::int32_t* out) {
  const hn::ScalableTag<float> tag;
  const hn::RebindToSigned<decltype(tag)> positions;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  const auto at_cut = hn::Set(tag, cut);
  const auto from_zero = hn::Iota(positions, 0);
  Index count = 0, i = 0;
  const auto take_one = [&](Index at) {
    const bool tie = scores[at] == cut && ties > 0;
    if (!(scores[at] > cut) && !tie) return;
    ties -= tie ? 1 : 0;
    out[count++] = indices == nullptr ? static_cast<std::int32_t>(at) : indices[at];
  };
  for (; i + lanes <= n && count < most; i += lanes) {
    const auto v = hn::LoadU(tag, scores + i);
    auto taken = hn::Gt(v, at_cut);
    const auto equal = hn::Eq(v, at_cut);
    if (!hn::AllFalse(tag, equal)) {
      const auto found = static_cast<Index>(hn::CountTrue(tag, equal));
      if (ties > 0 && ties < found) {  // not all of these ties are taken
        for (Index at = i; at < i + lanes; ++at) take_one(at);
        continue;
      }
      if (ties > 0) {
        taken = hn::Or(taken, equal);
        ties -= found;
      }
    }
    const auto lane_indices = indices == nullptr ? hn::Add(from_zero, hn::Set(positions, static_cast<std::int32_t>(i)))
                                                 : hn::LoadU(positions, indices + i);
    hn::StoreU(hn::Compress(lane_indices, hn::RebindMask(positions, taken)), positions, out + count);
    count += static_cast<Index>(hn::CountTrue(tag, taken));
  }
  for (; i < n && count < most; ++i) take_one(i);
  return count;
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle {

HWY_EXPORT(CountFrom);
HWY_EXPORT(Highest);
HWY_EXPORT(LowestFrom);
HWY_EXPORT(CollectFrom);
HWY_EXPORT(TakeAbove);

float highest(std::span<const float> scores) {
  return HWY_DYNAMIC_DISPATCH(Highest)(scores.data(), static_cast<Index>(scores.size()));
}

namespace {

/// Elements past the result that kernels may overwrite.
constexpr std::size_t kSlack = 64;
constexpr float kLowest = std::numeric_limits<float>::lowest();

/// Memory for the narrowed list of candidates.
struct Kept {
  Array<float> scores;
  Array<std::int32_t> indices;
};

/// Scores and their positions.
struct Candidates {
  const float* scores;
  const std::int32_t* indices;  // null: 0, 1, ...
  Index count;
};

/// Where k of n scores are cut off: `reaching` scores, at least k (or all, if fewer), have order keys of at least
/// `low`; `above` of them, fewer than k, have higher ones.
struct Cut {
  std::uint32_t low;
  Index reaching, above;
};

/// Finds a cut, given that at least k of n scores, or all, reach `low`. Ends early at a cut that at most `enough`
/// scores reach; `above` is then unknown.
Cut find_cut(const float* scores, Index n, Index k, Index enough, std::uint32_t low) {
  const auto count_from = [&](std::uint32_t key) {
    return HWY_DYNAMIC_DISPATCH(CountFrom)(scores, n, score_of_key(key));
  };
  Cut cut{low, count_from(low), 0};
  if (cut.reaching <= enough) return cut;
  std::uint32_t high = order_key(highest({scores, static_cast<std::size_t>(n)}));
  cut.above = count_from(high);
  if (cut.above >= k) return {high, cut.above, 0};  // k scores or more equal the highest
  if (low == order_key(kLowest)) cut.low = order_key(HWY_DYNAMIC_DISPATCH(LowestFrom)(scores, n, kLowest));
  // log(count / (n - count)): the bits of a positive float approximate its logarithm at no cost.
  const auto logit = [&](Index count) {
    const auto log = [](Index x) { return std::bit_cast<std::int32_t>(static_cast<float>(x) + 0.5f); };
    return static_cast<float>(log(count) - log(n - count));
  };
  const float wanted = logit((k + enough) / 2);
  float at_low = logit(cut.reaching), at_high = logit(cut.above);
  bool halved = true;
  while (cut.reaching > enough && high - cut.low > 1) {
    std::uint32_t between = cut.low + (high - cut.low) / 2;
    if (halved) {
      const double from = score_of_key(cut.low), to = score_of_key(high);
      const double at = from + (to - from) * static_cast<double>((at_low - wanted) / (at_low - at_high));
      between = std::clamp(order_key(static_cast<float>(at)), cut.low + 1, high - 1);
    }
    const Index undecided = cut.reaching - cut.above, count = count_from(between);
    (count >= k ? cut.low : high) = between;
    (count >= k ? cut.reaching : cut.above) = count;
    (count >= k ? at_low : at_high) = logit(count);
    halved = !halved || 2 * (cut.reaching - cut.above) <= undecided;
  }
  return cut;
}

/// A score that more than k of the candidates almost surely reach, from equally spaced samples.
struct Guess {
  float threshold;
  bool is_highest;  // whether it is the highest sample
};
Guess guess_threshold(const Candidates& candidates, Index k) {
  constexpr Index kMaxSamples = 1024;
  float samples[kMaxSamples];
  const Index count = std::clamp<Index>(candidates.count / 256, 256, kMaxSamples);
  for (Index i = 0; i < count; ++i) samples[i] = candidates.scores[i * (candidates.count / count)];
  // The k-th highest score is about the rank-th sample, with a deviation of sqrt(rank); three of those are enough.
  const double rank = static_cast<double>(k) * static_cast<double>(count) / static_cast<double>(candidates.count);
  const Index at = std::min(count, static_cast<Index>(rank + 3 * std::sqrt(rank) + 3));
  const Cut cut = find_cut(samples, count, at, at + at / 8, order_key(kLowest));
  const float threshold = score_of_key(cut.low);
  return {threshold, threshold == highest({samples, static_cast<std::size_t>(count)})};
}

}  // namespace

void top_k(std::span<const float> scores, Index k, std::vector<std::int32_t>& selected) {
  if (k <= 0) return;
  static thread_local constinit ThreadScratch<Kept> scratch;
  auto& [kept_scores, kept_indices] = scratch.get();
  constexpr Index kFew = 2048;
  Candidates candidates{scores.data(), nullptr, static_cast<Index>(scores.size())};
  std::uint32_t low = order_key(kLowest);  // at least k candidates reach it
  bool all_highest = false;
  while (candidates.count > kFew && k < candidates.count / 4) {
    const auto [threshold, is_highest] = guess_threshold(candidates, k);
    // More than k scores seem to equal the highest: no threshold narrows them down, and the first k are the result.
    all_highest = is_highest && threshold == highest({candidates.scores, static_cast<std::size_t>(candidates.count)});
    if (all_highest) {
      low = order_key(threshold);
      break;
    }
    if (kept_scores.size() < static_cast<std::size_t>(candidates.count) + kSlack) {
      // The scores are resized last: their size is the capacity of both, even after a failed allocation.
      kept_indices.resize(static_cast<std::size_t>(candidates.count) + kSlack);
      kept_scores.resize(kept_indices.size());
    }
    // The first pass leaves its input unchanged; a later one works in place, so it must not find fewer than k.
    if (candidates.indices != nullptr &&
        HWY_DYNAMIC_DISPATCH(CountFrom)(candidates.scores, candidates.count, threshold) < k)
      break;
    const Index count = HWY_DYNAMIC_DISPATCH(CollectFrom)(candidates.scores, candidates.indices, candidates.count,
                                                          threshold, kept_scores.data(), kept_indices.data());
    if (count < k) break;
    const bool narrowed = count < candidates.count / 2;
    candidates = {kept_scores.data(), kept_indices.data(), count};
    low = order_key(threshold);
    if (!narrowed) break;
  }

  Cut cut{low, k, 0};
  if (!all_highest) cut = find_cut(candidates.scores, candidates.count, k, k, low);
  const std::size_t before = selected.size();
  selected.resize(before + static_cast<std::size_t>(std::min(k, candidates.count)) + kSlack);
  const auto take = [&](Index ties, Index most) {
    return HWY_DYNAMIC_DISPATCH(TakeAbove)(candidates.scores, candidates.indices, candidates.count,
                                           score_of_key(cut.low), ties, most, selected.data() + before);
  };
  Index taken = 0;
  if (all_highest) {
    taken = take(k, k);
    // Fewer than k equal the highest after all: find the cut without a guess.
    if (taken < k) {
      cut = find_cut(candidates.scores, candidates.count, k, k, order_key(kLowest));
      all_highest = false;
    }
  }
  // If at most k are at or above the cut, all of them are taken.
  if (!all_highest) taken = take(cut.reaching <= k ? cut.reaching : k - cut.above, std::min(k, cut.reaching));
  selected.resize(before + static_cast<std::size_t>(taken));
}

}  // namespace reticle
#endif
