// Replaces the GPU code in a build without a CUDA toolkit.
#include <string>

#include <reticle/attention/nsa/cuda/block_scores.hpp>
#include <reticle/core/base/error.hpp>

namespace reticle::cuda {

bool block_scores_serve(const AttentionInputs&, const NsaConfig&) { return false; }
void block_scores(const AttentionInputs& inputs, Index, const NsaConfig& config, const float*, Index, float*, Stream) {
  inputs.validate_on(Device::Kind::cuda);
  config.validate();
  throw DeviceError(std::string("CUDA: ") + why_unavailable());
}

}  // namespace reticle::cuda
