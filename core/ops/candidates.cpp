#include <algorithm>
#include <cstdint>
#include <vector>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/ops/candidates.hpp>

namespace reticle {

Gaps candidates_of(const AttentionInputs& inputs, RowId row, std::span<const Run> chosen, Index first, Index last) {
  const std::vector<Run> forbidden = forbidden_keys(inputs, row);
  std::vector<Run> outside, unavailable, taken;
  if (first > 0) outside.push_back({0, static_cast<std::int32_t>(std::min(first, inputs.keys_length())), 1.0f});
  combine_rows<row_op::Max>(outside, forbidden, [&](Run run) { unavailable.push_back(run); });
  combine_rows<row_op::Max>(unavailable, chosen, [&](Run run) { taken.push_back(run); });
  return {taken, std::max<Index>(0, std::min(last, inputs.visible_keys(row.query)))};
}

}  // namespace reticle
