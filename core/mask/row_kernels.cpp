// Words: three streams at memory speed, popcounts in vectors; a run starts where a bit is set and the one before is
// not.
//
// Columns: a merge network. Two ascending vectors of N lanes, one of them reversed, are bitonic; log2(N) stages of
// exchanges leave the N smallest ascending in one vector, the N largest in another. The smallest go out, less those
// equal to their predecessor; the largest meet the next N columns of whichever list is behind. No branch depends on the
// data: about 2 cycles per column with 16 lanes, where a two-pointer merge mispredicts half of its steps (10 or more).
//
// Weighted columns are merged the same way as 64-bit words, column above p; what goes out is decided one column late,
// when its twin and its successor are known.
//
// Bits of columns that are dense enough: a byte for every position, packed by comparisons.
#include <bit>
#include <limits>

#include <reticle/core/mask/row_kernels.hpp>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/mask/row_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class V>
V Apply(BitOp op, V a, V b) {
  return op == BitOp::unite ? hn::Or(a, b) : op == BitOp::intersect ? hn::And(a, b) : hn::AndNot(b, a);
}

inline std::uint64_t Apply(BitOp op, std::uint64_t a, std::uint64_t b) {
  return op == BitOp::unite ? a | b : op == BitOp::intersect ? a & b : a & ~b;
}

template <BitOp kOp>
RowCounts CombineWordsBy(const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out, Index count) {
  const hn::ScalableTag<std::uint64_t> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  if (count == 0) return {};
  RowCounts counts;
  const auto one_word = [&](Index i, std::uint64_t before) {
    const std::uint64_t word = Apply(kOp, a[i], b[i]);
    out[i] = word;
    counts.entries += std::popcount(word);
    counts.runs += std::popcount(word & ~((word << 1) | (before >> 63)));
  };
  one_word(0, 0);
  auto entries = hn::Zero(tag), runs = hn::Zero(tag);
  Index i = 1;
  for (; i + lanes <= count; i += lanes) {
    // The words before, for their top bits, are computed again: they are in L1, and a shuffle across lanes is not
    // cheaper. Where out is a, they are results already; the operations do not mind.
    const auto before = Apply(kOp, hn::LoadU(tag, a + i - 1), hn::LoadU(tag, b + i - 1));
    const auto word = Apply(kOp, hn::LoadU(tag, a + i), hn::LoadU(tag, b + i));
    hn::StoreU(word, tag, out + i);
    entries = hn::Add(entries, hn::PopulationCount(word));
    const auto follows = hn::Or(hn::Add(word, word), hn::ShiftRight<63>(before));
    runs = hn::Add(runs, hn::PopulationCount(hn::AndNot(follows, word)));
  }
  counts.entries += static_cast<Index>(hn::GetLane(hn::SumOfLanes(tag, entries)));
  counts.runs += static_cast<Index>(hn::GetLane(hn::SumOfLanes(tag, runs)));
  for (; i < count; ++i) one_word(i, out[i - 1]);
  return counts;
}

RowCounts CombineWords(BitOp op, const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out, Index count) {
  switch (op) {
    case BitOp::unite:
      return CombineWordsBy<BitOp::unite>(a, b, out, count);
    case BitOp::intersect:
      return CombineWordsBy<BitOp::intersect>(a, b, out, count);
    case BitOp::subtract:
      break;
  }
  return CombineWordsBy<BitOp::subtract>(a, b, out, count);
}

/// Sorts a bitonic vector: exchanges at distances kDistance, kDistance / 2, ..., 1. The partner of lane l is l ^
/// distance, and lanes with that bit set keep the larger of the two. Recursion, so that the permutations stay in
/// registers.
template <std::size_t kDistance, class D, class V>
HWY_INLINE V SortBitonic(D tag, V v) {
  if constexpr (kDistance == 0) {
    return v;
  } else {
    const auto lane = hn::Iota(tag, 0);
    const auto bit = hn::Set(tag, static_cast<hn::TFromD<D>>(kDistance));
    const V partner = hn::TableLookupLanes(v, hn::IndicesFromVec(tag, hn::Xor(lane, bit)));
    const auto upper = hn::Eq(hn::And(lane, bit), bit);
    return SortBitonic<kDistance / 2>(tag, hn::IfThenElse(upper, hn::Max(v, partner), hn::Min(v, partner)));
  }
}

