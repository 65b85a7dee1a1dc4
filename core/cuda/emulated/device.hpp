// The emulated device for launches: its streams and shared memory. See cuda_runtime.h in this folder.
#pragma once

#include <cstddef>
#include <cstring>
#include <functional>
#include <new>

#include <reticle/core/base/export.hpp>
#include <reticle/core/cuda/runtime.hpp>

namespace reticle::cuda::emulated {

/// Runs `work`, which may access device memory, in the stream's order: immediately, or, if RETICLE_EMULATED_STREAMS is
/// "late", when something waits for the stream, so that reading a result without waiting finds old data.
RETICLE_API void enqueue(Stream stream, std::function<void()> work);

/// Shared memory of one block, initialised with bytes that are NaN as floats.
template <class T>
class SharedMemory {
 public:
  SharedMemory() : memory_(::operator new(sizeof(T), std::align_val_t{alignof(T)})) {
    std::memset(memory_, 0xFF, sizeof(T));
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() { ::operator delete(memory_, std::align_val_t{alignof(T)}); }
  T& operator*() const { return *static_cast<T*>(memory_); }

 private:
  void* memory_;
};

}  // namespace reticle::cuda::emulated
