#include <algorithm>
#include <charconv>
#include <system_error>

#include <reticle/core/base/checked.hpp>
#include <reticle/core/config/subset.hpp>

namespace reticle {

std::optional<IndexRange> IndexRange::parse(std::string_view text) {
  IndexRange range;
  const char* const end = text.data() + text.size();
  const auto number = [end](const char* begin, Index& to) {
    auto read = std::from_chars(begin, end, to);
    if (to > kMaxColumns) read.ec = std::errc::result_out_of_range;
    return read;
  };
  const auto first = number(text.data(), range.first);
  if (first.ec != std::errc() || first.ptr == end || *first.ptr != '-') return std::nullopt;
  if (first.ptr + 1 == end) return range;
  const auto last = number(first.ptr + 1, range.last);
  if (last.ec != std::errc() || last.ptr != end || range.first < 0 || range.last < range.first) return std::nullopt;
  return range;
}

std::string IndexRange::text() const {
  return std::to_string(first) + "-" + (last == kNoLast ? "" : std::to_string(last));
}

bool Subset::contains(Index index) const {
  return all() || std::ranges::any_of(
                      ranges, [index](const IndexRange& range) { return range.first <= index && index <= range.last; });
}

bool Subset::meets(const Subset& other) const {
  if (all() || other.all()) return true;
  return std::ranges::any_of(ranges, [&other](const IndexRange& a) {
    return std::ranges::any_of(other.ranges,
                               [&a](const IndexRange& b) { return a.first <= b.last && b.first <= a.last; });
  });
}

}  // namespace reticle