/// `count` elements, fewer than a vector holds, and `otherwise` behind them.
template <class D>
HWY_INLINE hn::Vec<D> LoadFirst(D tag, const hn::TFromD<D>* from, std::ptrdiff_t count, hn::TFromD<D> otherwise) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2  // whose masked loads do not touch the rest
  const auto first = hn::FirstN(tag, static_cast<std::size_t>(count));
  return hn::IfThenElse(first, hn::MaskedLoad(first, tag, from), hn::Set(tag, otherwise));
#else
  HWY_ALIGN hn::TFromD<D> elements[HWY_MAX_BYTES / sizeof(hn::TFromD<D>)];
  for (std::ptrdiff_t i = 0; i < static_cast<std::ptrdiff_t>(hn::Lanes(tag)); ++i)
    elements[i] = i < count ? from[i] : otherwise;
  return hn::Load(tag, elements);
#endif
}

/// One list, vector by vector; beyond its end there is kNone.
struct ColumnReader {
  static constexpr std::int32_t kNone = std::numeric_limits<std::int32_t>::max();
  const std::int32_t* at;
  const std::int32_t* end;

  std::int32_t head() const { return at < end ? *at : kNone; }

  template <class D>
  HWY_INLINE hn::Vec<D> next(D tag) {
    const auto lanes = static_cast<std::ptrdiff_t>(hn::Lanes(tag));
    if (HWY_LIKELY(end - at >= lanes)) {
      const auto v = hn::LoadU(tag, at);
      at += lanes;
      return v;
    }
    const auto rest = LoadFirst(tag, at, end - at, kNone);
    at = end;
    return rest;
  }
};

RowCounts MergeColumns(const std::int32_t* a, Index a_count, const std::int32_t* b, Index b_count, std::int32_t* out) {
  const hn::ScalableTag<std::int32_t> tag;
  using V = hn::Vec<decltype(tag)>;
  const std::size_t lanes = hn::Lanes(tag);

  const auto lane = hn::Iota(tag, 0);
  const auto exchanges = [&](V v) HWY_ATTR { return SortBitonic<hn::MaxLanes(tag) / 2>(tag, v); };
  ColumnReader from_a{a, a + a_count}, from_b{b, b + b_count};
  const V none = hn::Set(tag, ColumnReader::kNone), one = hn::Set(tag, 1);
  const auto last = static_cast<std::int32_t>(lanes - 1);
  const auto rotation = hn::IndicesFromVec(tag, hn::And(hn::Add(lane, hn::Set(tag, last)), hn::Set(tag, last)));
  const auto first_lane = hn::FirstN(tag, 1);
  V before = hn::Set(tag, -2);  // rotated; neither equal to a column nor one before it
  std::int32_t* to = out;
  std::size_t joined = 0;
  const auto emit = [&](V smallest) {
    const V rotated = hn::TableLookupLanes(smallest, rotation);
    const V previous = hn::IfThenElse(first_lane, before, rotated);
    before = rotated;
    const auto fresh = hn::And(hn::Ne(smallest, previous), hn::Ne(smallest, none));
    joined += hn::CountTrue(tag, hn::And(fresh, hn::Eq(smallest, hn::Add(previous, one))));
    // Not CompressStore: with a memory operand the instruction is microcoded on some processors. There is room.
    hn::StoreU(hn::Compress(smallest, fresh), tag, to);
    to += hn::CountTrue(tag, fresh);
  };
  V largest = from_a.head() <= from_b.head() ? from_a.next(tag) : from_b.next(tag);
  const auto take = [&](V v) {
    const V reversed = hn::Reverse(tag, v);
    emit(exchanges(hn::Min(largest, reversed)));
    largest = exchanges(hn::Max(largest, reversed));
  };
  // While both lists have whole vectors: arithmetic selects instead of a branch that nobody could predict.
  const auto step = static_cast<std::ptrdiff_t>(lanes);
  while (from_a.end - from_a.at >= step && from_b.end - from_b.at >= step) {
    const bool a_is_behind = *from_a.at <= *from_b.at;
    const std::int32_t* source = a_is_behind ? from_a.at : from_b.at;
    const std::ptrdiff_t taken = a_is_behind ? step : 0;
    from_a.at += taken;
    from_b.at += step - taken;
    take(hn::LoadU(tag, source));
  }
  while (from_a.at < from_a.end || from_b.at < from_b.end)
    take((from_a.head() <= from_b.head() ? from_a : from_b).next(tag));
  emit(largest);
  const Index entries = to - out;
  return {entries, entries - static_cast<Index>(joined)};
}

