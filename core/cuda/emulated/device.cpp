#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime.h>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string_view>
#include <sys/mman.h>
#include <utility>
#include <vector>

#include <reticle/core/cuda/emulated/device.hpp>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace reticle::cuda::emulated {
namespace {

/// Device memory: addresses that the host cannot read unless a kernel or a copy is running.
class Memory {
 public:
  Memory() {
    void* const mapped = mmap(nullptr, kReservedBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<unsigned char*>(mapped);
    free_[0] = kReservedBytes;
    forbid(begin_, kReservedBytes);
  }

  /// Null when no memory is left. Blocks are kGuardBytes apart, so that an overrun does not reach another block.
  void* allocate(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    const std::size_t wanted = (bytes + kGuardBytes + kAlignment - 1) / kAlignment * kAlignment;
    const auto found = std::find_if(free_.begin(), free_.end(), [&](const auto& gap) { return gap.second >= wanted; });
    if (found == free_.end()) return nullptr;
    const auto [at, size] = *found;
    free_.erase(found);
    if (size > wanted) free_[at + wanted] = size - wanted;
    used_[at] = {wanted, bytes};
    end_ = std::max(end_, at + wanted);
    allow(begin_ + at, bytes);
    return begin_ + at;
  }

  bool release(void* memory) {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(static_cast<std::size_t>(static_cast<unsigned char*>(memory) - begin_));
    if (found == used_.end()) return false;
    std::size_t at = found->first, size = found->second.first;
    forbid(begin_ + at, size);
    used_.erase(found);
    const auto next = free_.lower_bound(at);
    if (next != free_.end() && next->first == at + size) {
      size += next->second;
      free_.erase(next);
    }
    const auto after = free_.lower_bound(at);
    if (after != free_.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second == at) {
        before->second += size;
        return true;
      }
    }
    free_[at] = size;
    return true;
  }

  bool holds(const void* address) const {
    const auto* const at = static_cast<const unsigned char*>(address);
    return at >= begin_ && at < begin_ + kReservedBytes;
  }

  /// Makes device memory accessible while something runs on the device.
  void open() {
    const std::lock_guard lock(mutex_);
    if (open_++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  void close() {
    const std::lock_guard lock(mutex_);
    if (--open_ == 0) protect(PROT_NONE);
  }

 private:
  static constexpr std::size_t kReservedBytes = std::size_t{1} << 36, kAlignment = 256, kGuardBytes = 256, kPage = 4096;

  void protect(int how) {
    const std::size_t bytes = (end_ + kPage - 1) / kPage * kPage;
    if (bytes > 0 && mprotect(begin_, bytes, how) != 0) throw std::bad_alloc();
  }
#if defined(__SANITIZE_ADDRESS__)
  static void forbid(void* at, std::size_t bytes) { ASAN_POISON_MEMORY_REGION(at, std::min(bytes, kPage << 12)); }
  static void allow(void* at, std::size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(at, bytes); }
#else
  static void forbid(void*, std::size_t) {}
  static void allow(void*, std::size_t) {}
#endif

  std::mutex mutex_;
  unsigned char* begin_ = nullptr;
  std::size_t end_ = 0;  // end of the highest block ever allocated
  int open_ = 0;
  std::map<std::size_t, std::size_t> free_;                          // begin -> bytes
  std::map<std::size_t, std::pair<std::size_t, std::size_t>> used_;  // begin -> bytes taken, bytes asked for
};

/// Leaked on purpose: buffers may outlive static destruction.
Memory& memory() {
  static auto* const made = new Memory;
  return *made;
}

/// While this object lives, its thread may access device memory.
class OnDevice {
 public:
  OnDevice() { memory().open(); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { memory().close(); }
};

/// Work that is waiting, by stream.
struct Streams {
  std::mutex mutex;
  std::map<Stream, std::deque<std::function<void()>>> waiting;
};

Streams& streams() {
  static auto* const made = new Streams;
  return *made;
}

bool runs_late() {
  static const bool late = [] {
    const char* const how = std::getenv("RETICLE_EMULATED_STREAMS");
    return how != nullptr && std::string_view(how) == "late";
  }();
  return late;
}

/// Runs the work of the stream, including work that is enqueued meanwhile.
void finish(Stream stream) {
  for (;;) {
    std::function<void()> work;
    {
      const std::lock_guard lock(streams().mutex);
      auto& queue = streams().waiting[stream];
      if (queue.empty()) return;
      work = std::move(queue.front());
      queue.pop_front();
    }
    const OnDevice here;
    work();
  }
}

thread_local cudaError_t last = cudaSuccess;

cudaError_t refuse(cudaError_t error) { return last = error; }

/// Whether tests of the bindings pass tensors in host memory that claim to be on a GPU.
bool takes_host_tensors() {
  static const bool takes = [] {
    const char* const how = std::getenv("RETICLE_EMULATED_HOST_TENSORS");
    return how != nullptr && std::string_view(how) == "1";
  }();
  return takes;
}

/// The compute capability: 90, unless RETICLE_EMULATED_CAPABILITY is set.
int capability() {
  const char* const asked = std::getenv("RETICLE_EMULATED_CAPABILITY");
  return asked == nullptr ? 90 : std::atoi(asked);
}

}  // namespace

void enqueue(Stream stream, std::function<void()> work) {
  {
    const std::lock_guard lock(streams().mutex);
    streams().waiting[stream].push_back(std::move(work));
  }
  if (!runs_late()) finish(stream);
}

}  // namespace reticle::cuda::emulated

using namespace reticle::cuda::emulated;  // NOLINT: what follows are C functions

extern "C" {

// NOLINTBEGIN: names and signatures are those of the CUDA runtime.
RETICLE_API cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

RETICLE_API cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

RETICLE_API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = capability() / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = capability() % 10;
      return cudaSuccess;
  }
  return refuse(cudaErrorInvalidValue);
}

RETICLE_API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = nullptr;
  return cudaSuccess;
}

