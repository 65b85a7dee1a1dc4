// What stands in for the GPU in a build without a CUDA toolkit.
#include <span>
#include <string>

#include <reticle/core/base/error.hpp>
#include <reticle/core/cuda/choose.hpp>
#include <reticle/core/cuda/mask.hpp>
#include <reticle/core/cuda/mask_block.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/cuda/scores.hpp>
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
void Buffer::copy_from(const void*, Stream) { refuse(); }
void Buffer::copy_to(void*, Stream) const { refuse(); }
int multiprocessors() { refuse(); }
int compute_capability() { refuse(); }
void top_k(const float*, Index, Index, Index, std::int32_t*, std::int32_t*, Stream) { refuse(); }

void dot_scores(const AttentionInputs& inputs, float*, Stream) {
  inputs.validate_on(Device::Kind::cuda);
  refuse();
}

KeyChooser::KeyChooser(Index, Index, Stream) { refuse(); }
void KeyChooser::reset() const { refuse(); }
KeyLists KeyChooser::choose(const AttentionInputs&, std::span<const Rule>, Stream, std::int32_t*) const { refuse(); }

struct DeviceMask::State {};
DeviceMask::DeviceMask(const Mask&, Stream) { refuse(); }
const MaskShape& DeviceMask::shape() const { refuse(); }
bool DeviceMask::is_bits() const { refuse(); }
bool DeviceMask::weighted() const { refuse(); }
Index DeviceMask::list_size() const { refuse(); }
Index DeviceMask::bytes() const { refuse(); }
Index DeviceMask::nnz(Stream) const { refuse(); }
Mask DeviceMask::to_host(Stream) const { refuse(); }
const std::uint64_t* DeviceMask::words() const { refuse(); }
ColumnLists DeviceMask::lists() const { refuse(); }
DeviceMask DeviceMask::as_bits(Stream) const { refuse(); }
DeviceMask DeviceMask::as_lists(Stream) const { refuse(); }
DeviceMask merge(const DeviceMask&, const DeviceMask&, MergeRule, Stream) { refuse(); }
DeviceMask intersect(const DeviceMask&, const DeviceMask&, Stream) { refuse(); }
DeviceMask subtract(const DeviceMask&, const DeviceMask&, Stream) { refuse(); }

}  // namespace reticle::cuda