/// A weighted list as 64-bit words, the column above the bits of p, so that they sort by column and carry p along. A
/// list without p reads ones, again and again.
struct WeightedReader {
  static constexpr std::size_t kMost = HWY_MAX_BYTES / sizeof(std::uint64_t);
  const std::int32_t* columns;
  const float* p;
  Index left;
  float ones[kMost];

  WeightedReader(const std::int32_t* columns, const float* p, Index count) : columns(columns), p(p), left(count) {
    std::fill(ones, ones + kMost, 1.0f);
  }

  std::int32_t head() const { return left > 0 ? *columns : ColumnReader::kNone; }
  const float* next_p() const { return p == nullptr ? ones : p; }

  template <class D>
  HWY_INLINE hn::Vec<D> next(D tag) {
    const auto lanes = static_cast<Index>(hn::Lanes(tag));
    if (HWY_LIKELY(left >= lanes)) {
      const auto word = pack(tag, columns, next_p());
      skip(lanes);
      return word;
    }
    const hn::Rebind<std::int32_t, D> columns_tag;
    const hn::Rebind<float, D> p_tag;
    const auto rest = LoadFirst(columns_tag, columns, left, ColumnReader::kNone);
    const auto rest_p = LoadFirst(p_tag, next_p(), left, 1.0f);
    skip(left);
    return pack(tag, rest, rest_p);
  }

  template <class D>
  static HWY_INLINE hn::Vec<D> pack(D tag, const std::int32_t* columns, const float* p) {
    return pack(tag, hn::LoadU(hn::Rebind<std::int32_t, D>(), columns), hn::LoadU(hn::Rebind<float, D>(), p));
  }

  template <class D, class C, class P>
  static HWY_INLINE hn::Vec<D> pack(D tag, C columns, P p) {
    const hn::Rebind<std::uint32_t, D> bits;
    const auto high = hn::PromoteTo(tag, hn::BitCast(bits, columns));
    return hn::Or(hn::ShiftLeft<32>(high), hn::PromoteTo(tag, hn::BitCast(bits, p)));
  }

  void skip(Index count) {
    columns += count;
    if (p != nullptr) p += count;
    left -= count;
  }
};

template <UnionRule kRule, class V>
V CombineP(V a, V b) {
  const hn::DFromV<V> tag;
  const auto one = hn::Set(tag, 1.0f);
  if (kRule == UnionRule::add) return hn::Min(one, hn::Add(a, b));
  if (kRule == UnionRule::max) return hn::Max(a, b);
  return hn::Sub(one, hn::Mul(hn::Sub(one, a), hn::Sub(one, b)));
}

/// How many go on with the run of the one before.
Index CountJoined(const std::int32_t* columns, const float* p, Index count) {
  Index joined = 0;
  for (Index i = 1; i < count; ++i) joined += (columns[i] == columns[i - 1] + 1) & (p[i] == p[i - 1]);
  return joined;
}

