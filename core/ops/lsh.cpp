// Compares a query's codes with every key's in vectors, for each row of a mask; bound by the bandwidth of the codes.
#include <algorithm>
#include <cstring>

#include <reticle/core/base/random.hpp>
#include <reticle/core/ops/lsh.hpp>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/lsh.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Whether at least `least` of the `tables` codes, each of type Code, are equal.
template <class Code>
bool ShareCodes(const std::uint8_t* HWY_RESTRICT a, const std::uint8_t* HWY_RESTRICT b, Index tables, Index least) {
  Index found = 0, table = 0;
  const auto compare = [&](auto tag) {
    const auto lanes = static_cast<Index>(hn::Lanes(tag));
    for (; table + lanes <= tables && found < least; table += lanes) {
      const auto* left = reinterpret_cast<const Code*>(a) + table;
      const auto* right = reinterpret_cast<const Code*>(b) + table;
      found += static_cast<Index>(hn::CountTrue(tag, hn::Eq(hn::LoadU(tag, left), hn::LoadU(tag, right))));
    }
  };
  compare(hn::ScalableTag<Code>());
  compare(hn::CappedTag<Code, 16 / sizeof(Code)>());
  for (; table < tables && found < least; ++table) {
    constexpr Index kSize = sizeof(Code);
    found += std::memcmp(a + table * kSize, b + table * kSize, kSize) == 0 ? 1 : 0;
  }
  return found >= least;
}

bool ShareWideCodes(const std::uint8_t* a, const std::uint8_t* b, Index tables, Index code_bytes, Index least) {
  Index found = 0;
  for (; tables > 0 && found < least; --tables, a += code_bytes, b += code_bytes)
    found += std::equal(a, a + code_bytes, b) ? 1 : 0;
  return found >= least;
}

void Collisions(const std::uint8_t* code, const std::uint8_t* codes, Index count, const LshRecipe& recipe,
                std::vector<std::int32_t>& found) {
  const Index tables = recipe.tables, bytes = recipe.code_bytes(), least = recipe.min_collisions;
  const auto scan = [&](auto&& share) {
    for (Index key = 0; key < count; ++key, codes += tables * bytes) {
      if (share(codes)) found.push_back(static_cast<std::int32_t>(key));
    }
  };
  if (bytes == 1)
    return scan([&](const std::uint8_t* key) { return ShareCodes<std::uint8_t>(code, key, tables, least); });
  if (bytes == 2)
    return scan([&](const std::uint8_t* key) { return ShareCodes<std::uint16_t>(code, key, tables, least); });
  scan([&](const std::uint8_t* key) { return ShareWideCodes(code, key, tables, bytes, least); });
}

void PositiveBits(const float* values, Index count, std::uint8_t* bits) {
  const hn::CappedTag<float, 8> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  Index i = 0;
  for (; i + 8 <= count; i += 8, ++bits) {
    *bits = 0;
    for (Index from = 0; from < 8; from += lanes) {
      std::uint8_t part[8] = {};
      hn::StoreMaskBits(tag, hn::Gt(hn::LoadU(tag, values + i + from), hn::Zero(tag)), part);
      *bits |= static_cast<std::uint8_t>(part[0] << from);
    }
  }
  if (i == count) return;
  *bits = 0;
  for (Index rest = i; rest < count; ++rest)
    *bits |= static_cast<std::uint8_t>((values[rest] > 0 ? 1 : 0) << (rest - i));
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle {

HWY_EXPORT(Collisions);
HWY_EXPORT(PositiveBits);

void collisions(const std::uint8_t* code, const std::uint8_t* codes, Index count, const LshRecipe& recipe,
                std::vector<std::int32_t>& found) {
  HWY_DYNAMIC_DISPATCH(Collisions)(code, codes, count, recipe, found);
}

void positive_bits(const float* values, Index count, std::uint8_t* bits) {
  HWY_DYNAMIC_DISPATCH(PositiveBits)(values, count, bits);
}

std::vector<float> LshRecipe::projections(Index head_dim, int layer) const {
  std::vector<float> vectors(static_cast<std::size_t>(tables * bits * width(head_dim)));
  Philox random(seed, static_cast<std::uint32_t>(layer), 0, 0, 0);
  for (float& x : vectors) x = random.normal();
  return vectors;
}

}  // namespace reticle
#endif
