// The panel product of matmul-inl.hpp on pairs of bfloat16: 6 x 4 sums stay in registers, and each broadcast pair of
// `a` feeds four instructions of 32 multiply-adds. 4 * rows * depth * columns flops, at twice the rate of float32.
// Written with intrinsics because Highway's product of pairs does not compile to the instruction in the versions that
// distributions carry.
#include <cstring>

#include <hwy/base.h>

#include <reticle/attention/bf16_kernel.hpp>
#include <reticle/core/base/machine.hpp>

#if HWY_ARCH_X86_64
#include <immintrin.h>
#endif

namespace reticle {
namespace {

void multiply_without_products(PairMatrix a, Index rows, Index depth, const Bf16Pair* b, Index columns, Index stride,
                               const float* scale, float* c) {
  for (Index m = 0; m < rows; ++m) {
    for (Index v = 0; v < columns; ++v) {
      float& sum = c[m * stride + v];
      sum = scale == nullptr ? 0 : scale[v] * sum;
      for (Index k = 0; k < depth; ++k) {
        const BFloat16* left = a.data + m * a.row_stride + k * a.column_stride;
        const Bf16Pair& right = b[k * stride + v];
        sum += to_float(left[0]) * to_float(right.first);
        sum += to_float(left[1]) * to_float(right.second);
      }
    }
  }
}

}  // namespace

#if HWY_ARCH_X86_64
HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
namespace {

std::uint32_t bits_of(const BFloat16* pair) {
  std::uint32_t bits;
  std::memcpy(&bits, pair, sizeof(bits));
  return bits;
}

/// kRows x kVectors sums over all of the depth.
template <std::size_t kRows, std::size_t kVectors>
void multiply_panel(PairMatrix a, Index depth, const Bf16Pair* b, Index stride, const float* scale, float* c) {
  __m512 sums[kRows][kVectors];
  for (std::size_t m = 0; m < kRows; ++m) {
    for (std::size_t v = 0; v < kVectors; ++v) {
      const auto at = static_cast<Index>(v) * kPairLanes;
      sums[m][v] = scale == nullptr ? _mm512_setzero_ps()
                                    : _mm512_mul_ps(_mm512_loadu_ps(scale + at),
                                                    _mm512_loadu_ps(c + static_cast<Index>(m) * stride + at));
    }
  }
  for (Index k = 0; k < depth; ++k) {
    __m512bh right[kVectors];
    for (std::size_t v = 0; v < kVectors; ++v)
      right[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + k * stride + static_cast<Index>(v) * kPairLanes));
    for (std::size_t m = 0; m < kRows; ++m) {
      const std::uint32_t pair = bits_of(a.data + static_cast<Index>(m) * a.row_stride + k * a.column_stride);
      const auto left = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(pair)));
      for (std::size_t v = 0; v < kVectors; ++v) sums[m][v] = _mm512_dpbf16_ps(sums[m][v], left, right[v]);
    }
  }
  for (std::size_t m = 0; m < kRows; ++m) {
    for (std::size_t v = 0; v < kVectors; ++v)
      _mm512_storeu_ps(c + static_cast<Index>(m) * stride + static_cast<Index>(v) * kPairLanes, sums[m][v]);
  }
}

template <std::size_t kVectors>
void multiply_columns(PairMatrix a, Index rows, Index depth, const Bf16Pair* b, Index stride, const float* scale,
                      float* c) {
  constexpr std::size_t kRows = 24 / kVectors < 12 ? 24 / kVectors : 12;
  constexpr auto kStep = static_cast<Index>(kRows);
  const auto from = [&](Index m) { return PairMatrix{a.data + m * a.row_stride, a.row_stride, a.column_stride}; };
  Index m = 0;
  for (; m + kStep <= rows; m += kStep)
    multiply_panel<kRows, kVectors>(from(m), depth, b, stride, scale, c + m * stride);
  for (; m + 2 <= rows; m += 2) multiply_panel<2, kVectors>(from(m), depth, b, stride, scale, c + m * stride);
  if (m < rows) multiply_panel<1, kVectors>(from(m), depth, b, stride, scale, c + m * stride);
}

}  // namespace
HWY_POP_ATTRIBUTES

void multiply_bf16(PairMatrix a, Index rows, Index depth, const Bf16Pair* b, Index columns, Index stride,
                   const float* scale, float* c) {
  if (!has_bf16_pairs()) return multiply_without_products(a, rows, depth, b, columns, stride, scale, c);
  switch (columns / kPairLanes) {
    case 1:
      return multiply_columns<1>(a, rows, depth, b, stride, scale, c);
    case 2:
      return multiply_columns<2>(a, rows, depth, b, stride, scale, c);
    case 3:
      return multiply_columns<3>(a, rows, depth, b, stride, scale, c);
    default:
      return multiply_columns<4>(a, rows, depth, b, stride, scale, c);
  }
}

#else
void multiply_bf16(PairMatrix a, Index rows, Index depth, const Bf16Pair* b, Index columns, Index stride,
                   const float* scale, float* c) {
  multiply_without_products(a, rows, depth, b, columns, stride, scale, c);
}
#endif

void pair_rows(const TensorView& matrix, const std::int32_t* indices, Index count, Bf16Pair* to) {
  const Index width = matrix.size(1);
  const auto row = [&](Index i) {
    return static_cast<const BFloat16*>(matrix.data) + (indices == nullptr ? i : indices[i]) * matrix.stride(0);
  };
  for (Index i = 0; i < count; i += 2, to += width) {
    const BFloat16* first = row(i);
    if (i + 1 < count) {
      const BFloat16* second = row(i + 1);
      for (Index j = 0; j < width; ++j) to[j] = {first[j], second[j]};
    } else {
      for (Index j = 0; j < width; ++j) to[j] = {first[j], {}};
    }
  }
}

}  // namespace reticle
