// Replaces the GPU code in a build without a CUDA toolkit.
#include <memory>
#include <span>
#include <string>

#include <reticle/core/base/error.hpp>
#include <reticle/core/cuda/choose.hpp>
#include <reticle/core/cuda/mask.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/cuda/scores.hpp>
#include <reticle/core/cuda/tensor.hpp>
#include <reticle/core/cuda/top_k.hpp>

namespace reticle::cuda {

int device_count() { return 0; }
const char* why_unavailable() { return "this build has no CUDA (configure with RETICLE_CUDA=ON)"; }

namespace {

[[noreturn]] void refuse() { throw DeviceError(std::string("CUDA: ") + why_unavailable()); }

}  // namespace

Buffer::Buffer(std::size_t, Stream) { refuse(); }
Buffer::~Buffer() = default;
Buffer Buffer::zeros(std::size_t, Stream) { refuse(); }
void copy_to_device(void*, const void*, std::size_t, Stream) { refuse(); }
void copy_to_host(void*, const void*, std::size_t, Stream) { refuse(); }
void copy_on_device(void*, const void*, std::size_t, Stream) { refuse(); }
int current_device() { refuse(); }
int multiprocessors() { refuse(); }
int compute_capability() { refuse(); }
void top_k(const float*, Index, Index, Index, std::int32_t*, std::int32_t*, Stream) { refuse(); }

void dot_scores(const AttentionInputs& inputs, float*, Stream) {
  inputs.validate_on(Device::Kind::cuda);
  refuse();
}

KeyChooser::KeyChooser(Index, Index, Stream) { refuse(); }
void KeyChooser::reset() const { refuse(); }
KeyLists KeyChooser::choose(const AttentionInputs&, std::span<const Rule>, Stream, std::int32_t*,
                            const AttentionInputs*) const {
  refuse();
}

Mask mask_of_lists(const MaskShape&, const KeyLists&, Stream) { refuse(); }
Index entries_of_lists(const KeyLists&, Index, Stream) { refuse(); }
Tensor empty_tensor(DType, std::span<const Index>, Stream) { refuse(); }
void pack_rows(const TensorView&, Index, void*, Stream) { refuse(); }
Tensor packed_rows(const TensorView&, Index, Stream) { refuse(); }
Tensor as_bias(const TensorView&, Stream) { refuse(); }
FittedInputs::FittedInputs(const AttentionInputs& inputs, Stream) : stream_(nullptr) {
  inputs.validate_on(Device::Kind::cuda);
  refuse();
}
AttentionInputs FittedInputs::extents(const AttentionInputs& inputs) {
  inputs.validate_on(Device::Kind::cuda);
  refuse();
}
FittedResult::FittedResult(DType, const TensorView&, Index, void*, Stream) { refuse(); }
void FittedResult::finish() const { refuse(); }
FittedResult output_of(const AttentionInputs&, const FittedInputs&, void*, Stream) { refuse(); }
TensorView FittedInputs::fit(const TensorView&, Tensor&) const { refuse(); }

}  // namespace reticle::cuda

namespace reticle {

Tensor copy_to(const TensorView& tensor, Device device, const Context&) {
  if (tensor.device.kind == Device::Kind::cpu && device.kind == Device::Kind::cpu)
    return Tensor::copy(tensor, tensor.dtype);
  cuda::refuse();
}

std::shared_ptr<const DeviceStorage> store_on_gpu(const Mask&, const Context&) { cuda::refuse(); }

}  // namespace reticle
