#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include <reticle/attention/layers/rope.hpp>
#include <reticle/core/base/error.hpp>

namespace reticle {

Rope::Rope(Index head_dim, double theta, const std::optional<RopeScaling>& scaling) {
  const auto positive = [](double value, const std::string& name) {
    if (!(value > 0 && value < 1e18))
      throw ValueError("rope: " + name + " is " + std::to_string(value) + "; expected a finite number > 0");
  };
  if (head_dim <= 0 || head_dim % 2 != 0)
    throw ValueError("rope: head_dim is " + std::to_string(head_dim) + "; expected an even number > 0");
  positive(theta, "theta");
  // Computed in float, operation by operation, as in the models' training code: at position 100 000 a frequency that is
  // rounded differently changes the angle by 0.01.
  const auto base = static_cast<float>(theta), width = static_cast<float>(head_dim);
  for (Index i = 0; i < head_dim / 2; ++i)
    inverse_frequencies_.push_back(1.0f / std::pow(base, static_cast<float>(2 * i) / width));
  if (!scaling) return;
  positive(scaling->factor, "scaling factor");
  const auto factor = static_cast<float>(scaling->factor), low = static_cast<float>(scaling->low_freq_factor),
             high = static_cast<float>(scaling->high_freq_factor),
             original = static_cast<float>(scaling->original_max_position_embeddings);
  if (scaling->type == RopeScaling::Type::linear) {
    for (float& frequency : inverse_frequencies_) frequency /= factor;
    return;
  }
  positive(scaling->low_freq_factor, "low_freq_factor");
  positive(static_cast<double>(original), "original_max_position_embeddings");
  if (!(high > low)) throw ValueError("rope: high_freq_factor must be above low_freq_factor");
  for (float& frequency : inverse_frequencies_) {
    // Short wavelengths stay, long ones are stretched, and those between are interpolated.
    const float wavelength = 2 * std::numbers::pi_v<float> / frequency;
    if (wavelength > original / low) {
      frequency /= factor;
    } else if (wavelength >= original / high) {
      const float smooth = (original / wavelength - low) / (high - low);
      frequency = (1 - smooth) * frequency / factor + smooth * frequency;
    }
  }
}

RopeTable::RopeTable(std::span<const float> inverse_frequencies, std::span<const Index> positions)
    : rows_(static_cast<Index>(positions.size())), half_(static_cast<Index>(inverse_frequencies.size())) {
  cosines_.reserve(positions.size() * inverse_frequencies.size());
  sines_.reserve(cosines_.capacity());
  for (const Index position : positions) {
    for (const float frequency : inverse_frequencies) {
      const float angle = static_cast<float>(position) * frequency;
      cosines_.push_back(std::cos(angle));
      sines_.push_back(std::sin(angle));
    }
  }
}

void require_offsets(std::span<const Index> cu_seqlens, Index tokens, std::string_view name) {
  if (cu_seqlens.empty() || cu_seqlens.front() != 0 || cu_seqlens.back() != tokens ||
      !std::is_sorted(cu_seqlens.begin(), cu_seqlens.end()))
    throw ShapeError(std::string(name) + ": expected ascending offsets from 0 to the number of tokens, " +
                     std::to_string(tokens));
}

std::vector<Index> packed_positions(std::span<const Index> cu_seqlens, Index stride) {
  std::vector<Index> positions;
  for (std::size_t i = 1; i < cu_seqlens.size(); ++i) {
    for (Index t = 0; t < cu_seqlens[i] - cu_seqlens[i - 1]; ++t) positions.push_back(t * stride);
  }
  return positions;
}

void RopeTable::apply(std::span<float> x, float direction) const {
  const auto half = static_cast<std::size_t>(half_), rows = static_cast<std::size_t>(rows_);
  if (rows == 0 ? !x.empty() : x.size() % (rows * 2 * half) != 0)
    throw ValueError("rope: " + std::to_string(x.size()) + " elements are not (" + std::to_string(rows) + ", heads, " +
                     std::to_string(2 * half) + ")");
  const std::size_t heads = rows == 0 ? 0 : x.size() / (rows * 2 * half);
  float* head = x.data();
  for (std::size_t row = 0; row < rows; ++row) {
    const float* cosines = cosines_.data() + row * half;
    const float* sines = sines_.data() + row * half;
    for (std::size_t h = 0; h < heads; ++h, head += 2 * half) {
      for (std::size_t i = 0; i < half; ++i) {
        const float a = head[i], b = head[half + i], sine = direction * sines[i];
        head[i] = a * cosines[i] - b * sine;
        head[half + i] = b * cosines[i] + a * sine;
      }
    }
  }
}

}  // namespace reticle
