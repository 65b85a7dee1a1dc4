#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include <reticle/core/base/did_you_mean.hpp>

namespace reticle {
namespace {

/// Levenshtein distance, computed with one row of the table.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

/// The edit distance, except that a name which continues the given text is at distance 1.
std::size_t distance_of(std::string_view given, std::string_view name) {
  constexpr std::size_t kMinPrefix = 3;
  const bool is_prefix = given.size() >= kMinPrefix && name.starts_with(given);
  return is_prefix ? 1 : edit_distance(given, name);
}

}  // namespace

std::string did_you_mean(std::string_view given, std::span<const std::string_view> known) {
  constexpr std::size_t kMaxLength = 256;  // bounds the edit distance, whose time is quadratic
  if (given.size() > kMaxLength) return {};
  std::string_view best;
  std::size_t least = given.size() / 2 + 1;
  for (const std::string_view name : known) {
    const std::size_t distance = distance_of(given, name);
    if (distance < least) {
      least = distance;
      best = name;
    }
  }
  return best.empty() ? std::string() : "; did you mean \"" + std::string(best) + "\"?";
}

}  // namespace reticle
