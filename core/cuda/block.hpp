// What a kernel's body is written against, so that the same source runs on a GPU and, thread after thread, on the CPU,
// where it is tested. A body is a sequence of steps: block.each(f) runs f(thread) for every thread, values that live
// from one step to the next are PerThread, and what threads exchange goes through shared memory after block.sync() or
// through the operations of warps below. On a GPU `each` is a call, PerThread a register, and the rest the instructions
// of that name.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle::cuda {

inline constexpr int kWarp = 32;

/// The size of an array, which C++ has unsigned.
template <int n>
inline constexpr std::size_t extent = static_cast<std::size_t>(n);

namespace block_detail {

template <class F, int... i>
RETICLE_HD void call_each(F& f, std::integer_sequence<int, i...>) {
  (f(i), ...);
}

}  // namespace block_detail

/// f(0), ..., f(n - 1), written out: registers have no addresses, so what is indexed by i must be known when compiling.
template <int n, class F>
RETICLE_HD void unrolled(F&& f) {
  block_detail::call_each(f, std::make_integer_sequence<int, n>());
}

#if defined(__CUDACC__)

/// One thread of a real block.
class DeviceBlock {
 public:
  static constexpr bool kReal = true;

  template <class T>
  struct PerThread {
    T value{};
    __device__ explicit PerThread(const DeviceBlock&) {}
    __device__ T& operator[](int) { return value; }
  };

  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  template <class F>
  __device__ void each(F&& f) const {
    f(static_cast<int>(threadIdx.x));
  }
  __device__ void sync() const { __syncthreads(); }

  /// Every thread's of(x) becomes the sum over the `lanes` (a power of two) neighbours that it is one of.
  template <int lanes, class T, class Of>
  __device__ void sum_over(PerThread<T>& x, Of&& of) const {
    float& own = of(x.value);
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2) own += __shfl_xor_sync(0xFFFFFFFFu, own, offset);
  }
  template <int lanes>
  __device__ void sum_over(PerThread<float>& x) const {
    sum_over<lanes>(x, [](float& own) -> float& { return own; });
  }

  /// The same for the maximum.
  template <int lanes>
  __device__ void max_over(PerThread<float>& x) const {
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2)
      x.value = fmaxf(x.value, __shfl_xor_sync(0xFFFFFFFFu, x.value, offset));
  }

  /// Four 8 x 8 matrices of 16-bit elements from shared memory: lane l has the address of row l % 8 of matrix l / 8,
  /// and gets in to(thread)[i] elements (l / 4, l % 4 * 2) and the next of matrix i; transposed, those of its
  /// transpose.
  template <bool transposed, class RowOf, class To>
  __device__ void load_matrices(RowOf&& row_of, To&& to) const {
    const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row_of(static_cast<int>(threadIdx.x))));
    std::uint32_t* const out = to(static_cast<int>(threadIdx.x));
    if constexpr (transposed) {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                   : "r"(address));
    } else {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                   : "r"(address));
    }
  }

  /// C (16 x 8, float) += A (16 x 16) B (16 x 8) of Half or BFloat16, by the tensor cores, for every warp. With g =
  /// lane / 4 and t = lane % 4 * 2, a thread holds C(g, t), C(g, t+1), C(g+8, t), C(g+8, t+1); in pairs of neighbours
  /// A(g, t), A(g+8, t), A(g, t+8), A(g+8, t+8); and B(t, g), B(t+8, g).
  template <class T, class C, class A, class B>
  __device__ void multiply_add(C&& c_of, A&& a_of, B&& b_of) const {
    float* const c = c_of(static_cast<int>(threadIdx.x));
    const std::uint32_t *const a = a_of(static_cast<int>(threadIdx.x)), *const b = b_of(static_cast<int>(threadIdx.x));
    if constexpr (std::is_same_v<T, BFloat16>) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
  }

  /// 16 bytes into shared memory, on the way while the thread goes on; zeros where there is nothing to copy. `from`
  /// must be an address even then.
  __device__ void copy_16(void* to, const void* from, bool there) const {
    const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
  }
  /// Ends a group of copies.
  __device__ void commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  /// Waits until at most `pending` groups of this thread's are on their way.
  template <int pending>
  __device__ void wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
  }

  /// Every thread's count becomes the sum of those before it in the block; returns the sum of all. `scratch` is shared
  /// memory for 33 counts.
  template <class T>
  __device__ T exclusive_scan(PerThread<T>& count, T* scratch) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    T sum = count.value;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const T before = __shfl_up_sync(0xFFFFFFFFu, sum, offset);
      if (lane >= offset) sum += before;
    }
    if (lane == kWarp - 1) scratch[warp] = sum;
    __syncthreads();
    if (warp == 0) {
      const int warps = threads() / kWarp;
      T total = lane < warps ? scratch[lane] : T{};
      const T own = total;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const T before = __shfl_up_sync(0xFFFFFFFFu, total, offset);
        if (lane >= offset) total += before;
      }
      if (lane < warps) scratch[lane] = total - own;
      if (lane == kWarp - 1) scratch[kWarp] = total;
    }
    __syncthreads();
    count.value = scratch[warp] + sum - count.value;
    const T all = scratch[kWarp];
    __syncthreads();  // scratch may be used again
    return all;
  }

  /// Adds to memory that the block shares; the value before.
  __device__ int add(int* to, int value) const { return atomicAdd(to, value); }
  __device__ void add(std::uint64_t* to, std::uint64_t value) const {
    static_assert(sizeof(unsigned long long) == sizeof(std::uint64_t));
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
  }
  /// Keeps the larger, or the smaller.
  __device__ void keep_max(std::uint32_t* in, std::uint32_t value) const { atomicMax(in, value); }
  __device__ void keep_min(std::int32_t* in, std::int32_t value) const { atomicMin(in, value); }

  /// Whether this is the last of `blocks` blocks to come here; what the others wrote before is then visible. The
  /// counter, 0 at first, is 0 again after that. `scratch` is shared memory for an int.
  __device__ bool last_to_arrive(int* counter, int blocks, int* scratch) const {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      *scratch = atomicAdd(counter, 1);
      if (*scratch == blocks - 1) *counter = 0;
    }
    __syncthreads();
    const bool last = *scratch == blocks - 1;
    if (last) __threadfence();
    return last;
  }
};

