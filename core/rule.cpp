#include <algorithm>

#include <reticle/core/rule.hpp>

namespace reticle {

std::optional<Index> entries_of(std::span<const Rule> rules, Index keys) {
  Index chosen = 0;
  bool sinks = false, window = false, others = false;
  for (const Rule& rule : rules) {
    Index added = 0;
    switch (rule.kind) {
      case Rule::Kind::sinks:
      case Rule::Kind::window: {
        bool& met = rule.kind == Rule::Kind::sinks ? sinks : window;
        if (met || others || rule.dilation > 1) return std::nullopt;
        met = true;
        added = rule.count;
        break;
      }
      case Rule::Kind::top_k:
      case Rule::Kind::hashed:
        added = rule.count;
        others = true;
        break;
      case Rule::Kind::sample: {
        const Index candidates = keys - chosen;
        added = std::min(candidates,
                         std::max<Index>(1, static_cast<Index>(rule.share * static_cast<double>(candidates) + 0.5)));
        others = true;
        break;
      }
      default:
        return std::nullopt;
    }
    chosen = std::min(keys, chosen + added);
  }
  return chosen;
}

}  // namespace reticle
