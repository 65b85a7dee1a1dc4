#include <cstdint>
#include <limits>

#include <reticle/core/cuda/check.cuh>
#include <reticle/core/cuda/runtime.hpp>

namespace reticle::cuda {
namespace {

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }

int attribute(cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, current_device()), "asking what the device has");
  return value;
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // clears the error: asking for devices may fail
  return 0;
}

const char* why_unavailable() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  return status == cudaSuccess ? "there is no GPU" : cudaGetErrorString(status);
}

namespace {

/// Keeps freed memory in the pool. By default it is returned at every synchronisation, and would be mapped again for
/// every plan.
void keep_freed_memory() {
  static const bool asked = [] {
    int device = 0;
    cudaMemPool_t pool{};
    std::uint64_t all = std::numeric_limits<std::uint64_t>::max();
    if (cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetDefaultMemPool(&pool, device) == cudaSuccess)
      cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all);
    cudaGetLastError();  // clears the error: without this setting allocation still works
    return true;
  }();
  static_cast<void>(asked);
}

}  // namespace

Buffer::Buffer(std::size_t bytes, Stream stream) : bytes_(bytes), stream_(stream) {
  keep_freed_memory();
  if (bytes > 0) check(cudaMallocAsync(&data_, bytes, native(stream)), "allocating device memory");
}

Buffer::~Buffer() {
  if (data_ != nullptr) cudaFreeAsync(data_, native(stream_));  // errors are ignored: at exit the driver may be gone
}

Buffer Buffer::zeros(std::size_t bytes, Stream stream) {
  Buffer buffer(bytes, stream);
  if (bytes > 0) check(cudaMemsetAsync(buffer.data_, 0, bytes, native(stream)), "clearing device memory");
  return buffer;
}

void copy_to_device(void* device, const void* host, std::size_t bytes, Stream stream) {
  if (bytes > 0)
    check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, native(stream)), "copying to the device");
}

void copy_to_host(void* host, const void* device, std::size_t bytes, Stream stream) {
  if (bytes > 0)
    check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, native(stream)), "copying from the device");
  check(cudaStreamSynchronize(native(stream)), "waiting for the device");
}

void copy_on_device(void* to, const void* from, std::size_t bytes, Stream stream) {
  if (bytes > 0)
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, native(stream)), "copying on the device");
}

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "asking for the device");
  return device;
}

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

int compute_capability() {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
}

}  // namespace reticle::cuda
