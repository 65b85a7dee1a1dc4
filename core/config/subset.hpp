// Subset: some of the layers or heads of a model, as a list of numbers and ranges: [0, "4-7", "16-"].
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// Numbers first, first + 1, ... last. In JSON a number, "first-last", or "first-" where there is no last.
struct RETICLE_API IndexRange {
  static constexpr Index kNoLast = std::numeric_limits<Index>::max();
  Index first = 0, last = kNoLast;

  /// "4-7" or "16-"; nothing for any other text.
  static std::optional<IndexRange> parse(std::string_view text);
  std::string text() const;
};

/// All of them unless ranges are given.
struct RETICLE_API Subset {
  std::vector<IndexRange> ranges;

  bool all() const { return ranges.empty(); }
  bool contains(Index index) const;
  /// Whether some index is in both.
  bool meets(const Subset& other) const;
};

}  // namespace reticle
