// The emulated device as launches see it, and its memory. See cuda_runtime.h beside this.
#pragma once

#include <cstddef>
#include <cstring>
#include <functional>
#include <new>

#include <reticle/core/base/export.hpp>
#include <reticle/core/cuda/runtime.hpp>

namespace reticle::cuda::emulated {

/// Runs `work`, which may touch device memory, in the stream's order: at once, or, where RETICLE_EMULATED_STREAMS is
/// "late", when somebody waits for the stream, so that what is read without waiting is not there yet.
RETICLE_API void enqueue(Stream stream, std::function<void()> work);

/// Shared memory of one block. What it holds at first is nothing: bytes that make NaN of floats.
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
