// Row selectors: which positions of one row of scores to keep. Every selector appends its choice in ascending order, is
// exact, gives ties to the lower index, and never selects a position whose score is NaN or -infinity; setting a score
// to -infinity is how a position is excluded.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/random.hpp>
#include <reticle/core/base/types.hpp>
#include <reticle/core/mask/run.hpp>

namespace reticle {

/// The highest score, ignoring NaN; -infinity if there is none.
RETICLE_API float highest(std::span<const float> scores);

/// The k highest scores; all selectable ones when there are fewer. O(n).
RETICLE_API void top_k(std::span<const float> scores, Index k, std::vector<std::int32_t>& selected);

/// The highest scores whose softmax mass over the selectable positions first exceeds `p`: the smallest such set. p < 0
/// selects nothing, p = 0 the highest score, p >= 1 everything selectable. O(n).
RETICLE_API void top_p(std::span<const float> scores, double p, std::vector<std::int32_t>& selected);

/// Scores at or above `threshold`.
RETICLE_API void above_threshold(std::span<const float> scores, float threshold, std::vector<std::int32_t>& selected);

/// The number of samples at a rate in (0, 1] from n candidates: rate * n rounded to nearest, but at least one if n > 0.
RETICLE_HD inline Index sample_size(double rate, Index n) {
  const auto nearest = static_cast<Index>(std::floor(rate * static_cast<double>(n) + 0.5));
  return nearest > n ? n : nearest < 1 && n > 0 ? 1 : nearest;
}

/// m of the numbers [0, n), every set of m equally likely (Floyd's algorithm: Bentley and Floyd 1987). m is clamped to
/// [0, n]. O(m + n / 64).
RETICLE_API void sample_without_replacement(Index n, Index m, Philox& random, std::vector<std::int32_t>& selected);

/// The distinct numbers among m independent uniform draws from [0, n).
RETICLE_API void sample_with_replacement(Index n, Index m, Philox& random, std::vector<std::int32_t>& selected);

/// Sets the scores of the runs' positions to -infinity.
RETICLE_API void exclude(std::span<const Run> runs, std::span<float> scores);

/// The positions of [0, end) outside ascending runs, from which samplers draw.
class RETICLE_API Gaps {
 public:
  Gaps(std::span<const Run> runs, Index end);
  Index size() const { return size_; }
  /// Turns ascending ranks among the gaps into positions, in place.
  void to_positions(std::span<std::int32_t> ascending_ranks) const;
  /// Removes from ascending positions those outside the gaps.
  void keep_positions(std::vector<std::int32_t>& ascending) const;

 private:
  std::vector<Interval> gaps_;
  Index size_ = 0;
};

}  // namespace reticle
