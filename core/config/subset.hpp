// Subset: a subset of a model's layers or heads, as a list of numbers and ranges: [0, "4-7", "16-"].
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// The numbers first, first + 1, ... last. In JSON a number, "first-last", or "first-" for a range without end.
struct RETICLE_API IndexRange {
  static constexpr Index kNoLast = std::numeric_limits<Index>::max();
  Index first = 0, last = kNoLast;

  /// Parses "4-7" or "16-"; nullopt for any other text.
  static std::optional<IndexRange> parse(std::string_view text);
  std::string text() const;
};

/// A set of indices; without ranges, all of them.
struct RETICLE_API Subset {
  std::vector<IndexRange> ranges;

  bool all() const { return ranges.empty(); }
  bool contains(Index index) const;
  /// True if the two subsets have an index in common.
  bool meets(const Subset& other) const;
};

}  // namespace reticle
