// The five products of flash attention's backward pass (Dao et al. 2022), each by the register-blocked product that the
// forward pass uses: S = K Q^T and dP = V dO^T with rows along vectors, then dV = P dO, dK = dS Q and dQ^T = K^T dS,
// with P = exp(S - lse) and dS = P (dP - delta). Per block 2 * keys * rows * (3 d + 2 dv) flops, 2.5 times the forward
// pass. Bound by multiply-adds.
#include <algorithm>
#include <limits>
#include <span>

#include <reticle/attention/backward_arrays.hpp>
#include <reticle/attention/backward_kernel.hpp>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/backward_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// must follow foreach_target.h
#include <reticle/core/ops/exp-inl.hpp>
#include <reticle/core/ops/matmul-inl.hpp>
#include <reticle/core/ops/soft_cap-inl.hpp>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Turns scores into weights, and gradients of the weights into gradients of the scores.
template <class D, class V = hn::Vec<D>>
void DifferentiateColumn(D tag, const TileBlock& block, Index column, const BackwardArrays& tile) {
  const V one = hn::Set(tag, 1.0f), infinity = hn::Set(tag, std::numeric_limits<float>::infinity());
  const V lse = hn::LoadU(tag, tile.lse + column), delta = hn::LoadU(tag, tile.delta + column);
  // A row that attends to nothing has no weights to differentiate.
  const auto attends_at_all = hn::Lt(hn::Neg(infinity), lse);
  const V shift = hn::IfThenElseZero(attends_at_all, lse);
  for (Index i = 0; i < block.count; ++i) {
    float* const at = tile.weights + i * kTileRows + column;
    V s = hn::LoadU(tag, at), slope = one;
    if (block.soft_cap) {
      s = SoftCap(tag, s, *block.soft_cap);
      const V share = hn::Mul(s, hn::Set(tag, 1 / *block.soft_cap));
      slope = hn::NegMulAdd(share, share, one);
    }
    if (block.bias != nullptr) s = hn::Add(s, hn::LoadU(tag, block.bias + i * kTileRows + column));
    V w = SoftmaxExp(tag, hn::Sub(s, shift));
    if (block.inverse_p != nullptr) w = hn::Mul(w, hn::LoadU(tag, block.inverse_p + i * kTileRows + column));
    w = hn::IfThenElseZero(attends_at_all, w);
    if (block.attended != nullptr) {
      const std::uint64_t bits = block.attended[i] >> column;
      w = hn::IfThenElseZero(hn::LoadMaskBits(tag, reinterpret_cast<const std::uint8_t*>(&bits)), w);
    }
    hn::StoreU(w, tag, at);
    float* const d_score = tile.d_scores + i * kTileRows + column;
    hn::StoreU(hn::Mul(hn::Mul(w, slope), hn::Sub(hn::LoadU(tag, d_score), delta)), tag, d_score);
  }
}

void FoldBackward(const TileBlock& block, const BackwardArrays& tile) {
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  const Index columns = (tile.rows + lanes - 1) / lanes * lanes;
  const auto from_zero = [&](const float*, Index) { return hn::Zero(tag); };
  const auto as_it_is = [&](const float* at, Index) { return hn::LoadU(tag, at); };
  Multiply({block.keys, block.key_stride, 1}, block.count, tile.head_dim, tile.queries, columns, kTileRows,
           tile.weights, from_zero);
  Multiply({block.values, block.value_stride, 1}, block.count, tile.value_dim, tile.d_outputs, columns, kTileRows,
           tile.d_scores, from_zero);
  for (Index column = 0; column < columns; column += lanes) DifferentiateColumn(tag, block, column, tile);
  Multiply({tile.weights, kTileRows, 1}, block.count, tile.rows, tile.d_output_rows, tile.value_stride,
           tile.value_stride, tile.d_values, from_zero);
  Multiply({tile.d_scores, kTileRows, 1}, block.count, tile.rows, tile.query_rows, tile.query_stride, tile.query_stride,
           tile.d_keys, from_zero);
  Multiply({block.keys, 1, block.key_stride}, tile.head_dim, block.count, tile.d_scores, columns, kTileRows,
           tile.d_queries, as_it_is);
}

