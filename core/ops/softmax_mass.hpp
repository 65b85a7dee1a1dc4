// Softmax masses as integers, whose sums do not depend on the order of addition, so that every device and any number of
// threads cuts a row at the same key.
#pragma once

#include <bit>
#include <cstdint>
#include <span>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>
#include <reticle/core/ops/order_key.hpp>

namespace reticle {

/// exp(score - highest) for up to `count` scores, in units so small that their sum just fits into 63 bits. Computed
/// with operations that every machine rounds alike (kernels that use it are compiled without contraction) instead of a
/// library's exp.
class MassScale {
 public:
  /// `largest`: the order key of the highest score, not 0.
  RETICLE_HD MassScale(std::uint32_t largest, Index count)
      : largest_(largest),
        highest_(static_cast<double>(score_of_key(largest))),
        one_(std::uint64_t{1} << (62 - std::bit_width(static_cast<std::uint64_t>(count)))) {}

  /// The mass of an order key other than 0. The highest score may be +infinity: its mass is 1 and every finite one's is
  /// 0.
  RETICLE_HD std::uint64_t of(std::uint32_t key) const {
    if (key == largest_) return one_;
    const double x = (static_cast<double>(score_of_key(key)) - highest_) * 1.4426950408889634;
    if (!(x > -62)) return 0;
    const int whole = static_cast<int>(x - 0.5);  // to nearest
    const double r = (x - whole) * 0.6931471805599453;
    // The Taylor series of exp, summed in two halves; its error of at most 1.3e-7 is about that of a float.
    const double r2 = r * r;
    const double low = 1.0 + r + r2 * (0.5 + r * (1.0 / 6)), high = 1.0 / 24 + r * (1.0 / 120) + r2 * (1.0 / 720);
    const double sum = low + r2 * r2 * high;
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(sum * static_cast<double>(one_))) >> -whole;
  }

  /// The mass as a number: 1 for the highest score.
  RETICLE_HD double weight(std::uint32_t key) const { return as_number(of(key)); }
  RETICLE_HD double as_number(std::uint64_t mass) const {
    return static_cast<double>(static_cast<std::int64_t>(mass)) / static_cast<double>(one_);
  }

  double highest() const { return highest_; }
  std::uint64_t one() const { return one_; }

 private:
  std::uint32_t largest_;
  double highest_;
  std::uint64_t one_;
};

/// The mass of each score, 0 for -infinity and NaN; `to` holds as many elements as `scores`.
RETICLE_API void masses(const MassScale& scale, std::span<const float> scores, std::uint64_t* to);

/// The mass that a sum must exceed to be more than `share` (0 to 1) of `total`.
RETICLE_HD inline std::uint64_t share_of(double share, std::uint64_t total) {
  return static_cast<std::uint64_t>(share * static_cast<double>(total));
}

/// The digits of order keys, most significant first, for finding a cut digit by digit.
struct CutDigit {
  int shift, bits;
};
inline constexpr int kCutDigits = 3;
RETICLE_HD constexpr CutDigit cut_digit(int i) {
  return i == 0 ? CutDigit{21, 11} : i == 1 ? CutDigit{10, 11} : CutDigit{0, 10};
}
inline constexpr int kCutBins = 2048;

}  // namespace reticle
