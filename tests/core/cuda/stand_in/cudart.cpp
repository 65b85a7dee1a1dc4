// A CUDA runtime for machines without a GPU, in place of libcudart.so: device memory is zeroed host memory, copies are
// made, and a launch is checked against what Hopper takes, recorded, and not run. What is tested with it is all that
// the host does on the way to a launch: arguments, plans, extents of grids, shared memory. Results mean nothing.
//
// Only what libreticle and Thrust call is here; anything else is an undefined symbol when the library is loaded.
// Recorded launches are read through the stand_in_ functions at the end.
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kUnaskedSharedMemory = 48 * 1024, kMaxSharedMemory = 227 * 1024;

struct Call {
  dim3 grid, block;
  std::size_t shared_memory = 0;
  void* stream = nullptr;
};

struct Runtime {
  std::mutex mutex;
  std::map<const void*, std::string> kernels;
  std::map<const void*, std::size_t> allowed;  // dynamic shared memory
  std::set<void*> allocations;
  std::vector<std::string> launches;
  std::string wrong;  // the first launch that Hopper would refuse
};

Runtime& runtime() {
  static auto* const it = new Runtime;  // kernels are registered before, and unregistered after, anything of ours
  return *it;
}

thread_local std::vector<Call> pushed;
thread_local cudaError_t last = cudaSuccess;

cudaError_t refuse(cudaError_t error) { return last = error; }

std::string text_of(const dim3& extent) {
  return std::to_string(extent.x) + "x" + std::to_string(extent.y) + "x" + std::to_string(extent.z);
}

/// What is wrong with a launch; empty when nothing is.
std::string fault_of(const Call& call, std::size_t allowed) {
  const std::size_t threads = std::size_t{call.block.x} * call.block.y * call.block.z;
  if (call.grid.x == 0 || call.grid.y == 0 || call.grid.z == 0) return "an empty grid";
  if (call.grid.x > 0x7fffffffu || call.grid.y > 65535 || call.grid.z > 65535) return "too large a grid";
  if (threads == 0 || threads > kMaxThreads) return std::to_string(threads) + " threads";
  if (call.shared_memory > allowed)
    return std::to_string(call.shared_memory) + " bytes of shared memory where " + std::to_string(allowed) +
           " are allowed";
  return "";
}

}  // namespace

extern "C" {

// NOLINTBEGIN: names and signatures are those of the CUDA runtime.
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, std::size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  const std::lock_guard lock(runtime().mutex);
  runtime().kernels[host] = name;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared_memory, void* stream) {
  pushed.push_back({grid, block, shared_memory, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared_memory, void* stream) {
  const Call call = pushed.back();
  pushed.pop_back();
  *grid = call.grid;
  *block = call.block;
  *shared_memory = call.shared_memory;
  *static_cast<void**>(stream) = call.stream;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void**, std::size_t shared_memory, cudaStream_t) {
  Runtime& own = runtime();
  const std::lock_guard lock(own.mutex);
  const auto asked = own.allowed.find(host);
  const Call call{grid, block, shared_memory};
  const std::string fault = fault_of(call, asked == own.allowed.end() ? kUnaskedSharedMemory : asked->second);
  const auto kernel = own.kernels.find(host);
  const std::string name = kernel == own.kernels.end() ? "?" : kernel->second;
  const std::string line = name + " " + text_of(grid) + " " + text_of(block) + " " + std::to_string(shared_memory);
  if (!fault.empty()) {
    if (own.wrong.empty()) own.wrong = line + ": " + fault;
    return refuse(cudaErrorInvalidConfiguration);
  }
  own.launches.push_back(line);
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared_memory,
                               cudaStream_t stream) {
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments, shared_memory, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* host, void** arguments) {
  return cudaLaunchKernel(host, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes, config->stream);
}
cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return refuse(cudaErrorInvalidValue);
  if (value < 0 || static_cast<std::size_t>(value) > kMaxSharedMemory) return refuse(cudaErrorInvalidValue);
  const std::lock_guard lock(runtime().mutex);
  runtime().allowed[host] = static_cast<std::size_t>(value);
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->maxThreadsPerBlock = kMaxThreads;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, std::size_t) {
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, std::size_t,
                                                                   unsigned) {
  *blocks = 2;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : refuse(cudaErrorInvalidDevice); }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kMaxSharedMemory;
      return cudaSuccess;
    case cudaDevAttrMaxGridDimX:
      *value = 0x7fffffff;
      return cudaSuccess;
    default:
      return refuse(cudaErrorInvalidValue);
  }
}

cudaError_t cudaMallocAsync(void** memory, std::size_t bytes, cudaStream_t) {
  *memory = std::calloc(bytes, 1);
  if (*memory == nullptr) return refuse(cudaErrorMemoryAllocation);
  const std::lock_guard lock(runtime().mutex);
  runtime().allocations.insert(*memory);
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t) {
  {
    const std::lock_guard lock(runtime().mutex);
    if (runtime().allocations.erase(memory) == 0) return refuse(cudaErrorInvalidValue);
  }
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  return cudaMemset(memory, value, bytes);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind, cudaStream_t) {
  for (std::size_t row = 0; row < height; ++row)
    std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = nullptr;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = nullptr;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;
  return cudaSuccess;
}

cudaError_t cudaPeekAtLastError() { return last; }
cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    default:
      return "invalid argument";
  }
}
const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }
// NOLINTEND

/// Launches so far, each "kernel grid block shared_memory"; the text lives until stand_in_forget().
int stand_in_launches() {
  const std::lock_guard lock(runtime().mutex);
  return static_cast<int>(runtime().launches.size());
}
const char* stand_in_launch(int i) {
  const std::lock_guard lock(runtime().mutex);
  return runtime().launches.at(static_cast<std::size_t>(i)).c_str();
}
/// The first launch that a Hopper GPU would refuse, and why; empty when there was none.
const char* stand_in_fault() {
  const std::lock_guard lock(runtime().mutex);
  return runtime().wrong.c_str();
}
/// Device memory that has not been freed, in allocations.
int stand_in_allocations() {
  const std::lock_guard lock(runtime().mutex);
  return static_cast<int>(runtime().allocations.size());
}
void stand_in_forget() {
  const std::lock_guard lock(runtime().mutex);
  runtime().launches.clear();
  runtime().wrong.clear();
}
}  // extern "C"
