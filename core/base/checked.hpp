// Sizes are computed in 64 bits, and overflow is an error rather than a wrong allocation.
#pragma once

#include <initializer_list>
#include <limits>
#include <string>

#include <reticle/core/base/error.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// Product of non-negative extents; ShapeError when one is negative or the product exceeds 2^63 - 1.
inline Index checked_product(std::initializer_list<Index> extents, std::string_view what) {
  Index product = 1;
  for (const Index extent : extents) {
    if (extent < 0) throw ShapeError(std::string(what) + ": extent " + std::to_string(extent) + " is negative");
    if (__builtin_mul_overflow(product, extent, &product))
      throw ShapeError(std::string(what) + ": more than 2^63 - 1 elements");
  }
  return product;
}

inline constexpr Index kMaxColumns = std::numeric_limits<std::int32_t>::max();

}  // namespace reticle
