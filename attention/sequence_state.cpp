#include <numeric>
#include <string>

#include <reticle/attention/cuda/sequence.hpp>
#include <reticle/attention/sequence_state.hpp>
#include <reticle/core/base/error.hpp>

namespace reticle {

void StageRecord::add(double entries_of_call, double visible_to_it) {
  entries += entries_of_call;
  visible += visible_to_it;
  sparsity.push_back(visible_to_it > 0 ? 1 - entries_of_call / visible_to_it : 0);
}

double StageRecord::mean_sparsity() const {
  return sparsity.empty()
             ? 0
             : std::accumulate(sparsity.begin(), sparsity.end(), 0.0) / static_cast<double>(sparsity.size());
}

double StageRecord::density() const { return visible > 0 ? entries / visible : 1; }

void StageRecord::merge(const StageRecord& other) {
  sparsity.insert(sparsity.end(), other.sparsity.begin(), other.sparsity.end());
  masks.insert(masks.end(), other.masks.begin(), other.masks.end());
  entries += other.entries;
  visible += other.visible;
}

SequenceState::Lease::Lease(const SequenceState& state) : leased_(state.leased_.value) {
  if (leased_.exchange(true))
    throw ValueError(
        "this state is in use by another call: a masker must not touch the state that it is called with, "
        "and every thread needs a state of its own");
}

SequenceState::Lease::~Lease() { leased_ = false; }

cuda::DeviceSequence& SequenceState::on_gpu() {
  if (on_gpu_ == nullptr) on_gpu_ = std::make_shared<cuda::DeviceSequence>();
  return *on_gpu_;
}

void SequenceState::reset() {
  const Lease lease(*this);
  layers_.clear();
  records_ = {};
  if (on_gpu_ != nullptr) on_gpu_->reset();
}

void SequenceState::truncate(Index keys) {
  const Lease lease(*this);
  if (keys < 0) throw ValueError("truncate: " + std::to_string(keys) + " keys; expected 0 or more");
  for (auto& [index, layer] : layers_) layer.truncate(keys);
  if (on_gpu_ != nullptr) on_gpu_->truncate(keys);
}

void SequenceState::select(std::span<const Index> rows) {
  const Lease lease(*this);
  for (const Index row : rows) {
    if (row < 0) throw ValueError("select: row " + std::to_string(row) + "; expected rows of the batch, from 0");
  }
  for (auto& [index, layer] : layers_) layer.select(rows);
  if (on_gpu_ != nullptr) on_gpu_->select();
}

SequenceState SequenceState::fork() const {
  const Lease lease(*this);
  SequenceState copy(recording_);
  for (const auto& [index, layer] : layers_) copy.layers_[index] = layer.fork();
  return copy;
}

}  // namespace reticle
