// The interface that kernel bodies are written against, so that the same source runs on a GPU and, one thread after
// another, on the CPU, where it is tested. A body is a sequence of steps: block.each(f) runs f(thread) for every
// thread, values that live from one step to the next are PerThread, and threads exchange data through shared memory
// after block.sync() or through the warp operations below. On a GPU `each` is a call, PerThread is a register, and the
// other operations are the instructions of the same name.
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

/// The size of an array as size_t.
template <int n>
inline constexpr std::size_t extent = static_cast<std::size_t>(n);

namespace block_detail {

template <class F, int... i>
RETICLE_HD void call_each(F& f, std::integer_sequence<int, i...>) {
  (f(i), ...);
}

}  // namespace block_detail

/// Calls f(0), ..., f(n - 1), unrolled: registers have no addresses, so arrays in registers need indices that are known
/// at compile time.
template <int n, class F>
RETICLE_HD void unrolled(F&& f) {
  block_detail::call_each(f, std::make_integer_sequence<int, n>());
}

inline constexpr int kWarpgroup = 4 * kWarp;

/// A panel has 64 rows of 64 16-bit elements in shared memory, in the layout that Hopper's tensor cores read (128-byte
/// swizzle): the 16-byte piece number p of a row is stored at p ^ row % 8, so that a column of pieces uses every bank.
/// Panels are aligned to kPanelAlignment bytes.
inline constexpr int kPanelRows = 64, kPanelElements = kPanelRows * 64, kPanelAlignment = 1024;
RETICLE_HD constexpr int panel_place(int row, int element) {
  return row * 64 + ((element / 8) ^ (row % 8)) * 8 + element % 8;
}
/// Offset in bytes, within its panel, of the second factor of product number `step`: 16 columns of all rows or, if the
/// panel is transposed, 16 rows.
template <bool transposed>
RETICLE_HD constexpr int panel_step(int step) {
  return step * (transposed ? 16 * 128 : 32);
}
/// The wgmma shared-memory matrix descriptor of such a factor (PTX ISA, asynchronous warpgroup instructions): its
/// address, the distance between groups of eight rows, and the swizzle. The other distance is not used, since 64
/// columns are one group.
RETICLE_HD constexpr std::uint64_t panel_descriptor(std::uint32_t address) {
  constexpr std::uint64_t kGroup = 8 * 128 >> 4, kSwizzled128 = 1;
  return (address & 0x3FFFFu) >> 4 | kGroup << 16 | kGroup << 32 | kSwizzled128 << 62;
}

#if defined(__CUDACC__)

/// One thread of a block on the GPU.
class DeviceBlock {
 public:
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

