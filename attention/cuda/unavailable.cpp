// What stands in for the GPU in a build without a CUDA toolkit.
#include <span>
#include <string>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/backward.hpp>
#include <reticle/core/base/error.hpp>

namespace reticle::cuda {
namespace {

[[noreturn]] void refuse() { throw DeviceError(std::string("CUDA: ") + why_unavailable()); }

/// Arguments are checked as where there is a GPU, so that what is wrong with them is said first.
[[noreturn]] void refuse(const AttentionInputs& inputs) {
  inputs.validate_on(Device::Kind::cuda);
  refuse();
}

}  // namespace

AttentionPlan::AttentionPlan(const AttentionInputs& inputs, const Mask&, Stream, const AttentionOptions&,
                             const Context&) {
  refuse(inputs);
}
AttentionPlan::AttentionPlan(const AttentionInputs& inputs, const DevicePattern&, Stream, const AttentionOptions&) {
  refuse(inputs);
}
void AttentionPlan::run(const AttentionInputs& inputs, void*, float*, Stream) const { refuse(inputs); }
bool AttentionPlan::uses_tiles() const { refuse(); }
Index AttentionPlan::bytes() const { refuse(); }
KeyListAttention::KeyListAttention(Index, Stream) { refuse(); }
void KeyListAttention::run(const AttentionInputs& inputs, const KeyLists&, void*, float*, Stream,
                           const AttentionOptions&) const {
  refuse(inputs);
}
SparseDecoder::SparseDecoder(Index rows, Index most_keys, Stream stream)
    : chooser_(rows, most_keys, stream), attention_(rows, stream) {}
void SparseDecoder::run(const AttentionInputs& inputs, std::span<const Rule>, void*, float*, Stream,
                        const AttentionOptions&, std::int32_t*) const {
  refuse(inputs);
}
BackwardPlan::BackwardPlan(const AttentionInputs& inputs, const Mask&, Stream, const AttentionOptions&,
                           const Context&) {
  refuse(inputs);
}
BackwardPlan::BackwardPlan(const AttentionInputs& inputs, const DevicePattern&, Stream, const AttentionOptions&) {
  refuse(inputs);
}
bool BackwardPlan::serves_patterns(const AttentionInputs& inputs) { refuse(inputs); }
bool BackwardPlan::uses_tiles() const { refuse(); }
void BackwardPlan::run(const AttentionInputs& inputs, const TensorView&, const float*, const TensorView&, float*,
                       float*, float*, Stream) const {
  refuse(inputs);
}

}  // namespace reticle::cuda