template <UnionRule kRule>
RowCounts MergeWeightedBy(WeightedReader from_a, WeightedReader from_b, std::int32_t* out, float* out_p) {
  const hn::ScalableTag<std::uint64_t> tag;
  const hn::Rebind<std::uint32_t, decltype(tag)> half;
  const hn::Rebind<std::int32_t, decltype(tag)> columns_tag;
  const hn::Rebind<float, decltype(tag)> p_tag;
  using V = hn::Vec<decltype(tag)>;
  const std::size_t lanes = hn::Lanes(tag);
  const auto exchanges = [&](V v) HWY_ATTR { return SortBitonic<hn::MaxLanes(tag) / 2>(tag, v); };
  // Lane l takes lane l - by of its vector; the first `by` lanes take those of the vector before.
  const auto rotation = [&](std::size_t by) HWY_ATTR {
    const auto last = hn::Set(half, static_cast<std::uint32_t>(lanes - 1));
    const auto offset = hn::Set(half, static_cast<std::uint32_t>(lanes - by % lanes));
    return hn::And(hn::Add(hn::Iota(half, 0), offset), last);
  };
  const auto by_one = rotation(1), by_two = rotation(2);
  const auto first = hn::FirstN(columns_tag, 1), first_two = hn::FirstN(columns_tag, lanes < 2 ? 1 : 2);
  const auto none = hn::Set(columns_tag, ColumnReader::kNone);
  const auto one = hn::Set(p_tag, 1.0f);
  auto column_one = none, column_two = none;
  auto p_one = one, p_two = one;
  std::int32_t* to = out;
  // A column goes out once the next one is seen to be another, with the p of its twin, the one before, if it has one.
  const auto emit = [&](V word) HWY_ATTR {
    const auto next = hn::BitCast(columns_tag, hn::TruncateTo(half, hn::ShiftRight<32>(word)));
    const auto next_p = hn::BitCast(p_tag, hn::TruncateTo(half, word));
    const auto back = [&](auto v, auto by) HWY_ATTR {
      return hn::TableLookupLanes(v, hn::IndicesFromVec(hn::DFromV<decltype(v)>(), by));
    };
    const auto rotated = back(next, by_one), rotated_two = back(next, by_two);
    const auto rotated_p = back(next_p, by_one), rotated_p_two = back(next_p, by_two);
    const auto column = hn::IfThenElse(first, column_one, rotated);
    const auto p = hn::IfThenElse(hn::RebindMask(p_tag, first), p_one, rotated_p);
    const auto twin = lanes < 2 ? column_two : hn::IfThenElse(first_two, column_two, rotated_two);
    const auto twin_p = lanes < 2 ? p_two : hn::IfThenElse(hn::RebindMask(p_tag, first_two), p_two, rotated_p_two);
    column_two = lanes < 2 ? column_one : rotated_two;
    p_two = lanes < 2 ? p_one : rotated_p_two;
    column_one = rotated;
    p_one = rotated_p;
    const auto last_of_it = hn::And(hn::Ne(column, next), hn::Ne(column, none));
    const auto whole = hn::IfThenElse(hn::RebindMask(p_tag, hn::Eq(column, twin)), CombineP<kRule>(p, twin_p), p);
    hn::StoreU(hn::Compress(column, last_of_it), columns_tag, to);
    hn::StoreU(hn::Compress(whole, hn::RebindMask(p_tag, last_of_it)), p_tag, out_p + (to - out));
    to += hn::CountTrue(columns_tag, last_of_it);
  };
  V largest = (from_a.head() <= from_b.head() ? from_a : from_b).next(tag);
  const auto take = [&](V v) {
    const V reversed = hn::Reverse(tag, v);
    emit(exchanges(hn::Min(largest, reversed)));
    largest = exchanges(hn::Max(largest, reversed));
  };
  // While both lists have whole vectors: arithmetic selects instead of a branch that nobody could predict.
  const auto step = static_cast<Index>(lanes);
  while (from_a.left >= step && from_b.left >= step) {
    const bool a_is_behind = *from_a.columns <= *from_b.columns;
    const std::int32_t* columns = a_is_behind ? from_a.columns : from_b.columns;
    const float* p = a_is_behind ? from_a.next_p() : from_b.next_p();
    const Index of_a = a_is_behind ? step : 0;
    from_a.skip(of_a);
    from_b.skip(step - of_a);
    take(WeightedReader::pack(tag, columns, p));
  }
  while (from_a.left > 0 || from_b.left > 0) take((from_a.head() <= from_b.head() ? from_a : from_b).next(tag));
  emit(largest);
  emit(hn::Set(tag, std::uint64_t{ColumnReader::kNone} << 32));
  return {to - out, (to - out) - CountJoined(out, out_p, to - out)};
}

