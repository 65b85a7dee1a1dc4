// A tile's weights over all compressed keys stay in cache between the softmax, the product with the values and the sums
// over blocks, so that scores are computed once: 2 * keys * rows * (d + dv) flops, and 256 bytes of workspace per key
// (512 kB at 2048 keys, for a sequence of 32k tokens with stride 16). The sums over blocks add 2 to 5 vectors of rows
// per key. Bound by multiply-adds.
#include <reticle/attention/nsa/score_kernel.hpp>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/nsa/score_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// must follow foreach_target.h
#include <algorithm>
#include <cmath>
#include <limits>

#include <reticle/core/ops/exp-inl.hpp>
#include <reticle/core/ops/matmul-inl.hpp>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Turns scores into weights exp(score - max) for one vector of rows; returns 1 / their sum, 0 where a row sees no key.
template <class D, class V = hn::Vec<D>>
V SoftmaxColumn(D tag, const ScoreTile& tile, Index column) {
  const hn::RebindToSigned<D> integer;
  const V nothing = hn::Set(tag, -std::numeric_limits<float>::infinity()), zero = hn::Zero(tag);
  const auto visible = hn::LoadU(integer, tile.visible + column);
  float* scores = tile.weights + column;
  const Index stride = tile.stride();
  V max = nothing;
  for (Index i = 0; i < tile.count; ++i) {
    const auto seen = hn::RebindMask(tag, hn::Gt(visible, hn::Set(integer, static_cast<std::int32_t>(i))));
    const V s = hn::IfThenElse(seen, hn::LoadU(tag, scores + i * stride), nothing);
    hn::StoreU(s, tag, scores + i * stride);
    max = hn::Max(max, s);
  }
  const V shift = hn::IfThenElse(hn::Eq(max, nothing), zero, max);
  V sum = zero;
  for (Index i = 0; i < tile.count; ++i) {
    const V w = SoftmaxExp(tag, hn::Sub(hn::LoadU(tag, scores + i * stride), shift));
    hn::StoreU(w, tag, scores + i * stride);
    sum = hn::Add(sum, w);
  }
  const auto empty = hn::Eq(sum, zero);
  HWY_ALIGN float sums[kTileRows], shifts[kTileRows];
  hn::StoreU(sum, tag, sums);
  hn::StoreU(shift, tag, shifts);
  for (Index i = 0; i < static_cast<Index>(hn::Lanes(tag)); ++i)
    tile.lse[column + i] = sums[i] == 0 ? -std::numeric_limits<float>::infinity() : shifts[i] + std::log(sums[i]);
  return hn::IfThenElse(empty, zero, hn::Div(hn::Set(tag, 1.0f), sum));
}

void AttendAndScore(const ScoreTile& tile, const BlockOverlap& overlap, Index blocks, float* scores, Index stride) {
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  const Index columns = (tile.rows + lanes - 1) / lanes * lanes;
  const auto from_zero = [&](const float*, Index) { return hn::Zero(tag); };
  Multiply({tile.keys, tile.key_stride, 1}, tile.count, tile.head_dim, tile.queries, columns, tile.stride(),
           tile.weights, from_zero);
  HWY_ALIGN float inverse[kTileRows];
  for (Index column = 0; column < columns; column += lanes)
    hn::StoreU(SoftmaxColumn(tag, tile, column), tag, inverse + column);
  Multiply({tile.values, 1, tile.value_stride}, tile.value_dim, tile.count, tile.weights, columns, tile.stride(),
           tile.output, from_zero);
  for (Index column = 0; column < columns; column += lanes) {
    const auto factor = hn::LoadU(tag, inverse + column);
    for (Index j = 0; j < tile.value_dim; ++j) {
      float* at = tile.output + j * tile.stride() + column;
      hn::StoreU(hn::Mul(hn::LoadU(tag, at), factor), tag, at);
    }
  }
  HWY_ALIGN float row_sums[kTileRows];
  for (Index block = 0; block < blocks; ++block) {
    const Index first = block * overlap.per_block - overlap.lead;
    const Index from = first < 0 ? -first : 0;
    const Index to = std::min(static_cast<Index>(overlap.overlap.size()), tile.count - first);
    if (from >= to) continue;
    for (Index column = 0; column < columns; column += lanes) {
      auto sum = hn::Zero(tag);
      for (Index o = from; o < to; ++o)
        sum = hn::MulAdd(hn::Set(tag, overlap.overlap[static_cast<std::size_t>(o)]),
                         hn::LoadU(tag, tile.weights + (first + o) * tile.stride() + column), sum);
      hn::StoreU(hn::Mul(sum, hn::LoadU(tag, inverse + column)), tag, row_sums + column);
    }
    for (Index query = 0; query < tile.rows / tile.heads; ++query) {
      float sum = 0;
      for (Index head = 0; head < tile.heads; ++head) sum += row_sums[query * tile.heads + head];
      scores[query * stride + block] += sum;
    }
  }
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle {

HWY_EXPORT(AttendAndScore);

void attend_and_score(const ScoreTile& tile, const BlockOverlap& overlap, Index blocks, float* scores, Index stride) {
  HWY_DYNAMIC_DISPATCH(AttendAndScore)(tile, overlap, blocks, scores, stride);
}

}  // namespace reticle
#endif
