#include <algorithm>
#include <cmath>

#include <reticle/core/ops/quantise.hpp>

namespace reticle {

void fake_quantise(std::span<float> values, Index bits) {
  if (values.empty()) return;
  const auto [least, largest] = std::minmax_element(values.begin(), values.end());
  const float low = *least, range = *largest - *least;
  const auto levels = static_cast<float>((1 << bits) - 1);
  const float scale = levels / (range == 0 ? 1.0f : range);
  for (float& value : values) value = std::clamp(std::nearbyint((value - low) * scale), 0.0f, levels) / scale + low;
}

}  // namespace reticle
