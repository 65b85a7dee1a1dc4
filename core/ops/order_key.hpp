// Maps scores to integers in the order of selection; one definition for CPU and GPU.
#pragma once

#include <bit>
#include <cstdint>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// A float's rank in the order of selection: a larger key is selected earlier, equal scores have equal keys (-0 is +0),
/// NaN and -infinity have key 0.
RETICLE_HD inline std::uint32_t order_key(float score) {
  const auto bits = std::bit_cast<std::uint32_t>(score + 0.0f);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u || bits == 0xFF800000u) {
    return 0;
  }
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// The score of a key other than 0.
RETICLE_HD inline float score_of_key(std::uint32_t key) {
  return std::bit_cast<float>((key & 0x80000000u) != 0 ? key ^ 0x80000000u : ~key);
}

}  // namespace reticle
