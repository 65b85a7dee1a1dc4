// What stands in for the GPU in a build without a CUDA toolkit.
#include <reticle/core/base/error.hpp>
#include <reticle/core/cuda/choose.hpp>
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
void top_k(const float*, Index, Index, Index, std::int32_t*, std::int32_t*, Stream) { refuse(); }

void dot_scores(const AttentionInputs&, float*, Stream) { refuse(); }

KeyChooser::KeyChooser(Index, Index, Stream) { refuse(); }
void KeyChooser::reset() const { refuse(); }
KeyLists KeyChooser::choose(const AttentionInputs&, std::span<const Rule>, Stream, std::int32_t*) const { refuse(); }

}  // namespace reticle::cuda