RowCounts MergeWeighted(UnionRule rule, const std::int32_t* a, const float* a_p, Index a_count, const std::int32_t* b,
                        const float* b_p, Index b_count, std::int32_t* out, float* out_p) {
  const WeightedReader from_a(a, a_p, a_count), from_b(b, b_p, b_count);
  switch (rule) {
    case UnionRule::add:
      return MergeWeightedBy<UnionRule::add>(from_a, from_b, out, out_p);
    case UnionRule::max:
      return MergeWeightedBy<UnionRule::max>(from_a, from_b, out, out_p);
    case UnionRule::independent:
      break;
  }
  return MergeWeightedBy<UnionRule::independent>(from_a, from_b, out, out_p);
}

/// put(column) for the columns below `end` from `next` on; returns the first beyond. Eight at a time: putting one is a
/// few instructions, and the bounds would be half of them.
template <class Put>
HWY_INLINE Index PutBelow(std::int32_t end, const std::int32_t* columns, Index next, Index count, Put&& put) {
  for (; next + 8 <= count && columns[next + 7] < end; next += 8) {
    for (Index i = next; i < next + 8; ++i) put(columns[i]);
  }
  for (; next < count && columns[next] < end; ++next) put(columns[next]);
  return next;
}

/// Bit by bit. Neighbouring columns mostly fall into the same word, whose read-modify-write has to wait for the last
/// one: eight places of the list are worked on in turn.
void SetBitsOneByOne(const std::int32_t* columns, Index count, std::int32_t origin, std::uint64_t* words) {
  constexpr Index kStreams = 8;
  const auto set = [&](std::int32_t column) { words[(column - origin) >> 6] |= std::uint64_t{1} << (column & 63); };
  const Index stride = count / kStreams;
  for (Index i = 0; i < stride; ++i) {
    for (Index stream = 0; stream < kStreams; ++stream) set(columns[stream * stride + i]);
  }
  for (Index i = stride * kStreams; i < count; ++i) set(columns[i]);
}

void SetBits(const std::int32_t* columns, Index count, std::int32_t origin, std::uint64_t* words) {
  const hn::CappedTag<std::uint8_t, 64> tag;
  constexpr Index kLanes = hn::MaxLanes(tag), kBlock = 8192;
  constexpr bool kBytesOfBits = kLanes % 8 == 0 && std::endian::native == std::endian::little;
  constexpr Index kPositionsPerColumn = 24;  // fewer positions to a column: bytes are cheaper than bits
  if (count == 0) return;
  const Index width = columns[count - 1] + Index{1} - origin;
  if (!kBytesOfBits || count * kPositionsPerColumn < width) return SetBitsOneByOne(columns, count, origin, words);
  HWY_ALIGN std::uint8_t bytes[kBlock] = {};
  Index next = 0;
  for (Index begin = 0; begin < width; begin += kBlock) {
    const Index end = std::min(width, begin + kBlock), first = origin + begin;
    next = PutBelow(static_cast<std::int32_t>(origin + end), columns, next, count,
                    [&](std::int32_t column) { bytes[column - first] = 1; });
    for (Index word = 0; word * 64 < end - begin; ++word) {
      std::uint64_t packed = 0;
      for (Index byte = 0; byte < 64; byte += kLanes) {
        std::uint8_t* const from = bytes + word * 64 + byte;
        hn::StoreMaskBits(tag, hn::Ne(hn::Load(tag, from), hn::Zero(tag)),
                          reinterpret_cast<std::uint8_t*>(&packed) + byte / 8);
        hn::Store(hn::Zero(tag), tag, from);
      }
      words[begin / 64 + word] |= packed;
    }
  }
}

