#include <atomic>

#include <reticle/core/masker.hpp>

namespace reticle {

Masker::Masker() {
  static std::atomic<std::uint64_t> next{0};
  id_ = next.fetch_add(1);
}

Masker::~Masker() = default;

void Masker::observe(const AttentionInputs&, LayerState&, const Context&) const {}

std::vector<Rule> Masker::rules(Index, int) const { return {}; }

}  // namespace reticle
