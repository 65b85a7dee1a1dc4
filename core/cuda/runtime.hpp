// The GPU as the rest of the library sees it: memory and errors. In a build without a CUDA toolkit, unavailable.cpp
// replaces the implementation.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle::cuda {

/// The caller's cudaStream_t; null is the default stream. Functions here wait for a stream only if they say so.
using Stream = void*;

/// Number of GPUs: 0 without a driver, or in a build without CUDA.
RETICLE_API int device_count();
/// Why device_count() is 0, for messages.
RETICLE_API const char* why_unavailable();

/// Copies of bytes, queued on the stream. To the device: the host memory may be changed as soon as the function
/// returns. To the host: waits for the stream. Third: within the device.
RETICLE_API void copy_to_device(void* device, const void* host, std::size_t bytes, Stream stream);
RETICLE_API void copy_to_host(void* host, const void* device, std::size_t bytes, Stream stream);
RETICLE_API void copy_on_device(void* to, const void* from, std::size_t bytes, Stream stream);

/// Device memory, allocated from the stream's pool and returned to it in the stream's order. Movable; a moved-from
/// buffer is empty.
class RETICLE_API Buffer {
 public:
  Buffer() = default;
  /// Uninitialised. DeviceError when there is not enough memory.
  Buffer(std::size_t bytes, Stream stream);
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();  // NOLINT(performance-trivially-destructible): not trivial in builds with CUDA

  /// A copy of host memory, which may be changed as soon as this returns: waits for the earlier work of the stream.
  template <class T>
  static Buffer copy_of(std::span<const T> host, Stream stream) {
    Buffer buffer(host.size_bytes(), stream);
    buffer.copy_from(host.data(), stream);
    return buffer;
  }
  static Buffer zeros(std::size_t bytes, Stream stream);

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }
  /// Copies of bytes() bytes with copy_to_device, copy_to_host and copy_on_device.
  void copy_from(const void* host, Stream stream) { copy_to_device(data_, host, bytes_, stream); }
  void copy_to(void* host, Stream stream) const { copy_to_host(host, data_, bytes_, stream); }
  void copy_on_device(const void* from, Stream stream) { cuda::copy_on_device(data_, from, bytes_, stream); }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(stream_, other.stream_);
  }

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Stream stream_ = nullptr;
};

/// The current device's number.
RETICLE_API int current_device();
/// Number of multiprocessors of the current device.
RETICLE_API int multiprocessors();
/// Compute capability of the current device, as 90 for 9.0.
RETICLE_API int compute_capability();

}  // namespace reticle::cuda