RETICLE_API cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }

RETICLE_API cudaError_t cudaMallocAsync(void** to, std::size_t bytes, cudaStream_t) {
  *to = memory().allocate(bytes);
  if (*to == nullptr) return refuse(cudaErrorMemoryAllocation);
  const OnDevice here;
  std::memset(*to, 0xFF, bytes);  // NaN, so that reading uninitialised memory is noticed
  return cudaSuccess;
}

RETICLE_API cudaError_t cudaFreeAsync(void* given, cudaStream_t stream) {
  if (given == nullptr) return cudaSuccess;
  if (!memory().holds(given)) return refuse(cudaErrorInvalidValue);
  enqueue(stream, [given] { memory().release(given); });
  return cudaSuccess;
}

RETICLE_API cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                                          std::size_t width, std::size_t height, cudaMemcpyKind kind,
                                          cudaStream_t stream) {
  const bool to_device = kind != cudaMemcpyDeviceToHost, from_device = kind != cudaMemcpyHostToDevice;
  const bool strict = !takes_host_tensors();
  if (strict && (memory().holds(to) != to_device || memory().holds(from) != from_device))
    return refuse(cudaErrorInvalidValue);
  // Host memory is copied now, since the caller may change or free it before the stream reaches this work.
  std::shared_ptr<std::vector<unsigned char>> held;
  if (!from_device) {
    held = std::make_shared<std::vector<unsigned char>>(width * height);
    for (std::size_t row = 0; row < height; ++row)
      std::memcpy(held->data() + row * width, static_cast<const unsigned char*>(from) + row * from_pitch, width);
  }
  enqueue(stream, [=] {
    const auto* const source = held ? held->data() : static_cast<const unsigned char*>(from);
    const std::size_t pitch = held ? width : from_pitch;
    for (std::size_t row = 0; row < height; ++row)
      std::memcpy(static_cast<unsigned char*>(to) + row * to_pitch, source + row * pitch, width);
  });
  return cudaSuccess;
}

RETICLE_API cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                                        cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

RETICLE_API cudaError_t cudaMemsetAsync(void* given, int value, std::size_t bytes, cudaStream_t stream) {
  if (!memory().holds(given)) return refuse(cudaErrorInvalidValue);
  enqueue(stream, [=] { std::memset(given, value, bytes); });
  return cudaSuccess;
}

RETICLE_API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  finish(stream);
  return cudaSuccess;
}

RETICLE_API cudaError_t cudaGetLastError() { return std::exchange(last, cudaSuccess); }

RETICLE_API const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
  }
  return "unknown error";
}
// NOLINTEND

}  // extern "C"