  /// Replaces every thread's of(x) by the sum over its group of `lanes` (a power of two) neighbouring threads.
  template <int lanes, class T, class Of>
  __device__ void sum_over(PerThread<T>& x, Of&& of) const {
    float& value = of(x.value);
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, offset);
  }
  template <int lanes>
  __device__ void sum_over(PerThread<float>& x) const {
    sum_over<lanes>(x, [](float& value) -> float& { return value; });
  }

  /// The same with the maximum.
  template <int lanes, class T, class Of>
  __device__ void max_over(PerThread<T>& x, Of&& of) const {
    float& value = of(x.value);
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2)
      value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, offset));
  }

  /// Loads four 8 x 8 matrices of 16-bit elements from shared memory. Lane l passes the address of row l % 8 of matrix
  /// l / 8, and gets in to(thread)[i] elements (l / 4, l % 4 * 2) and the next of matrix i, or of its transpose if
  /// `transposed`.
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

  /// C (16 x 8, float) += A (16 x 16) B (16 x 8) of Half or BFloat16 on the tensor cores, for every warp. With
  /// g = lane / 4 and t = lane % 4 * 2, a thread holds C(g, t), C(g, t+1), C(g+8, t), C(g+8, t+1); pairs of neighbours
  /// A(g, t), A(g+8, t), A(g, t+8), A(g+8, t+8); and pairs B(t, g), B(t+8, g).
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

  /// Starts C (64 x 64, float) += A (64 x 16) B (16 x 64) of Half or BFloat16 for every warpgroup, without waiting;
  /// unless `accumulate`, C is overwritten. A warp has 16 rows of C and of A; a thread holds its elements of A, and of
  /// each 8 columns of C, as in multiply_add. B is step number `step` of a panel: B(k, n) is its element
  /// (n, step * 16 + k) or, transposed, (step * 16 + k, n). To be called between open_products and close_products.
  /// Compute capability 9.0 only.
  template <class T, bool transposed, bool accumulate, class C, class A>
  __device__ void multiply_panel(C&& c_of, A&& a_of, const T* panel, int step) const {
    float* const c = c_of(static_cast<int>(threadIdx.x));
    const std::uint32_t* const a = a_of(static_cast<int>(threadIdx.x));
    const std::uint64_t b = panel_descriptor(static_cast<std::uint32_t>(__cvta_generic_to_shared(panel)) +
                                             static_cast<std::uint32_t>(panel_step<transposed>(step)));
    if constexpr (std::is_same_v<T, BFloat16>) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
          "%23, %24, %25, %26, %27, %28, %29, %30, %31}, "
          "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),
            "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),
            "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
            "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(accumulate ? 1 : 0), "n"(transposed ? 1 : 0));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
          "%23, %24, %25, %26, %27, %28, %29, %30, %31}, "
          "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),
            "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),
            "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
            "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(accumulate ? 1 : 0), "n"(transposed ? 1 : 0));
    }
  }
  /// wgmma.fence: orders this thread's register and shared-memory accesses before the next products.
  __device__ void open_products() const { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
  /// wgmma.commit_group: ends a group of products.
  __device__ void close_products() const { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
  /// Waits until at most `pending` groups of products are unfinished.
  template <int pending>
  __device__ void wait_products() const {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
  }
  /// Compiler barrier: asynchronous products may read and write these registers up to this point.
  template <int n, class Of>
  __device__ void settle(Of&& of) const {
    auto* const values = of(static_cast<int>(threadIdx.x));
    unrolled<n>([&](int i) {
      if constexpr (std::is_same_v<decltype(values), float* const>) {
        asm volatile("" : "+f"(values[i])::"memory");
      } else {
        asm volatile("" : "+r"(values[i])::"memory");
      }
    });
  }
  /// Makes this thread's writes to shared memory visible to products, after sync().
  __device__ void publish() const { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

  /// Starts an asynchronous copy of 16 bytes into shared memory; if `there` is false, zeros are written. `from` must be
  /// a valid address even then.
  __device__ void copy_16(void* to, const void* from, bool there) const {
    const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
  }
  /// Ends a group of copies.
  __device__ void commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  /// Waits until at most `pending` groups of this thread's copies are unfinished.
  template <int pending>
  __device__ void wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
  }

  /// Replaces every thread's count by the sum of the counts before it in the block; returns the total. `scratch` is
  /// shared memory for 33 counts.
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
      const T warp_sum = total;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const T before = __shfl_up_sync(0xFFFFFFFFu, total, offset);
        if (lane >= offset) total += before;
      }
      if (lane < warps) scratch[lane] = total - warp_sum;
      if (lane == kWarp - 1) scratch[kWarp] = total;
    }
    __syncthreads();
    count.value = scratch[warp] + sum - count.value;
    const T all = scratch[kWarp];
    __syncthreads();  // scratch may be used again
    return all;
  }

  /// Atomically adds to shared memory; returns the value before.
  __device__ int add(int* to, int value) const { return atomicAdd(to, value); }
  __device__ void add(std::uint64_t* to, std::uint64_t value) const {
    static_assert(sizeof(unsigned long long) == sizeof(std::uint64_t));
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
  }
  __device__ void set_bits(std::uint32_t* in, std::uint32_t bits) const { atomicOr(in, bits); }
  /// Atomically keeps the larger value, or the smaller.
  __device__ void keep_max(std::uint32_t* in, std::uint32_t value) const { atomicMax(in, value); }
  __device__ void keep_min(std::int32_t* in, std::int32_t value) const { atomicMin(in, value); }

  /// Whether this is the last of `blocks` blocks to call this; the writes of the others before their calls are then
  /// visible. The counter must be 0 and is reset to 0. `scratch` is shared memory for an int.
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

