// Flash attention (Dao et al. 2022) with rows along vectors: scores^T = K Q^T, weights^T = exp(scores^T - max) and
// output^T += V^T weights^T. One register-blocked product computes the first and the last and reads K and V in place;
// in the softmax between them each lane is a row. Per block 2 * keys * rows * (d + dv) flops; the softmax adds about a
// tenth. Queries, scores and outputs of a tile are 32 kB each at d = 128 and fit into L2. Bound by multiply-adds.
#include <algorithm>
#include <bit>

#include <reticle/attention/tile_arrays.hpp>
#include <reticle/attention/tile_kernel.hpp>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/tile_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <reticle/core/ops/exp-inl.hpp>
#include <reticle/core/ops/load-inl.hpp>
#include <reticle/core/ops/matmul-inl.hpp>
#include <reticle/core/ops/quantised-inl.hpp>
#include <reticle/core/ops/soft_cap-inl.hpp>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Stores the weights of two keys as a pair of bfloat16, rounded to nearest.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StorePairs(D, V first, V second, Bf16Pair* to) {
  const hn::RebindToUnsigned<D> bits;
  const auto half = hn::Set(bits, 0x8000u), upper = hn::Set(bits, 0xFFFF0000u);
  const auto low = hn::ShiftRight<16>(hn::Add(hn::BitCast(bits, first), half));
  const auto high = hn::And(hn::Add(hn::BitCast(bits, second), half), upper);
  hn::StoreU(hn::Or(low, high), bits, reinterpret_cast<std::uint32_t*>(to));
}

/// Weights of two keys rounded as StorePairs does, in the order of pairs: the second key's first.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreRounded(D tag, V first, V second, float* to) {
  const hn::RebindToUnsigned<D> bits;
  const auto half = hn::Set(bits, 0x8000u), upper = hn::Set(bits, 0xFFFF0000u);
  const auto rounded = [&](V weight) {
    return hn::BitCast(tag, hn::And(hn::Add(hn::BitCast(bits, weight), half), upper));
  };
  hn::StoreU(rounded(second), tag, to);
  hn::StoreU(rounded(first), tag, to + kTileRows);
}

/// The mask of the rows from `column` on that attend to the key of `word`. Loaded from memory directly where vectors
/// are whole bytes of bits and the machine is little-endian.
template <class D>
HWY_INLINE hn::Mask<D> LoadAttended(D tag, const std::uint64_t* word, Index column) {
  if constexpr (hn::MaxLanes(D()) % 8 == 0 && std::endian::native == std::endian::little) {
    return hn::LoadMaskBits(tag, reinterpret_cast<const std::uint8_t*>(word) + column / 8);
  } else {
    const std::uint64_t bits = *word >> column;
    return hn::LoadMaskBits(tag, reinterpret_cast<const std::uint8_t*>(&bits));
  }
}

/// Turns the scores of `count` keys into weights, for one vector of rows; returns the factor to multiply the rows'
/// outputs by. A NaN or +infinite score makes its row's sum NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V WeighColumn(D tag, const TileBlock& block, Index column, const TileArrays& tile) {
  const V infinity = hn::Set(tag, std::numeric_limits<float>::infinity());
  const V nothing = hn::Neg(infinity);
  float* scores = tile.scores + column;

  const V old_max = hn::LoadU(tag, tile.max + column);
  V max = old_max;
  auto finite = hn::Eq(infinity, infinity);
  const bool in_pairs = tile.product != Bf16Product::exact;
  const V scaling = hn::Set(tag, tile.scaling);
  const bool changed = in_pairs || block.bias != nullptr || block.soft_cap || block.attended != nullptr;
  for (Index i = 0; i < block.count; ++i) {
    V s = hn::LoadU(tag, scores + i * kTileRows);
    if (changed) {
      if (in_pairs) s = hn::Mul(s, scaling);
      if (block.soft_cap) s = SoftCap(tag, s, *block.soft_cap);
      if (block.bias != nullptr) s = hn::Add(s, hn::LoadU(tag, block.bias + i * kTileRows + column));
      if (block.attended != nullptr) {
        s = hn::IfThenElse(LoadAttended(tag, block.attended + i, column), s, nothing);
      }
      hn::StoreU(s, tag, scores + i * kTileRows);
    }
    finite = hn::And(finite, hn::Lt(s, infinity));
    max = hn::Max(max, s);
  }
  hn::StoreU(max, tag, tile.max + column);

  // Rows without a key so far keep the maximum -infinity, and subtract 0 instead of it.
  const V shift = hn::IfThenElse(hn::Eq(max, nothing), hn::Zero(tag), max);
  const V rescale = SoftmaxExp(tag, hn::Sub(old_max, shift));
  V sum = hn::Mul(hn::LoadU(tag, tile.sum + column), rescale);
  const auto weigh = [&](Index i) {
    V w = SoftmaxExp(tag, hn::Sub(hn::LoadU(tag, scores + i * kTileRows), shift));
    if (block.inverse_p != nullptr) w = hn::Mul(w, hn::LoadU(tag, block.inverse_p + i * kTileRows + column));
    if (!in_pairs) hn::StoreU(w, tag, scores + i * kTileRows);
    return w;
  };
  V odd = hn::Zero(tag);
  for (Index i = 0; i < block.count; i += 2) {
    const V first = weigh(i), second = i + 1 < block.count ? weigh(i + 1) : hn::Zero(tag);
    sum = hn::Add(sum, first);
    odd = hn::Add(odd, second);
    if (tile.product == Bf16Product::pairs)
      StorePairs(tag, first, second, tile.weight_pairs + i / 2 * kTileRows + column);
    if (tile.product == Bf16Product::floats) StoreRounded(tag, first, second, scores + i * kTileRows);
  }
  const V poisoned = hn::Set(tag, std::numeric_limits<float>::quiet_NaN());
  hn::StoreU(hn::IfThenElse(finite, hn::Add(sum, odd), poisoned), tag, tile.sum + column);
  return rescale;
}

