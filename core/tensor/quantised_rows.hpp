// Keys and values as codes of 8 or 4 bits: one row per token and head, each with its own scales, so that rows can be
// gathered, appended, evicted and copied one by one.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>

#include <reticle/core/base/types.hpp>

namespace reticle {

/// Channels of the longest row. A dot product of it with a query in 16 bits still fits into 32 bits.
inline constexpr Index kMaxQuantisedWidth = 1024;

/// The largest absolute value of a code times its group's multiplier.
inline constexpr int kMaxQuantised = 128 * 32;

/// A row of d channels in groups of 32, the last padded with zeros. Channel c is scale * multiplier of its group * code
/// of c, so that a row is one scale times integers of 13 bits:
///   codes        32 (q8) or 16 (q4) bytes a group. q8: -128 to 127. q4: -8 to 7, stored plus 8; byte i of a group
///   holds
///                channel i in its low half and channel i + 16 in its high half
///   multipliers  1 byte a group, of either sign: at most 32 (q8) or 127 (q4), so that groups of small channels beside
///                large ones keep their digits
///   scale        F32; NaN if the row held NaN or infinity
/// That is 8.5 and 4.5 bits per channel for d = 128. A group's largest magnitude has the lowest code, which has no
/// positive counterpart: with a multiplier of the other sign no code is left unused.
template <DType kDType>
struct QuantisedLayout {
  static_assert(is_quantised(kDType));
  static constexpr Index kGroupBytes = kDType == DType::q8 ? kQuantisedGroup : kQuantisedGroup / 2;

  explicit constexpr QuantisedLayout(Index width) : groups((width + kQuantisedGroup - 1) / kQuantisedGroup) {}

  /// Channels, padded to whole groups.
  constexpr Index width() const { return groups * kQuantisedGroup; }
  /// Bytes from the row's start to its multipliers, and to its scale.
  constexpr Index multipliers() const { return groups * kGroupBytes; }
  constexpr Index scale_at() const { return groups * (kGroupBytes + 1); }

  float scale(const std::int8_t* row) const {
    float value;
    std::memcpy(&value, row + scale_at(), sizeof(value));
    return value;
  }
  /// The code of a channel times its multiplier.
  int channel(const std::int8_t* row, Index i) const {
    const Index group = i / kQuantisedGroup, in_group = i % kQuantisedGroup, half = kQuantisedGroup / 2;
    if constexpr (kDType == DType::q8) return row[i] * row[multipliers() + group];
    const auto byte = static_cast<std::uint8_t>(row[group * kGroupBytes + in_group % half]);
    return ((in_group < half ? byte & 15 : byte >> 4) - 8) * row[multipliers() + group];
  }

  Index groups;
};

/// Calls body(layout) with the QuantisedLayout of a quantised dtype.
template <class Body>
decltype(auto) dispatch_quantised(DType dtype, Index width, Body&& body) {
  if (dtype == DType::q8) return body(QuantisedLayout<DType::q8>(width));
  return body(QuantisedLayout<DType::q4>(width));
}

/// Writes row_bytes(dtype, row.size()) bytes at `to`: every channel is rounded to the nearest multiple of its group's
/// step, which is 1/128 (q8) or 1/8 (q4) of the group's largest magnitude, or up to 1/4096 or 1/1016 of the row's
/// largest more.
RETICLE_API void quantise_row(std::span<const float> row, DType dtype, std::byte* to);

/// to[i] = factor * channel i.
RETICLE_API void dequantise_row(const std::byte* row, DType dtype, float factor, std::span<float> to);

}  // namespace reticle