/// B(k, n) of multiply_panel, computed from the descriptor's fields as the hardware does.
template <bool transposed, class T>
float panel_element(const T* panel, int step, int k, int n) {
  const std::uint64_t descriptor = panel_descriptor(static_cast<std::uint32_t>(panel_step<transposed>(step)));
  const auto row = static_cast<std::uint64_t>(transposed ? k : n),
             column = static_cast<std::uint64_t>(transposed ? n : k);
  std::uint64_t address =
      ((descriptor & 0x3FFF) << 4) + row / 8 * ((descriptor >> 32 & 0x3FFF) << 4) + row % 8 * 128 + column * 2;
  address ^= (address >> 7 & 7) << 4;
  T element;
  std::memcpy(&element, reinterpret_cast<const char*>(panel) + address, sizeof(element));
  return to_float(element);
}

/// A block on the CPU, whose threads run one after another.
class HostBlock {
 public:
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
    combine_over<lanes>(x, of, [](float a, float b) { return a + b; });
  }
  template <int lanes>
  void sum_over(PerThread<float>& x) const {
    sum_over<lanes>(x, [](float& value) -> float& { return value; });
  }
  template <int lanes, class T, class Of>
  void max_over(PerThread<T>& x, Of&& of) const {
    combine_over<lanes>(x, of, [](float a, float b) { return std::max(a, b); });
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
  template <class T, bool transposed, bool accumulate, class C, class A>
  void multiply_panel(C&& c_of, A&& a_of, const T* panel, int step) const {
    const auto half = [](std::uint16_t bits) { return to_float(T{bits}); };
    for (int thread = 0; thread < threads_; ++thread) {
      // The threads of a quad hold the same two rows of A.
      const int quad = thread / 4 * 4;
      for (int piece = 0; piece < 4; ++piece) {
        for (int tile = 0; tile < 8; ++tile) {
          const int column = tile * 8 + thread % 4 * 2 + piece % 2;
          float sum = accumulate ? c_of(thread)[tile * 4 + piece] : 0;
          for (int k = 0; k < 16; ++k) {
            const std::uint32_t pair = a_of(quad + k % 8 / 2)[piece / 2 + k / 8 * 2];
            sum += half(static_cast<std::uint16_t>(pair >> (k % 2 * 16))) *
                   panel_element<transposed>(panel, step, k, column);
          }
          c_of(thread)[tile * 4 + piece] = sum;
        }
      }
    }
  }
  void open_products() const {}
  void close_products() const {}
  template <int pending>
  void wait_products() const {}
  template <int n, class Of>
  void settle(Of&&) const {}
  void publish() const {}

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
      const T current = value;
      value = sum;
      sum += current;
    }
    return sum;
  }
  int add(int* to, int value) const {
    const int before = *to;
    *to += value;
    return before;
  }
  void add(std::uint64_t* to, std::uint64_t value) const { *to += value; }
  void set_bits(std::uint32_t* in, std::uint32_t bits) const { *in |= bits; }
  void keep_max(std::uint32_t* in, std::uint32_t value) const { *in = std::max(*in, value); }
  void keep_min(std::int32_t* in, std::int32_t value) const { *in = std::min(*in, value); }
  bool last_to_arrive(int* counter, int blocks, int*) const {
    if (++*counter < blocks) return false;
    *counter = 0;
    return true;
  }

 private:
  template <int lanes, class T, class Of, class Combine>
  static void combine_over(PerThread<T>& x, Of&& of, Combine&& combine) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      std::vector<float> before;
      before.reserve(x.values.size());
      for (T& value : x.values) before.push_back(of(value));
      for (std::size_t thread = 0; thread < x.values.size(); ++thread)
        of(x.values[thread]) = combine(before[thread], before[thread ^ static_cast<std::size_t>(offset)]);
    }
  }

  int threads_;
};

template <class Block, class T>
using PerThread = typename Block::template PerThread<T>;

}  // namespace reticle::cuda