void FoldTile(const TileBlock& block, const TileArrays& tile) {
  const hn::ScalableTag<float> tag;
  using V = hn::Vec<decltype(tag)>;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  const bool in_pairs = tile.product == Bf16Product::pairs;
  const Index step = in_pairs ? std::max(lanes, kPairLanes) : lanes;
  const Index columns = (tile.rows + step - 1) / step * step;
  if (in_pairs) {
    multiply_bf16(block.key_pairs, block.count, tile.head_dim / 2, tile.query_pairs, columns, kTileRows, nullptr,
                  tile.scores);
  } else {
    Multiply({block.keys, block.key_stride, 1}, block.count, tile.head_dim, tile.queries, columns, kTileRows,
             tile.scores, [&](const float*, Index) { return hn::Zero(tag); });
  }
  HWY_ALIGN float rescale[kTileRows];
  for (Index column = 0; column < columns; column += lanes)
    hn::StoreU(WeighColumn(tag, block, column, tile), tag, rescale + column);
  if (in_pairs) {
    const PairMatrix values{&block.value_pairs->first, 2, 2 * tile.value_dim};
    multiply_bf16(values, tile.value_dim, (block.count + 1) / 2, tile.weight_pairs, columns, kTileRows, rescale,
                  tile.output);
  } else {
    const Index keys = tile.product == Bf16Product::floats ? (block.count + 1) / 2 * 2 : block.count;
    Multiply({block.values, 1, block.value_stride}, tile.value_dim, keys, tile.scores, columns, kTileRows, tile.output,
             [&](const float* at, Index v) -> V {
               return hn::Mul(hn::LoadU(tag, at), hn::LoadU(tag, rescale + v * lanes));
             });
  }
}

template <DType kDType>
void DequantiseRows(const TensorView& matrix, const std::int32_t* indices, Index count, float* to) {
  const auto* base = static_cast<const std::int8_t*>(matrix.data);
  const Index width = matrix.size(1), stride = matrix.stride(0);
  const QuantisedLayout<kDType> layout(width);
  for (Index i = 0; i < count; ++i, to += width) {
    if (indices != nullptr) PrefetchRow(base, stride, indices, count, i, row_bytes(kDType, width), {});
    DequantiseRow(base + (indices == nullptr ? i : indices[i]) * stride, layout, width, to);
  }
}

void PackRows(const TensorView& matrix, const std::int32_t* indices, Index count, float* to) {
  const hn::ScalableTag<float> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  const Index width = matrix.size(1), stride = matrix.stride(0), step = matrix.stride(1);
  if (matrix.dtype == DType::q8) return DequantiseRows<DType::q8>(matrix, indices, count, to);
  if (matrix.dtype == DType::q4) return DequantiseRows<DType::q4>(matrix, indices, count, to);
  dispatch_float(matrix.dtype, "matrix", [&]<class T>() {
    const T* base = static_cast<const T*>(matrix.data);
    for (Index i = 0; i < count; ++i, to += width) {
      const T* row = base + (indices == nullptr ? i : indices[i]) * stride;
      if (indices != nullptr) PrefetchRow(base, stride, indices, count, i, step == 1 ? width : 1, {});
      Index j = 0;
      for (; step == 1 && j + lanes <= width; j += lanes) hn::StoreU(LoadFloat(tag, row + j), tag, to + j);
      for (; j < width; ++j) to[j] = to_float(row[j * step]);
    }
  });
}