Index CountBits(const std::uint64_t* words, Index count) {
  Index bits = 0;
  for (Index w = 0; w < count; ++w) bits += std::popcount(words[w]);
  return bits;
}

/// Counters of 64 columns at once, bit-sliced: plane i holds bit i of each column's count. Adding a row is a ripple of
/// half adders, two operations a plane; a comparison with a constant goes from the lowest bit up.
template <std::size_t kPlanes, class D>
HWY_INLINE void CountColumns(D tag, Index least, const std::uint64_t* words, Index rows, Index width,
                             std::uint64_t* by_enough, std::uint64_t* by_all) {
  using V = hn::Vec<D>;
  V planes[kPlanes];
  for (V& plane : planes) plane = hn::Zero(tag);
  V all = hn::Set(tag, ~std::uint64_t{0});
  for (Index r = 0; r < rows; ++r) {
    V carry = hn::LoadU(tag, words + r * width);
    all = hn::And(all, carry);
    for (V& plane : planes) {
      const V sum = hn::Xor(plane, carry);
      carry = hn::And(plane, carry);
      plane = sum;
    }
  }
  V enough = hn::Set(tag, ~std::uint64_t{0});
  for (std::size_t i = 0; i < kPlanes; ++i)
    enough = (least >> i & 1) != 0 ? hn::And(enough, planes[i]) : hn::Or(enough, planes[i]);
  hn::StoreU(enough, tag, by_enough);
  hn::StoreU(all, tag, by_all);
}

RowCounts CountDense(const float* p, Index count, bool* weighted) {
  RowCounts counts;
  const auto from = [&](auto tag, Index& k) {
    const auto lanes = static_cast<Index>(hn::Lanes(tag));
    const auto zero = hn::Zero(tag), one = hn::Set(tag, 1.0f);
    for (; k + lanes <= count; k += lanes) {
      const auto here = hn::LoadU(tag, p + k), before = hn::LoadU(tag, p + k - 1);
      const auto attended = hn::Gt(here, zero);
      counts.entries += static_cast<Index>(hn::CountTrue(tag, attended));
      counts.runs += static_cast<Index>(hn::CountTrue(tag, hn::And(attended, hn::Ne(here, before))));
      *weighted |= !hn::AllFalse(tag, hn::And(attended, hn::Lt(here, one)));
    }
  };
  if (count == 0) return counts;
  counts.entries = counts.runs = p[0] > 0 ? 1 : 0;
  *weighted |= p[0] > 0 && p[0] < 1;
  Index k = 1;
  from(hn::ScalableTag<float>(), k);
  from(hn::CappedTag<float, 1>(), k);
  return counts;
}

/// A vector of columns at a time, packed by its bits: the cost is by words, not by entries.
Index ColumnsOfBits(const std::uint64_t* words, Index count, std::int32_t origin, std::int32_t* out) {
  const hn::CappedTag<std::int32_t, 16> tag;
  const auto lanes = static_cast<int>(hn::Lanes(tag));
  const auto from_zero = hn::Iota(tag, 0);
  std::int32_t* const begin = out;
  for (Index w = 0; w < count; ++w) {
    if (words[w] == 0) continue;
    const auto first = static_cast<std::int32_t>(origin + w * 64);
    for (int bit = 0; bit < 64; bit += lanes) {
      const std::uint64_t bits = words[w] >> bit & ((std::uint64_t{1} << lanes) - 1);
      const auto columns = hn::Add(from_zero, hn::Set(tag, first + bit));
      hn::StoreU(hn::Compress(columns, hn::LoadMaskBits(tag, reinterpret_cast<const std::uint8_t*>(&bits))), tag, out);
      out += std::popcount(bits);
    }
  }
  return out - begin;
}

