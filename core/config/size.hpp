// Size: a number of keys, as a count or as a fraction of the key length.
#pragma once

#include <reticle/core/base/types.hpp>

namespace reticle {

/// A JSON integer is a count of keys, a JSON real a fraction of them: 1 is one key, 1.0 is all of them.
class Size {
 public:
  constexpr Size(int count) : count_(count) {}    // NOLINT(google-explicit-constructor): reads like a number
  constexpr Size(Index count) : count_(count) {}  // NOLINT(google-explicit-constructor)
  constexpr Size(double fraction) : fraction_(fraction), is_fraction_(true) {}  // NOLINT(google-explicit-constructor)

  constexpr bool is_fraction() const { return is_fraction_; }
  constexpr Index count() const { return count_; }
  constexpr double fraction() const { return fraction_; }
  constexpr bool positive() const { return is_fraction_ ? fraction_ > 0 : count_ > 0; }

  /// The number of keys out of `keys`. A fraction is multiplied in double and truncated (0.29 of 100 is 28), but a
  /// positive fraction of at least one key gives at least one.
  constexpr Index resolve(Index keys) const {
    if (!is_fraction_) return count_;
    const auto resolved = static_cast<Index>(fraction_ * static_cast<double>(keys));
    return resolved == 0 && fraction_ > 0 && keys > 0 ? 1 : resolved;
  }
  constexpr bool operator==(const Size&) const = default;

 private:
  Index count_ = 0;
  double fraction_ = 0;
  bool is_fraction_ = false;
};

}  // namespace reticle