#endif  // __CUDACC__

/// A block whose threads take turns.
class HostBlock {
 public:
  static constexpr bool kReal = false;

  template <class T>
  struct PerThread {
    std::vector<T> values;
    explicit PerThread(const HostBlock& block) : values(static_cast<std::size_t>(block.threads())) {}
    T& operator[](int thread) { return values[static_cast<std::size_t>(thread)]; }
  };

  explicit HostBlock(int threads) : threads_(threads) {}
  int threads() const { return threads_; }
  template <class F>
  void each(F&& f) const {
    for (int thread = 0; thread < threads_; ++thread) f(thread);
  }
  void sync() const {}

  template <int lanes, class T, class Of>
  void sum_over(PerThread<T>& x, Of&& of) const {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      std::vector<float> before;
      for (T& value : x.values) before.push_back(of(value));
      for (std::size_t thread = 0; thread < x.values.size(); ++thread)
        of(x.values[thread]) += before[thread ^ static_cast<std::size_t>(offset)];
    }
  }
  template <int lanes>
  void sum_over(PerThread<float>& x) const {
    sum_over<lanes>(x, [](float& own) -> float& { return own; });
  }
  template <int lanes>
  void max_over(PerThread<float>& x) const {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      const std::vector<float> before = x.values;
      for (std::size_t thread = 0; thread < x.values.size(); ++thread)
        x.values[thread] = std::max(x.values[thread], before[thread ^ static_cast<std::size_t>(offset)]);
    }
  }
  template <bool transposed, class RowOf, class To>
  void load_matrices(RowOf&& row_of, To&& to) const {
    for (int thread = 0; thread < threads_; ++thread) {
      const int warp = thread / kWarp * kWarp, lane = thread % kWarp;
      for (int matrix = 0; matrix < 4; ++matrix) {
        std::uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
          const int row = transposed ? lane % 4 * 2 + i : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + i;
          std::memcpy(&pair[i], row_of(warp + matrix * 8 + row) + column, 2);
        }
        to(thread)[matrix] = pair[0] | static_cast<std::uint32_t>(pair[1]) << 16;
      }
    }
  }
  template <class T, class C, class A, class B>
  void multiply_add(C&& c_of, A&& a_of, B&& b_of) const {
    const auto half = [](std::uint32_t pair, int i) {
      return to_float(T{static_cast<std::uint16_t>(pair >> (16 * i))});
    };
    for (int warp = 0; warp < threads_; warp += kWarp) {
      float a[16][16], b[16][8];
      for (int lane = 0; lane < kWarp; ++lane) {
        const int g = lane / 4, t = lane % 4 * 2;
        for (int i = 0; i < 2; ++i) {
          for (int piece = 0; piece < 4; ++piece)
            a[g + piece % 2 * 8][t + piece / 2 * 8 + i] = half(a_of(warp + lane)[piece], i);
          for (int piece = 0; piece < 2; ++piece) b[t + piece * 8 + i][g] = half(b_of(warp + lane)[piece], i);
        }
      }
      for (int lane = 0; lane < kWarp; ++lane) {
        for (int piece = 0; piece < 4; ++piece) {
          const int row = lane / 4 + piece / 2 * 8, column = lane % 4 * 2 + piece % 2;
          for (int k = 0; k < 16; ++k) c_of(warp + lane)[piece] += a[row][k] * b[k][column];
        }
      }
    }
  }
  void copy_16(void* to, const void* from, bool there) const {
    if (there) {
      std::memcpy(to, from, 16);
    } else {
      std::memset(to, 0, 16);
    }
  }
  void commit() const {}
  template <int pending>
  void wait() const {}

  template <class T>
  T exclusive_scan(PerThread<T>& count, T*) const {
    T sum{};
    for (T& value : count.values) {
      const T own = value;
      value = sum;
      sum += own;
    }
    return sum;
  }
  int add(int* to, int value) const {
    const int before = *to;
    *to += value;
    return before;
  }
  void add(std::uint64_t* to, std::uint64_t value) const { *to += value; }
  void keep_max(std::uint32_t* in, std::uint32_t value) const { *in = std::max(*in, value); }
  void keep_min(std::int32_t* in, std::int32_t value) const { *in = std::min(*in, value); }
  bool last_to_arrive(int* counter, int blocks, int*) const {
    if (++*counter < blocks) return false;
    *counter = 0;
    return true;
  }

 private:
  int threads_;
};

template <class Block, class T>
using PerThread = typename Block::template PerThread<T>;

}  // namespace reticle::cuda
