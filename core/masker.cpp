#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/masker.hpp>

namespace reticle {

Masker::Masker() {
  static std::atomic<std::uint64_t> next{0};
  id_ = next.fetch_add(1);
}

Masker::~Masker() = default;

void Masker::observe(const AttentionInputs&, LayerState&, const Context&) const {}

std::vector<Rule> Masker::rules(Index, int) const { return {}; }

Index Masker::observed_queries() const { return 0; }

bool Masker::samples() const { return false; }
bool Masker::selects_by_query() const { return false; }

bool Masker::forgets() const { return false; }

Mask Masker::lasting(const AttentionInputs& inputs, Index, LayerState&, const Context&) const {
  return Mask::full(inputs.one_query());
}

CannotFollow::~CannotFollow() = default;

std::string LayerState::name_of(const Masker& owner) { return owner.type(); }

void LayerState::refuse(const Kept& kept, const std::string& why) {
  throw ValueError("masker \"" + kept.masker + "\" cannot follow its sequence: " + why +
                   "; reset the state and start from the prompt");
}

namespace {

constexpr const char* kDoesNotFollow = "what it keeps has no truncate(keys) and select(rows)";

}  // namespace

void LayerState::truncate(Index keys) {
  for (auto& [id, kept] : values_) {
    if (kept.operations == nullptr) refuse(kept, kDoesNotFollow);
    try {
      kept.operations->truncate(kept.value.get(), keys);
    } catch (const CannotFollow& error) {
      refuse(kept, error.what());
    }
  }
}

void LayerState::select(std::span<const Index> rows) {
  for (auto& [id, kept] : values_) {
    if (kept.operations == nullptr) refuse(kept, kDoesNotFollow);
    try {
      kept.operations->select(kept.value.get(), rows);
    } catch (const CannotFollow& error) {
      refuse(kept, error.what());
    }
  }
}

LayerState LayerState::fork() const {
  LayerState copy;
  for (const auto& [id, kept] : values_) {
    if (kept.operations == nullptr) refuse(kept, kDoesNotFollow);
    copy.values_[id] = {kept.operations->copy(kept.value.get()), kept.type, kept.operations, kept.masker};
  }
  return copy;
}

}  // namespace reticle
