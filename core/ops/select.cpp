#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include <reticle/core/base/checked.hpp>
#include <reticle/core/ops/order_key.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle {
namespace {

/// Where the selection ends: everything with a key above `key`, and the first `ties` of those equal to it.
struct Cut {
  std::uint32_t key = 0;
  Index ties = 0;
};

/// The smallest prefix of the keys in descending order whose summed weight exceeds `target`, by radix descent: sum the
/// weights per value of the leading digit, find the digit in which the target is passed, go on within it. Three digits
/// of 11, 11 and 10 bits; keys of 0 never count. O(n), whatever the distribution.
template <class Sum, class Weight>
Cut find_cut(std::span<const std::uint32_t> keys, Sum target, Weight&& weight) {
  thread_local std::vector<std::uint32_t> within;
  std::span<const std::uint32_t> candidates = keys;
  Sum passed{};
  std::uint32_t prefix = 0;
  for (const auto& [shift, bits] : {std::pair{21, 11}, std::pair{10, 11}, std::pair{0, 10}}) {
    const std::uint32_t digits = 1u << bits;
    Sum sums[2048] = {};
    for (const std::uint32_t key : candidates) {
      if (key != 0) sums[(key >> shift) & (digits - 1)] += weight(key);
    }
    std::uint32_t digit = digits;
    bool found = false;
    while (digit-- > 0) {
      if (sums[digit] == Sum{}) continue;
      if (passed + sums[digit] > target) {
        found = true;
        break;
      }
      passed += sums[digit];
    }
    if (!found)
      return {prefix, std::numeric_limits<Index>::max()};  // the target is never passed: take all that is left
    prefix |= digit << shift;
    if (shift == 0) break;
    std::vector<std::uint32_t> next;
    for (const std::uint32_t key : candidates) {
      if (((key ^ prefix) >> shift) == 0) next.push_back(key);
    }
    within = std::move(next);
    candidates = within;
  }
  return {prefix, static_cast<Index>((target - passed) / weight(prefix)) + 1};
}

void keys_of(std::span<const float> scores, std::vector<std::uint32_t>& keys) {
  keys.resize(scores.size());
  std::transform(scores.begin(), scores.end(), keys.begin(), order_key);
}

void take(std::span<const std::uint32_t> keys, Cut cut, std::vector<std::int32_t>& selected) {
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (keys[i] > cut.key) {
      selected.push_back(static_cast<std::int32_t>(i));
    } else if (keys[i] == cut.key && keys[i] != 0 && cut.ties > 0) {
      selected.push_back(static_cast<std::int32_t>(i));
      --cut.ties;
    }
  }
}

/// Calls draw(bitmap) to mark some of [0, n) and appends what is marked.
template <class Draw>
void collect(Index n, std::vector<std::int32_t>& selected, Draw&& draw) {
  thread_local std::vector<std::uint64_t> marked;
  marked.assign(static_cast<std::size_t>((n + 63) / 64), 0);
  draw(marked);
  for (std::size_t w = 0; w < marked.size(); ++w) {
    for (std::uint64_t word = marked[w]; word != 0; word &= word - 1)
      selected.push_back(static_cast<std::int32_t>(w * 64 + static_cast<std::size_t>(std::countr_zero(word))));
  }
}

}  // namespace

void top_p(std::span<const float> scores, double p, std::vector<std::int32_t>& selected) {
  if (!(p >= 0)) return;
  thread_local std::vector<std::uint32_t> keys;
  keys_of(scores, keys);
  std::uint32_t largest = 0;
  for (const std::uint32_t key : keys) largest = std::max(largest, key);
  if (largest == 0) return;
  if (p >= 1) return take(keys, {0, 0}, selected);
  const float max = score_of_key(largest);
  // Relative to the highest score, which may be +infinity: its weight is 1 and every finite one's is 0.
  const auto weight = [&](std::uint32_t key) {
    return key == largest ? 1.0 : static_cast<double>(std::exp(score_of_key(key) - max));
  };
  double total = 0;
  for (const std::uint32_t key : keys) {
    if (key != 0) total += weight(key);
  }
  take(keys, find_cut<double>(keys, p * total, weight), selected);
}

void above_threshold(std::span<const float> scores, float threshold, std::vector<std::int32_t>& selected) {
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] >= threshold && scores[i] > -std::numeric_limits<float>::infinity())
      selected.push_back(static_cast<std::int32_t>(i));
  }
}

void sample_without_replacement(Index n, Index m, Philox& random, std::vector<std::int32_t>& selected) {
  if (n > kMaxColumns)
    throw ShapeError("sampling: " + std::to_string(n) + " positions; at most 2^31 - 1 can be addressed");
  m = std::clamp<Index>(m, 0, n);
  const bool inverse = m > n / 2;  // draw what to leave out
  const Index drawn = inverse ? n - m : m;
  collect(n, selected, [&](std::vector<std::uint64_t>& marked) {
    const auto mark = [&](Index i) {
      std::uint64_t& word = marked[static_cast<std::size_t>(i / 64)];
      const std::uint64_t bit = std::uint64_t{1} << (i % 64);
      const bool fresh = (word & bit) == 0;
      word |= bit;
      return fresh;
    };
    for (Index last = n - drawn; last < n; ++last) {
      if (!mark(random.below(static_cast<std::uint32_t>(last) + 1))) mark(last);
    }
    if (inverse) {
      for (std::uint64_t& word : marked) word = ~word;
      if (n % 64 != 0) marked.back() &= (std::uint64_t{1} << (n % 64)) - 1;
    }
  });
}

void sample_with_replacement(Index n, Index m, Philox& random, std::vector<std::int32_t>& selected) {
  if (n > kMaxColumns)
    throw ShapeError("sampling: " + std::to_string(n) + " positions; at most 2^31 - 1 can be addressed");
  if (n <= 0) return;
  collect(n, selected, [&](std::vector<std::uint64_t>& marked) {
    for (Index draw = 0; draw < m; ++draw) {
      const std::uint32_t i = random.below(static_cast<std::uint32_t>(n));
      marked[i / 64] |= std::uint64_t{1} << (i % 64);
    }
  });
}

void exclude(std::span<const Run> runs, std::span<float> scores) {
  for (const Run& run : runs) {
    const auto end = std::min(scores.size(), static_cast<std::size_t>(run.end));
    for (auto i = static_cast<std::size_t>(run.begin); i < end; ++i)
      scores[i] = -std::numeric_limits<float>::infinity();
  }
}

Gaps::Gaps(std::span<const Run> runs, Index end) {
  Index at = 0;
  const auto add = [&](Index gap_end) {
    gap_end = std::min(gap_end, end);
    if (at >= gap_end) return;
    gaps_.push_back({static_cast<std::int32_t>(at), static_cast<std::int32_t>(gap_end)});
    size_ += gap_end - at;
  };
  for (const Run& run : runs) {
    add(run.begin);
    at = run.end;
  }
  add(end);
}

void Gaps::to_positions(std::span<std::int32_t> ascending_ranks) const {
  std::size_t gap = 0;
  std::int32_t before = 0;  // ranks in the gaps before this one
  for (std::int32_t& rank : ascending_ranks) {
    while (rank - before >= gaps_[gap].end - gaps_[gap].begin) {
      before += gaps_[gap].end - gaps_[gap].begin;
      ++gap;
    }
    rank = gaps_[gap].begin + (rank - before);
  }
}

}  // namespace reticle
