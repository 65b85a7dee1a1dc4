// Replaces the GPU code in a build without a CUDA toolkit.
#include <span>
#include <string>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/backward.hpp>
#include <reticle/core/base/error.hpp>

namespace reticle::cuda {
namespace {

[[noreturn]] void refuse() { throw DeviceError(std::string("CUDA: ") + why_unavailable()); }

/// Checks the arguments as a GPU build would, so that invalid arguments are reported before the missing GPU.
[[noreturn]] void refuse(const AttentionInputs& inputs) {
  inputs.validate_on(Device::Kind::cuda);
  refuse();
}

}  // namespace

DevicePlan::DevicePlan(const AttentionInputs& inputs, const Pattern&, Stream, const Context&) { refuse(inputs); }
void DevicePlan::run(const AttentionInputs& inputs, void*, float*, Stream, const AttentionOptions&) const {
  refuse(inputs);
}
bool DevicePlan::uses_tiles() const { refuse(); }
Index DevicePlan::bytes() const { refuse(); }
int DevicePlan::device() const { refuse(); }
KeyListAttention::KeyListAttention(Index, Stream) { refuse(); }
void KeyListAttention::run(const AttentionInputs& inputs, const KeyLists&, void*, float*, Stream,
                           const AttentionOptions&) const {
  refuse(inputs);
}
SparseDecoder::SparseDecoder(Index rows, Index most_keys, Stream stream)
    : chooser_(rows, most_keys, stream), attention_(rows, stream) {}
KeyLists SparseDecoder::run(const AttentionInputs& inputs, std::span<const Rule>, void*, float*, Stream,
                            const AttentionOptions&, std::int32_t*) const {
  refuse(inputs);
}
KeyLists SparseDecoder::choose(const AttentionInputs& inputs, std::span<const Rule>, Stream) const { refuse(inputs); }
void attend(const AttentionInputs& inputs, const Pattern&, const AttentionOptions&, const Context&, void*, float*) {
  refuse(inputs);
}
void attend(const AttentionInputs& inputs, const DevicePlan&, const AttentionOptions&, const Context&, void*, float*) {
  refuse(inputs);
}
DevicePlan plan_for(const AttentionInputs& inputs, const Pattern&, const Context&) { refuse(inputs); }
AttentionResult empty_result(const AttentionInputs& inputs, Stream) { refuse(inputs); }
void differentiate(const AttentionInputs& inputs, const Pattern&, const TensorView&, const TensorView&,
                   const TensorView&, const GradientMemory&, const AttentionOptions&, const Context&) {
  refuse(inputs);
}
BackwardPlan::BackwardPlan(const AttentionInputs& inputs, const Pattern&, Stream, const AttentionOptions&,
                           const Context&) {
  refuse(inputs);
}
bool BackwardPlan::serves(const AttentionInputs& inputs, const Pattern&) { refuse(inputs); }
bool BackwardPlan::uses_tiles() const { refuse(); }
void BackwardPlan::run(const AttentionInputs& inputs, const TensorView&, const float*, const TensorView&, float*,
                       float*, float*, Stream) const {
  refuse(inputs);
}

}  // namespace reticle::cuda