/// For up to 2^kPlanes - 1 rows.
template <std::size_t kPlanes>
void HeldBy(Index least, const std::uint64_t* words, Index rows, Index width, std::uint64_t* by_enough,
            std::uint64_t* by_all) {
  const hn::ScalableTag<std::uint64_t> tag;
  const hn::CappedTag<std::uint64_t, 1> one;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  Index w = 0;
  for (; w + lanes <= width; w += lanes)
    CountColumns<kPlanes>(tag, least, words + w, rows, width, by_enough + w, by_all + w);
  for (; w < width; ++w) CountColumns<kPlanes>(one, least, words + w, rows, width, by_enough + w, by_all + w);
}

Index HeldByAtLeast(Index least, const std::uint64_t* words, Index rows, Index width, std::uint64_t* by_enough,
                    std::uint64_t* by_all) {
  (rows < 8 && least < 8 ? HeldBy<3> : HeldBy<7>)(least, words, rows, width, by_enough, by_all);
  return CountBits(by_enough, width);
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle {

HWY_EXPORT(CombineWords);
HWY_EXPORT(MergeColumns);
HWY_EXPORT(MergeWeighted);
HWY_EXPORT(SetBits);
HWY_EXPORT(HeldByAtLeast);
HWY_EXPORT(ColumnsOfBits);
HWY_EXPORT(CountBits);
HWY_EXPORT(CountDense);

RowCounts combine_words(BitOp op, const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out, Index count) {
  return HWY_DYNAMIC_DISPATCH(CombineWords)(op, a, b, out, count);
}

RowCounts merge_columns(const std::int32_t* a, Index a_count, const std::int32_t* b, Index b_count, std::int32_t* out) {
  return HWY_DYNAMIC_DISPATCH(MergeColumns)(a, a_count, b, b_count, out);
}

RowCounts merge_weighted_columns(UnionRule rule, const std::int32_t* a, const float* a_p, Index a_count,
                                 const std::int32_t* b, const float* b_p, Index b_count, std::int32_t* out,
                                 float* out_p) {
  return HWY_DYNAMIC_DISPATCH(MergeWeighted)(rule, a, a_p, a_count, b, b_p, b_count, out, out_p);
}

RowCounts count_dense(const float* p, Index count, bool& weighted) {
  return HWY_DYNAMIC_DISPATCH(CountDense)(p, count, &weighted);
}

Index count_bits(const std::uint64_t* words, Index count) { return HWY_DYNAMIC_DISPATCH(CountBits)(words, count); }

Index columns_of_bits(const std::uint64_t* words, Index count, std::int32_t origin, std::int32_t* out) {
  return HWY_DYNAMIC_DISPATCH(ColumnsOfBits)(words, count, origin, out);
}

Index held_by_at_least(Index least, const std::uint64_t* words, Index rows, Index width, std::uint64_t* by_enough,
                       std::uint64_t* by_all) {
  return HWY_DYNAMIC_DISPATCH(HeldByAtLeast)(least, words, rows, width, by_enough, by_all);
}

void set_bits(const std::int32_t* columns, Index count, std::int32_t origin, std::uint64_t* words) {
  HWY_DYNAMIC_DISPATCH(SetBits)(columns, count, origin, words);
}

void set_bit_range(std::uint64_t* words, Index begin, Index end) {
  if (begin >= end) return;
  const std::uint64_t first = ~std::uint64_t{0} << (begin & 63), last = ~std::uint64_t{0} >> (63 - ((end - 1) & 63));
  const Index from = begin >> 6, to = (end - 1) >> 6;
  if (from == to) {
    words[from] |= first & last;
    return;
  }
  words[from] |= first;
  std::fill(words + from + 1, words + to, ~std::uint64_t{0});
  words[to] |= last;
}

}  // namespace reticle
#endif
