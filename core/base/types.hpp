// Scalar types: Index for every count and position, DType, Device, and the two 16-bit storage formats.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <string_view>

#include <reticle/core/base/export.hpp>

namespace reticle {

using Index = std::int64_t;

/// q8 and q4 are rows of codes that share scales (core/tensor/quantised_rows.hpp): keys and values in half and a
/// quarter of the bytes of 16-bit floats.
enum class DType : std::uint8_t { f32, f16, bf16, f64, i64, i32, i16, i8, u64, u32, u16, u8, boolean, q8, q4 };

constexpr bool is_quantised(DType dtype) { return dtype == DType::q8 || dtype == DType::q4; }

/// Bytes of one element. A quantised tensor is addressed by the byte, and its rows as a whole.
constexpr Index size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
    case DType::u64:
      return 8;
    case DType::f32:
    case DType::i32:
    case DType::u32:
      return 4;
    case DType::f16:
    case DType::bf16:
    case DType::i16:
    case DType::u16:
      return 2;
    case DType::i8:
    case DType::u8:
    case DType::boolean:
    case DType::q8:
    case DType::q4:
      return 1;
  }
  return 0;
}

/// Channels of a quantised row that share a multiplier.
inline constexpr Index kQuantisedGroup = 32;

/// Bytes of `width` elements that are stored one after the other.
constexpr Index row_bytes(DType dtype, Index width) {
  if (!is_quantised(dtype)) return width * size_of(dtype);
  const Index groups = (width + kQuantisedGroup - 1) / kQuantisedGroup;
  const Index codes = dtype == DType::q8 ? kQuantisedGroup : kQuantisedGroup / 2;
  return groups * (codes + 1) + static_cast<Index>(sizeof(float));
}

/// The name that safetensors and error messages use: "F32", "BF16", ...
RETICLE_API std::string_view name_of(DType dtype);

struct RETICLE_API Device {
  enum class Kind : std::uint8_t { cpu, cuda };
  Kind kind = Kind::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
  /// "the CPU" or "GPU 0", for messages.
  std::string describe() const;
};

/// IEEE binary16 as stored. Arithmetic is done in float.
struct Half {
  std::uint16_t bits = 0;
};

/// The upper half of a binary32 as stored. Arithmetic is done in float.
struct BFloat16 {
  std::uint16_t bits = 0;
};

RETICLE_HD constexpr float to_float(float x) { return x; }
RETICLE_HD constexpr float to_float(double x) { return static_cast<float>(x); }
RETICLE_HD constexpr float to_float(BFloat16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}
RETICLE_HD constexpr float to_float(Half x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return std::bit_cast<float>(sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13));
  if (magnitude < 0x0400u) {  // zero and subnormals: an integer number of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

/// Round to nearest, ties to even; NaN stays NaN, overflow becomes infinity.
template <class T>
RETICLE_HD constexpr T from_float(float x);

template <>
RETICLE_HD constexpr float from_float<float>(float x) {
  return x;
}
template <>
RETICLE_HD constexpr double from_float<double>(float x) {
  return x;
}
template <>
RETICLE_HD constexpr BFloat16 from_float<BFloat16>(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
RETICLE_HD constexpr Half from_float<Half>(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {static_cast<std::uint16_t>(sign | 0x7E00u)};
  if (magnitude >= 0x477FF000u) return {static_cast<std::uint16_t>(sign | 0x7C00u)};  // >= 65520 rounds to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the last bit with 2^-24 and rounds
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(aligned) - 0x3F000000u))};
  }
  const std::uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return {static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

template <class T>
inline constexpr DType dtype_of = DType::u8;
template <>
inline constexpr DType dtype_of<float> = DType::f32;
template <>
inline constexpr DType dtype_of<Half> = DType::f16;
template <>
inline constexpr DType dtype_of<BFloat16> = DType::bf16;
template <>
inline constexpr DType dtype_of<double> = DType::f64;
template <>
inline constexpr DType dtype_of<std::int64_t> = DType::i64;
template <>
inline constexpr DType dtype_of<std::int32_t> = DType::i32;
template <>
inline constexpr DType dtype_of<std::int16_t> = DType::i16;
template <>
inline constexpr DType dtype_of<std::uint64_t> = DType::u64;

}  // namespace reticle
