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
      throw ValueError("rope: " + name + " is " + std::to_string(value) + "; needed is a finite number > 0");
  };
  if (head_dim <= 0 || head_dim % 2 != 0)
    throw ValueError("rope: head_dim is " + std::to_string(head_dim) + "; needed is an even number > 0");
  positive(theta, "theta");
  for (Index i = 0; i < head_dim / 2; ++i)
    inverse_frequencies_.push_back(
        static_cast<float>(std::pow(theta, -2 * static_cast<double>(i) / static_cast<double>(head_dim))));
  if (!scaling) return;
  positive(scaling->factor, "scaling factor");
  for (float& stored : inverse_frequencies_) {
    const auto frequency = static_cast<double>(stored);
    double scaled = frequency / scaling->factor;
    if (scaling->type == RopeScaling::Type::llama3) {
      const double low = scaling->low_freq_factor, high = scaling->high_freq_factor;
      positive(low, "low_freq_factor");
      if (!(high > low)) throw ValueError("rope: high_freq_factor must be above low_freq_factor");
      const auto original = static_cast<double>(scaling->original_max_position_embeddings);
      positive(original, "original_max_position_embeddings");
      // Short waves stay, long ones are stretched, those between go from one to the other.
      const double turns = original * frequency / (2 * std::numbers::pi);
      const double smooth = std::clamp((turns - low) / (high - low), 0.0, 1.0);
      scaled = (1 - smooth) * scaled + smooth * frequency;
    }
    stored = static_cast<float>(scaled);
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