void PackRowsInPairs(const TensorView& matrix, const std::int32_t* indices, Index count, float* to) {
  const Index width = matrix.size(1), stride = matrix.stride(0);
  const auto* base = static_cast<const BFloat16*>(matrix.data);
  for (Index i = 0; i < count; ++i, to += width) {
    const BFloat16* row = base + (indices == nullptr ? i : indices[i]) * stride;
    if (indices != nullptr) PrefetchRow(base, stride, indices, count, i, width, {});
    Index j = 0;
#if HWY_TARGET != HWY_SCALAR
    const hn::ScalableTag<float> tag;
    const auto lanes = static_cast<Index>(hn::Lanes(tag));
    for (; j + lanes <= width; j += lanes) hn::StoreU(hn::Shuffle2301(LoadFloat(tag, row + j)), tag, to + j);
#endif
    for (; j < width; j += 2) {
      to[j] = to_float(row[j + 1]);
      to[j + 1] = to_float(row[j]);
    }
  }
}

/// The instruction set chosen may be older than the processor's best. (Better targets have smaller numbers.)
Bf16Product ProductOfPairs() { return HWY_TARGET <= HWY_AVX3 ? bf16_product() : Bf16Product::exact; }

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle {

HWY_EXPORT(FoldTile);
HWY_EXPORT(PackRows);
HWY_EXPORT(PackRowsInPairs);
HWY_EXPORT(ProductOfPairs);

Bf16Product tile_product(const AttentionInputs& inputs) {
  for (const TensorView* tensor : {&inputs.queries, &inputs.keys, &inputs.values}) {
    if (tensor->dtype != DType::bf16 || tensor->stride(3) != 1) return Bf16Product::exact;
  }
  return inputs.head_dim() % 2 == 0 ? HWY_DYNAMIC_DISPATCH(ProductOfPairs)() : Bf16Product::exact;
}

TileState::TileState(Index head_dim, Index value_dim, Bf16Product product, float scaling)
    : head_dim_(head_dim),
      value_dim_(value_dim),
      scores_(static_cast<std::size_t>(kTileKeys * kTileRows)),
      output_(static_cast<std::size_t>(value_dim * kTileRows)),
      product_(product),
      scaling_(scaling) {
  if (product == Bf16Product::pairs) {
    query_pairs_.resize(static_cast<std::size_t>(head_dim / 2 * kTileRows));
    weight_pairs_.resize(static_cast<std::size_t>(kTileKeys / 2 * kTileRows));
  } else {
    queries_.resize(static_cast<std::size_t>(head_dim * kTileRows));
  }
}

void TileState::reset(Index rows) {
  rows_ = rows;
  max_.fill(-std::numeric_limits<float>::infinity());
  sum_.fill(0);
  // Lanes beyond the last row are computed, too, so they must hold numbers.
  std::fill(queries_.begin(), queries_.end(), 0.0f);
  std::fill(query_pairs_.begin(), query_pairs_.end(), Bf16Pair{});
  std::fill(output_.begin(), output_.end(), 0.0f);
}

void TileState::set_query(Index r, std::span<const float> query) {
  const auto row = static_cast<std::size_t>(r);
  if (product_ == Bf16Product::pairs) {
    for (std::size_t i = 0; i + 1 < query.size(); i += 2)
      query_pairs_[i / 2 * kTileRows + row] = {from_float<BFloat16>(query[i]), from_float<BFloat16>(query[i + 1])};
  } else {
    const std::size_t swap = product_ == Bf16Product::floats ? 1 : 0;
    for (std::size_t i = 0; i < query.size(); ++i) queries_[(i ^ swap) * kTileRows + row] = query[i];
  }
}

void TileState::fold(const TileBlock& block) {
  HWY_DYNAMIC_DISPATCH(FoldTile)
  (block, {head_dim_, value_dim_, rows_, max_.data(), sum_.data(), queries_.data(), scores_.data(), output_.data(),
           product_, query_pairs_.data(), weight_pairs_.data(), scaling_});
}

void TileState::copy_output(Index r, std::span<float> to) const {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = output_[i * kTileRows + static_cast<std::size_t>(r)];
}

void pack_rows(const TensorView& matrix, const std::int32_t* indices, Index count, float* to) {
  HWY_DYNAMIC_DISPATCH(PackRows)(matrix, indices, count, to);
}

void pack_rows_in_pairs(const TensorView& matrix, const std::int32_t* indices, Index count, float* to) {
  HWY_DYNAMIC_DISPATCH(PackRowsInPairs)(matrix, indices, count, to);
}

}  // namespace reticle
#endif
