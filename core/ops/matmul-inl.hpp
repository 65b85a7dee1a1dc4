// The register-blocked matrix product of attention's tiles. Included by kernels only, once per target.
#if defined(RETICLE_CORE_OPS_MATMUL_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef RETICLE_CORE_OPS_MATMUL_INL_HPP
#undef RETICLE_CORE_OPS_MATMUL_INL_HPP
#else
#define RETICLE_CORE_OPS_MATMUL_INL_HPP
#endif

#include <hwy/highway.h>

#include <reticle/core/base/types.hpp>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {

/// A matrix read element by element: (m, k) lies at data[m * row_stride + k * column_stride].
struct Broadcast {
  const float* data;
  Index row_stride, column_stride;
};

/// kRows x kVectors accumulators stay in registers over all of k: per step, kVectors loads and kRows broadcasts feed
/// kRows * kVectors multiply-adds, each independent of the others.
template <std::size_t kRows, std::size_t kVectors, class Scale>
HWY_INLINE void MultiplyPanel(Broadcast a, Index depth, const float* HWY_RESTRICT b, Index stride,
                              float* HWY_RESTRICT c, const Scale& scale) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  using V = hn::Vec<decltype(tag)>;
  V sums[kRows][kVectors];
  for (std::size_t m = 0; m < kRows; ++m) {
    for (std::size_t v = 0; v < kVectors; ++v)
      sums[m][v] = scale(c + static_cast<Index>(m) * stride + static_cast<Index>(v) * lanes, static_cast<Index>(v));
  }
  for (Index k = 0; k < depth; ++k) {
    V right[kVectors];
    for (std::size_t v = 0; v < kVectors; ++v)
      right[v] = hn::LoadU(tag, b + k * stride + static_cast<Index>(v) * lanes);
    for (std::size_t m = 0; m < kRows; ++m) {
      const V left = hn::Set(tag, a.data[static_cast<Index>(m) * a.row_stride + k * a.column_stride]);
      for (std::size_t v = 0; v < kVectors; ++v) sums[m][v] = hn::MulAdd(left, right[v], sums[m][v]);
    }
  }
  for (std::size_t m = 0; m < kRows; ++m) {
    for (std::size_t v = 0; v < kVectors; ++v)
      hn::StoreU(sums[m][v], tag, c + static_cast<Index>(m) * stride + static_cast<Index>(v) * lanes);
  }
}

/// 12 accumulators where there are 16 registers, 24 where there are 32.
inline constexpr bool kFewRegisters = HWY_ARCH_X86 != 0 && HWY_TARGET > HWY_AVX3;

template <std::size_t kVectors, class Scale>
void MultiplyColumns(Broadcast a, Index rows, Index depth, const float* b, Index stride, float* c, const Scale& scale) {
  constexpr std::size_t kRows = kVectors == 4 ? 6 : kFewRegisters && kVectors == 2 ? 6 : 12;
  const auto advance = [&](Index by) {
    rows -= by;
    a.data += by * a.row_stride;
    c += by * stride;
  };
  while (rows >= static_cast<Index>(kRows)) {
    MultiplyPanel<kRows, kVectors>(a, depth, b, stride, c, scale);
    advance(kRows);
  }
  while (rows >= 2) {
    MultiplyPanel<2, kVectors>(a, depth, b, stride, c, scale);
    advance(2);
  }
  if (rows > 0) MultiplyPanel<1, kVectors>(a, depth, b, stride, c, scale);
}

/// c = scale(c) + a b, for a (rows, depth), b (depth, columns) and c (rows, columns), whose rows are `stride` apart;
/// columns is a multiple of the vector length. `scale(c, v)` loads the vector at c, which is vector v of its row, as
/// the initial value of the sum. a and b may be null if depth is 0, c if rows is 0.
template <class Scale>
void Multiply(Broadcast a, Index rows, Index depth, const float* b, Index columns, Index stride, float* c,
              const Scale& scale) {
  namespace hn = hwy::HWY_NAMESPACE;
  if (rows == 0) return;
  if (depth == 0) a.row_stride = 0;
  const auto lanes = static_cast<Index>(hn::Lanes(hn::ScalableTag<float>()));
  Index column = 0;
  const auto columns_from = [&]<std::size_t kCount>(std::integral_constant<std::size_t, kCount>) {
    const Index first = column / lanes;
    MultiplyColumns<kCount>(a, rows, depth, depth == 0 ? b : b + column, stride, c + column,
                            [&](const float* at, Index v) { return scale(at, first + v); });
    column += static_cast<Index>(kCount) * lanes;
  };
  while (!kFewRegisters && column + 4 * lanes <= columns) columns_from(std::integral_constant<std::size_t, 4>());
  while (column + 2 * lanes <= columns) columns_from(std::integral_constant<std::size_t, 2>());
  while (column < columns) columns_from(std::integral_constant<std::size_t, 1>());
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
