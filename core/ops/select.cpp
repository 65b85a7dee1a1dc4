#include <algorithm>
#include <bit>
#include <limits>
#include <string>

#include <reticle/core/base/checked.hpp>
#include <reticle/core/base/thread_scratch.hpp>
#include <reticle/core/ops/order_key.hpp>
#include <reticle/core/ops/select.hpp>
#include <reticle/core/ops/softmax_mass.hpp>

namespace reticle {
namespace {

/// The end of a selection: it takes everything with a key above `key`, and the first `ties` of those equal to it.
struct Cut {
  std::uint32_t key = 0;
  Index ties = 0;
};

struct Candidate {
  std::uint32_t key;  // not 0
  std::uint64_t mass;
};

/// The smallest prefix of the keys in descending order whose mass exceeds `target`, by radix descent: sum the masses
/// per value of the leading digit, find the digit in which the target is passed, and continue within it. O(n), whatever
/// the distribution.
Cut find_cut(std::vector<Candidate>& candidates, std::uint64_t target) {
  std::uint64_t passed = 0;
  std::uint32_t prefix = 0;
  for (int i = 0; i < kCutDigits; ++i) {
    const auto [shift, bits] = cut_digit(i);
    const std::uint32_t digits = 1u << bits;
    std::uint64_t sums[kCutBins] = {};
    for (const Candidate& candidate : candidates) sums[(candidate.key >> shift) & (digits - 1)] += candidate.mass;
    std::uint32_t digit = digits;
    while (digit > 0 && passed + sums[digit - 1] <= target) passed += sums[--digit];
    // Rounding: the target is never passed, so all that is left is taken.
    if (digit == 0) return {prefix, std::numeric_limits<Index>::max()};
    prefix |= (digit - 1) << shift;
    std::erase_if(candidates, [prefix, shift = shift](const Candidate& candidate) {
      return ((candidate.key ^ prefix) >> shift) != 0;
    });
  }
  return {prefix, static_cast<Index>((target - passed) / candidates[0].mass) + 1};
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
  static thread_local constinit ThreadScratch<std::vector<std::uint64_t>> scratch;
  std::vector<std::uint64_t>& marked = scratch.get();
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
  struct Scratch {
    std::vector<std::uint32_t> keys;
    std::vector<std::uint64_t> score_masses;
    std::vector<Candidate> candidates;
  };
  static thread_local constinit ThreadScratch<Scratch> scratch;
  auto& [keys, score_masses, candidates] = scratch.get();
  keys_of(scores, keys);
  std::uint32_t largest = 0;
  for (const std::uint32_t key : keys) largest = std::max(largest, key);
  if (largest == 0) return;
  if (p >= 1) return take(keys, {0, 0}, selected);
  const MassScale mass(largest, static_cast<Index>(keys.size()));
  score_masses.resize(scores.size());
  masses(mass, scores, score_masses.data());
  candidates.clear();
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (keys[i] != 0) total += candidates.emplace_back(Candidate{keys[i], score_masses[i]}).mass;
  }
  take(keys, find_cut(candidates, share_of(p, total)), selected);
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
  const bool inverse = m > n / 2;  // draws the numbers to leave out
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

void Gaps::keep_positions(std::vector<std::int32_t>& ascending) const {
  auto gap = gaps_.begin();
  std::erase_if(ascending, [&](std::int32_t position) {
    while (gap != gaps_.end() && gap->end <= position) ++gap;
    return gap == gaps_.end() || position < gap->begin;
  });
}

}  // namespace reticle
