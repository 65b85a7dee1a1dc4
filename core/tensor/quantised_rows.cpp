#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <reticle/core/tensor/quantised_rows.hpp>

namespace reticle {
namespace {

/// Rows whose entries are all smaller become zero: their scale would lose its digits.
constexpr float kMinMagnitude = 1e-30f;

int round_to_int(float x) { return static_cast<int>(x + (x < 0 ? -0.5f : 0.5f)); }

/// The entry of the largest magnitude.
float extreme(std::span<const float> group) {
  float found = 0;
  for (const float x : group) found = std::abs(x) > std::abs(found) ? x : found;
  return found;
}

/// How a dtype divides the range of a group: the magnitude of the lowest code, and the largest multiplier.
struct Steps {
  int lowest_code, max_multiplier;
};
constexpr Steps steps_of(DType dtype) { return dtype == DType::q8 ? Steps{128, 32} : Steps{8, 127}; }

/// The smallest multiplier whose step reaches a group's extreme.
int multiplier_of(float extreme, float scale, Steps steps) {
  const float wanted = std::abs(extreme) / (scale * static_cast<float>(steps.lowest_code));
  return std::clamp(static_cast<int>(std::ceil(wanted * (1 - 1e-6f))), 1, steps.max_multiplier);
}

/// The scale that rounds the groups' steps up least. The row's largest group gets the multiplier `top`, and the others
/// whole multiples of the same scale: the sum of squared steps is what the error grows with.
float best_scale(std::span<const float> extremes, float largest, Steps steps) {
  float best = 0, least = std::numeric_limits<float>::infinity();
  for (int top = steps.max_multiplier * 3 / 4; top <= steps.max_multiplier; ++top) {
    const float scale = largest / static_cast<float>(steps.lowest_code * top);
    float squares = 0;
    for (const float extreme : extremes) {
      const float step = static_cast<float>(multiplier_of(extreme, scale, steps)) / static_cast<float>(top);
      squares += step * step;
    }
    if (squares < least) {
      least = squares;
      best = scale;
    }
  }
  return best;
}

}  // namespace

void quantise_row(std::span<const float> row, DType dtype, std::byte* to) {
  const Steps steps = steps_of(dtype);
  dispatch_quantised(dtype, static_cast<Index>(row.size()), [&]<DType kDType>(QuantisedLayout<kDType> layout) {
    const auto group_of = [&](Index g) {
      const auto begin = static_cast<std::size_t>(g * kQuantisedGroup);
      return row.subspan(begin, std::min(row.size() - begin, static_cast<std::size_t>(kQuantisedGroup)));
    };
    std::array<float, static_cast<std::size_t>(kMaxQuantisedWidth / kQuantisedGroup)> extremes;
    float largest = 0;
    for (Index g = 0; g < layout.groups; ++g) {
      const float found = extremes[static_cast<std::size_t>(g)] = extreme(group_of(g));
      largest = std::max(largest, std::abs(found));
    }
    const bool finite = std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); });
    const bool zero = !finite || largest < kMinMagnitude;
    float scale = 0;
    if (!finite) scale = std::numeric_limits<float>::quiet_NaN();
    if (!zero) scale = best_scale({extremes.data(), static_cast<std::size_t>(layout.groups)}, largest, steps);
    auto* const bytes = reinterpret_cast<std::int8_t*>(to);
    std::memcpy(bytes + layout.scale_at(), &scale, sizeof(scale));
    for (Index g = 0; g < layout.groups; ++g) {
      const std::span<const float> group = group_of(g);
      const float largest_of_group = extremes[static_cast<std::size_t>(g)];
      int multiplier = zero ? 1 : multiplier_of(largest_of_group, scale, steps);
      if (largest_of_group > 0) multiplier = -multiplier;
      bytes[layout.multipliers() + g] = static_cast<std::int8_t>(multiplier);
      const float inverse = zero ? 0 : 1 / (scale * static_cast<float>(multiplier));
      int codes[kQuantisedGroup] = {};
      for (std::size_t i = 0; !zero && i < group.size(); ++i)
        codes[i] = std::clamp(round_to_int(group[i] * inverse), -steps.lowest_code, steps.lowest_code - 1);
      std::int8_t* const stored = bytes + g * layout.kGroupBytes;
      for (Index i = 0; i < layout.kGroupBytes; ++i)
        stored[i] = static_cast<std::int8_t>(
            kDType == DType::q8 ? codes[i] : (codes[i] + 8) | ((codes[i + kQuantisedGroup / 2] + 8) << 4));
    }
  });
}

void dequantise_row(const std::byte* row, DType dtype, float factor, std::span<float> to) {
  const auto* const bytes = reinterpret_cast<const std::int8_t*>(row);
  dispatch_quantised(dtype, static_cast<Index>(to.size()), [&](auto layout) {
    const float scale = factor * layout.scale(bytes);
    for (std::size_t i = 0; i < to.size(); ++i)
      to[i] = scale * static_cast<float>(layout.channel(bytes, static_cast<Index>(i)));
  });
}

}  // namespace reticle
