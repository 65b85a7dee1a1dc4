// What stands in for the GPU in a build without a CUDA toolkit.
#include <reticle/attention/nsa/cuda/block_scores.hpp>
#include <reticle/core/base/error.hpp>

namespace reticle::cuda {

bool block_scores_serve(const AttentionInputs&, const NsaConfig&) { return false; }
void block_scores(const AttentionInputs&, Index, const NsaConfig&, const float*, Index, float*, Stream) {
  throw DeviceError(std::string("CUDA: ") + why_unavailable());
}

}  // namespace reticle::cuda