void AddScaled(const float* HWY_RESTRICT from, float factor, Index count, float* HWY_RESTRICT to) {
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  const auto by = hn::Set(tag, factor);
  Index i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(hn::MulAdd(by, hn::LoadU(tag, from + i), hn::LoadU(tag, to + i)), tag, to + i);
  for (; i < count; ++i) to[i] += factor * from[i];
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle {

HWY_EXPORT(FoldBackward);
HWY_EXPORT(AddScaled);

namespace {

/// Rows are padded to the widest vectors that any target has.
constexpr Index kPadding = 16;
Index padded(Index width) { return (width + kPadding - 1) / kPadding * kPadding; }
Array<float> zeros(Index count) { return Array<float>(static_cast<std::size_t>(count), 0.0f); }

}  // namespace

BackwardTile::BackwardTile(Index head_dim, Index value_dim)
    : head_dim_(head_dim),
      value_dim_(value_dim),
      query_stride_(padded(head_dim)),
      value_stride_(padded(value_dim)),
      queries_(zeros(head_dim * kTileRows)),
      d_outputs_(zeros(value_dim * kTileRows)),
      query_rows_(zeros(query_stride_ * kTileRows)),
      d_output_rows_(zeros(value_stride_ * kTileRows)),
      lse_(zeros(kTileRows)),
      delta_(zeros(kTileRows)),
      weights_(zeros(kTileKeys * kTileRows)),
      d_scores_(zeros(kTileKeys * kTileRows)),
      d_queries_(zeros(head_dim * kTileRows)),
      d_keys_(zeros(kTileKeys * query_stride_)),
      d_values_(zeros(kTileKeys * value_stride_)) {}

void BackwardTile::reset(Index rows) {
  rows_ = rows;
  // Lanes beyond the last row are computed, too: zeros, and an LSE of -infinity, make them contribute nothing.
  std::fill(queries_.begin(), queries_.end(), 0.0f);
  std::fill(d_outputs_.begin(), d_outputs_.end(), 0.0f);
  std::fill(lse_.begin(), lse_.end(), -std::numeric_limits<float>::infinity());
  std::fill(delta_.begin(), delta_.end(), 0.0f);
  std::fill(d_queries_.begin(), d_queries_.end(), 0.0f);
}

void BackwardTile::set_row(Index r, std::span<const float> query, std::span<const float> d_output, float lse,
                           float delta) {
  const auto row = static_cast<std::size_t>(r);
  for (std::size_t i = 0; i < query.size(); ++i) queries_[i * kTileRows + row] = query[i];
  for (std::size_t i = 0; i < d_output.size(); ++i) d_outputs_[i * kTileRows + row] = d_output[i];
  std::copy(query.begin(), query.end(), query_rows_.begin() + r * query_stride_);
  std::copy(d_output.begin(), d_output.end(), d_output_rows_.begin() + r * value_stride_);
  lse_[row] = lse;
  delta_[row] = delta;
}

void BackwardTile::fold(const TileBlock& block) {
  HWY_DYNAMIC_DISPATCH(FoldBackward)
  (block, {head_dim_, value_dim_, query_stride_, value_stride_, rows_, queries_.data(), d_outputs_.data(),
           query_rows_.data(), d_output_rows_.data(), lse_.data(), delta_.data(), weights_.data(), d_scores_.data(),
           d_queries_.data(), d_keys_.data(), d_values_.data()});
}

void BackwardTile::add_d_query(Index r, std::span<float> to) const {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += d_queries_[i * kTileRows + static_cast<std::size_t>(r)];
}

void add_scaled(const float* from, float factor, Index count, float* to) {
  HWY_DYNAMIC_DISPATCH(AddScaled)(from, factor, count, to);
}

}  // namespace reticle
#endif
