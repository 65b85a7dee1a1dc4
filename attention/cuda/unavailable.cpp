// What stands in for the GPU in a build without a CUDA toolkit.
#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/backward.hpp>
#include <reticle/core/base/error.hpp>

namespace reticle::cuda {

AttentionPlan::AttentionPlan(const AttentionInputs&, const Mask&, Stream, const AttentionOptions&, const Context&) {
  throw DeviceError(std::string("CUDA: ") + why_unavailable());
}
AttentionPlan::AttentionPlan(const AttentionInputs&, const DevicePattern&, Stream, const AttentionOptions&) {
  throw DeviceError(std::string("CUDA: ") + why_unavailable());
}
void AttentionPlan::run(const AttentionInputs&, void*, float*, Stream) const {
  throw DeviceError(std::string("CUDA: ") + why_unavailable());
}
bool AttentionPlan::uses_tiles() const { return false; }
Index AttentionPlan::bytes() const { return 0; }
KeyListAttention::KeyListAttention(Index, Stream) { throw DeviceError(std::string("CUDA: ") + why_unavailable()); }
void KeyListAttention::run(const AttentionInputs&, const KeyLists&, void*, float*, Stream,
                           const AttentionOptions&) const {
  throw DeviceError(std::string("CUDA: ") + why_unavailable());
}
SparseDecoder::SparseDecoder(Index rows, Index most_keys, Stream stream)
    : chooser_(rows, most_keys, stream), attention_(rows, stream) {}
void SparseDecoder::run(const AttentionInputs&, std::span<const Rule>, void*, float*, Stream, const AttentionOptions&,
                        std::int32_t*) const {
  throw DeviceError(std::string("CUDA: ") + why_unavailable());
}
BackwardPlan::BackwardPlan(const AttentionInputs&, const Mask&, Stream, const AttentionOptions&, const Context&) {
  throw DeviceError(std::string("CUDA: ") + why_unavailable());
}
BackwardPlan::BackwardPlan(const AttentionInputs&, const DevicePattern&, Stream, const AttentionOptions&) {
  throw DeviceError(std::string("CUDA: ") + why_unavailable());
}
bool BackwardPlan::serves_patterns(const AttentionInputs&) { return false; }
bool BackwardPlan::uses_tiles() const { return false; }
void BackwardPlan::run(const AttentionInputs&, const TensorView&, const float*, const TensorView&, float*, float*,
                       float*, Stream) const {
  throw DeviceError(std::string("CUDA: ") + why_unavailable());
}

}  // namespace reticle::cuda
