// Bit masks: read two streams, write one, bandwidth-bound, with popcounts in vectors. A run starts at a set bit whose
// predecessor is clear.
//
// Column lists: a bitonic merge network (Batcher 1968; Chhugani et al. 2008). min(a[0, N), reverse(b[0, N))) holds the
// N smallest columns of two ascending lists; the number of lanes taken from each list advances it. The minimum is a
// bitonic sequence, which log2(N) exchange stages sort; columns equal to their predecessor are dropped on output. No
// branch depends on the data, and the next step waits only for a load, a comparison and a count, not for the exchanges:
// about 2 cycles per column with 16 lanes, 3 with p, where a two-pointer merge mispredicts half of its steps (10 cycles
// or more). The p of weighted columns move with them through the exchanges; each column is written one lane late, when
// it is known whether its successor is a duplicate.
//
// Bits from one dense column list: a byte per position, packed to bits by comparisons. Bits from two lists: word by
// word, each list's columns of the word become shifted ones, folded by or. The loads, comparisons and counts of the two
// lists overlap; with one list each step would wait for the one before.
#include <algorithm>
#include <bit>
#include <limits>

#include <reticle/core/mask/row_kernels.hpp>
#include <reticle/core/mask/run.hpp>

#define HWY_WANT_AVX3_DL  // compresses bytes and counts bits in vectors (Ice Lake, Zen 4 and later)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/mask/row_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace reticle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class V>
V Apply(SetOp op, V a, V b) {
  return is_union(op) ? hn::Or(a, b) : op == SetOp::intersect ? hn::And(a, b) : hn::AndNot(b, a);
}

inline std::uint64_t Apply(SetOp op, std::uint64_t a, std::uint64_t b) {
  return is_union(op) ? a | b : op == SetOp::intersect ? a & b : a & ~b;
}

template <SetOp kOp>
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
    // The top bits of the preceding words are needed. The words are computed again: they are in L1, and a shuffle
    // across lanes is not cheaper. If out is a, they already hold results, and applying any of the operations again
    // with the same b changes nothing.
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

RowCounts CombineWords(SetOp op, const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out, Index count) {
  if (is_union(op)) return CombineWordsBy<SetOp::max>(a, b, out, count);
  return op == SetOp::intersect ? CombineWordsBy<SetOp::intersect>(a, b, out, count)
                                : CombineWordsBy<SetOp::subtract>(a, b, out, count);
}

/// Sorts a bitonic vector by exchanges at distances kDistance, kDistance / 2, ..., 1. The partner of lane l is l ^
/// distance, and lanes with that bit set keep the larger of the two. Recursion at compile time keeps the permutations
/// in registers.
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

/// Loads `count` elements, fewer than a vector holds, and fills the other lanes with `otherwise`.
template <class D>
HWY_INLINE hn::Vec<D> LoadFirst(D tag, const hn::TFromD<D>* from, std::ptrdiff_t count, hn::TFromD<D> otherwise) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2  // masked loads here do not touch memory of masked-off lanes
  const auto first = hn::FirstN(tag, static_cast<std::size_t>(count));
  return hn::IfThenElse(first, hn::MaskedLoad(first, tag, from), hn::Set(tag, otherwise));
#else
  HWY_ALIGN hn::TFromD<D> elements[HWY_MAX_BYTES / sizeof(hn::TFromD<D>)];
  for (std::ptrdiff_t i = 0; i < static_cast<std::ptrdiff_t>(hn::Lanes(tag)); ++i)
    elements[i] = i < count ? from[i] : otherwise;
  return hn::Load(tag, elements);
#endif
}

/// Greater than every column.
constexpr std::int32_t kNone = std::numeric_limits<std::int32_t>::max();

/// A column list with, if it is weighted, the p of each column. Elements before `at` have been taken.
struct ListReader {
  const std::int32_t* columns;
  const float* p;
  Index count;
  Index at = 0;

  Index left() const { return count - at; }

  template <bool kWhole>
  void skip(std::size_t taken) {
    at += static_cast<Index>(taken);
    if constexpr (!kWhole) at = std::min(at, count);
  }

  /// The next vector of columns, padded with kNone beyond the last. `kWhole` promises that at least a vector is left.
  template <bool kWhole, class D>
  HWY_INLINE hn::Vec<D> next(D tag) const {
    if constexpr (kWhole) return hn::LoadU(tag, columns + at);
    return LoadFirst(tag, columns + at, left(), kNone);
  }

  template <bool kWhole, class D>
  HWY_INLINE hn::Vec<D> next_p(D tag) const {
    if (p == nullptr) return hn::Set(tag, 1.0f);
    if constexpr (kWhole) return hn::LoadU(tag, p + at);
    return LoadFirst(tag, p + at, left(), 1.0f);
  }
};

/// Takes the smallest columns of both lists, a vector at a time. Calls take(whole, columns_a, columns_b), where
/// columns_b is reversed and take keeps the smaller of each lane, the one of `a` when they are equal. The readers
/// advance after the call, so take can still read the p of these columns.
template <class D, class Take>
HWY_INLINE void TakeSmallest(D tag, ListReader& a, ListReader& b, Take&& take) {
  const std::size_t lanes = hn::Lanes(tag);
  const auto step = [&](auto whole) HWY_ATTR {
    const auto columns_a = a.next<whole>(tag), columns_b = hn::Reverse(tag, b.next<whole>(tag));
    const std::size_t taken_from_b = hn::CountTrue(tag, hn::Gt(columns_a, columns_b));
    take(whole, columns_a, columns_b);
    a.skip<whole>(lanes - taken_from_b);
    b.skip<whole>(taken_from_b);
  };
  const auto vector = static_cast<Index>(lanes);
  while (a.left() >= vector && b.left() >= vector) step(std::true_type());
  while (a.left() > 0 || b.left() > 0) step(std::false_type());
}

RowCounts MergeColumns(const std::int32_t* a, Index a_count, const std::int32_t* b, Index b_count, std::int32_t* out) {
  const hn::ScalableTag<std::int32_t> tag;
  using V = hn::Vec<decltype(tag)>;
  const auto last = hn::Set(tag, static_cast<std::int32_t>(hn::Lanes(tag) - 1));
  const auto rotation = hn::IndicesFromVec(tag, hn::And(hn::Add(hn::Iota(tag, 0), last), last));
  const auto first_lane = hn::FirstN(tag, 1);
  const V none = hn::Set(tag, kNone), one = hn::Set(tag, 1);
  V before = hn::Set(tag, -2);  // the previous vector, rotated; -2 is neither a column nor the predecessor of one
  std::int32_t* to = out;
  std::size_t joined = 0;
  ListReader from_a{a, nullptr, a_count}, from_b{b, nullptr, b_count};
  TakeSmallest(tag, from_a, from_b, [&](auto, V columns_a, V columns_b) HWY_ATTR {
    const V smallest = SortBitonic<hn::MaxLanes(tag) / 2>(tag, hn::Min(columns_a, columns_b));
    const V rotated = hn::TableLookupLanes(smallest, rotation);
    const V previous = hn::IfThenElse(first_lane, before, rotated);
    before = rotated;
    const auto fresh = hn::And(hn::Ne(smallest, previous), hn::Ne(smallest, none));
    joined += hn::CountTrue(tag, hn::And(fresh, hn::Eq(smallest, hn::Add(previous, one))));
    // Not CompressStore: with a memory operand the instruction is microcoded on some processors. `out` has kSlack
    // elements more for the full vector.
    hn::StoreU(hn::Compress(smallest, fresh), tag, to);
    to += hn::CountTrue(tag, fresh);
  });
  const Index entries = to - out;
  return {entries, entries - static_cast<Index>(joined)};
}

/// Op::p in vectors.
template <class Op, class V>
V CombineP(V a, V b) {
  const hn::DFromV<V> tag;
  const auto one = hn::Set(tag, 1.0f);
  if constexpr (std::is_same_v<Op, row_op::Add>) return hn::Min(one, hn::Add(a, b));
  if constexpr (std::is_same_v<Op, row_op::Max>) return hn::Max(a, b);
  return hn::Sub(one, hn::Mul(hn::Sub(one, a), hn::Sub(one, b)));
}

/// Calls work with the row_op functor of a union.
template <class Work>
auto ByUnion(SetOp op, Work&& work) {
  if (op == SetOp::add) return work(row_op::Add());
  if (op == SetOp::max) return work(row_op::Max());
  return work(row_op::Independent());
}

Index CountRuns(const std::int32_t* columns, const float* p, Index count) {
  std::int32_t joined = 0;  // 32 bits like the compared values, for vectorisation
  for (Index i = 1; i < count; ++i) joined += (columns[i] == columns[i - 1] + 1) & (p[i] == p[i - 1]);
  return count - joined;
}

/// A vector of columns and the vector of their p.
template <class C, class P>
struct Entries {
  C columns;
  P p;
};

/// SortBitonic that moves p with the columns. When two exchanged columns are equal, each lane keeps its p.
template <std::size_t kDistance, class D, class C, class P>
HWY_INLINE Entries<C, P> SortBitonic(D tag, Entries<C, P> entries) {
  if constexpr (kDistance == 0) {
    return entries;
  } else {
    const hn::DFromV<P> p_tag;
    const auto lane = hn::Iota(tag, 0);
    const auto bit = hn::Set(tag, static_cast<hn::TFromD<D>>(kDistance));
    const auto across = hn::Xor(lane, bit);
    const C partner = hn::TableLookupLanes(entries.columns, hn::IndicesFromVec(tag, across));
    const P partner_p = hn::TableLookupLanes(entries.p, hn::IndicesFromVec(p_tag, across));
    const auto upper = hn::Eq(hn::And(lane, bit), bit);
    const C columns = hn::IfThenElse(upper, hn::Max(entries.columns, partner), hn::Min(entries.columns, partner));
    const auto exchanged = hn::RebindMask(p_tag, hn::Ne(columns, entries.columns));
    return SortBitonic<kDistance / 2>(tag, Entries<C, P>{columns, hn::IfThenElse(exchanged, partner_p, entries.p)});
  }
}

template <class Op>
HWY_INLINE Index MergeWeightedBy(ListReader from_a, ListReader from_b, std::int32_t* out, float* out_p) {
  const hn::ScalableTag<std::int32_t> tag;
  const hn::Rebind<float, decltype(tag)> p_tag;
  using C = hn::Vec<decltype(tag)>;
  using P = hn::Vec<decltype(p_tag)>;
  const std::size_t lanes = hn::Lanes(tag);
  // Lane l takes lane l - by of its vector; the first `by` lanes wrap around, and are replaced by the previous
  // vector's.
  const auto rotation = [&](std::size_t by) HWY_ATTR {
    const auto last = hn::Set(tag, static_cast<std::int32_t>(lanes - 1));
    return hn::And(hn::Add(hn::Iota(tag, 0), hn::Set(tag, static_cast<std::int32_t>(lanes - by % lanes))), last);
  };
  const auto by_one = rotation(1), by_two = rotation(2);
  const auto first = hn::FirstN(tag, 1), first_two = hn::FirstN(tag, std::min<std::size_t>(lanes, 2));
  const C none = hn::Set(tag, kNone);
  C column_one = none, column_two = none;
  P p_one = hn::Set(p_tag, 1.0f);
  std::int32_t* to = out;
  // A column is written when its successor is known. If they are equal, their p are combined into one entry.
  const auto emit = [&](Entries<C, P> next) HWY_ATTR {
    const C rotated = hn::TableLookupLanes(next.columns, hn::IndicesFromVec(tag, by_one));
    const C rotated_two = hn::TableLookupLanes(next.columns, hn::IndicesFromVec(tag, by_two));
    const P rotated_p = hn::TableLookupLanes(next.p, hn::IndicesFromVec(p_tag, by_one));
    const C column = hn::IfThenElse(first, column_one, rotated);
    const P p = hn::IfThenElse(hn::RebindMask(p_tag, first), p_one, rotated_p);
    const C before = hn::IfThenElse(first_two, column_two, rotated_two);
    column_two = lanes < 2 ? column_one : rotated_two;
    column_one = rotated;
    p_one = rotated_p;
    const auto fresh = hn::And(hn::Ne(column, before), hn::Ne(column, none));
    const auto twins = hn::RebindMask(p_tag, hn::Eq(column, next.columns));
    const P whole = hn::IfThenElse(twins, CombineP<Op>(p, next.p), p);
    hn::StoreU(hn::Compress(column, fresh), tag, to);
    hn::StoreU(hn::Compress(whole, hn::RebindMask(p_tag, fresh)), p_tag, out_p + (to - out));
    to += hn::CountTrue(tag, fresh);
  };
  TakeSmallest(tag, from_a, from_b, [&](auto whole, C columns_a, C columns_b) HWY_ATTR {
    const P p_a = from_a.next_p<whole>(p_tag), p_b = hn::Reverse(p_tag, from_b.next_p<whole>(p_tag));
    const P p = hn::IfThenElse(hn::RebindMask(p_tag, hn::Gt(columns_a, columns_b)), p_b, p_a);
    emit(SortBitonic<hn::MaxLanes(tag) / 2>(tag, Entries<C, P>{hn::Min(columns_a, columns_b), p}));
  });
  if (hn::GetLane(column_one) != kNone) emit({none, p_one});
  return to - out;
}

Index MergeWeighted(SetOp op, const std::int32_t* a, const float* a_p, Index a_count, const std::int32_t* b,
                    const float* b_p, Index b_count, std::int32_t* out, float* out_p) {
  return ByUnion(op, [&](auto functor) HWY_ATTR {
    return MergeWeightedBy<decltype(functor)>({a, a_p, a_count}, {b, b_p, b_count}, out, out_p);
  });
}

/// Calls put(column, index) for the columns below `end`, starting at index `next`; returns the index of the first
/// column not below it. Goes eight at a time: put is a few instructions, and bounds checks would be half of the work.
template <class Put>
HWY_INLINE Index PutBelow(std::int32_t end, const std::int32_t* columns, Index next, Index count, Put&& put) {
  for (; next + 8 <= count && columns[next + 7] < end; next += 8) {
    for (Index i = next; i < next + 8; ++i) put(columns[i], i);
  }
  for (; next < count && columns[next] < end; ++next) put(columns[next], next);
  return next;
}

/// Sets bits one by one. Neighbouring columns mostly fall into the same word, so each read-modify-write would wait for
/// the one before; interleaving eight streams, spaced evenly over the list, hides that latency.
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
  constexpr Index kPositionsPerColumn = 24;  // below this many positions per column, bytes are cheaper
  if (count == 0) return;
  const Index width = columns[count - 1] + Index{1} - origin;
  if (!kBytesOfBits || count * kPositionsPerColumn < width) return SetBitsOneByOne(columns, count, origin, words);
  HWY_ALIGN std::uint8_t bytes[kBlock] = {};
  Index next = 0;
  for (Index begin = 0; begin < width; begin += kBlock) {
    const Index end = std::min(width, begin + kBlock), first = origin + begin;
    next = PutBelow(static_cast<std::int32_t>(origin + end), columns, next, count,
                    [&](std::int32_t column, Index) { bytes[column - first] = 1; });
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

/// Takes the list's columns in [first, first + 64) and returns them as bits, spread over the lanes. Reads kVectors
/// vectors per step.
template <bool kWhole, std::size_t kVectors, class D>
HWY_INLINE hn::Vec<D> TakeWord(D tag, ListReader& list, Index first) {
  const hn::Rebind<std::uint32_t, D> columns_tag;
  const std::size_t lanes = hn::Lanes(tag);
  const auto zeroth = hn::Set(tag, static_cast<std::uint64_t>(first));
  auto bits = hn::Zero(tag);
  for (std::size_t taken = kVectors * lanes; taken == kVectors * lanes; list.skip<kWhole>(taken)) {
    taken = 0;
    for (std::size_t i = 0; i < kVectors; ++i) {
      const auto offset = static_cast<Index>(i * lanes);
      const auto* const columns = reinterpret_cast<const std::uint32_t*>(list.columns + list.at + offset);
      const auto next = kWhole ? hn::LoadU(columns_tag, columns)
                               : LoadFirst(columns_tag, columns, std::max<Index>(0, list.left() - offset), ~0u);
      const auto bit = hn::Sub(hn::PromoteTo(tag, next), zeroth);
      const auto inside = hn::Lt(bit, hn::Set(tag, std::uint64_t{64}));
      // A shift by more than 63 is not defined on every target.
      const auto shift = hn::IfThenElseZero(inside, bit);
      bits = hn::Or(bits, hn::IfThenElseZero(inside, hn::Shl(hn::Set(tag, std::uint64_t{1}), shift)));
      taken += hn::CountTrue(tag, inside);
    }
  }
  return bits;
}

template <std::size_t kVectors>
RowCounts UniteAsBits(ListReader a, ListReader b, std::uint64_t* words, Index count) {
  const hn::ScalableTag<std::uint64_t> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag)), step_columns = static_cast<Index>(kVectors) * lanes;
  RowCounts counts;
  std::uint64_t before = 0;
  const auto unite = [&](auto whole, Index w) HWY_ATTR {
    HWY_ALIGN std::uint64_t bits[HWY_MAX_BYTES / sizeof(std::uint64_t)];
    hn::Store(hn::Or(TakeWord<whole, kVectors>(tag, a, w * 64), TakeWord<whole, kVectors>(tag, b, w * 64)), tag, bits);
    std::uint64_t word = 0;
    for (Index lane = 0; lane < lanes; ++lane) word |= bits[lane];
    words[w] = word;
    counts.entries += std::popcount(word);
    counts.runs += std::popcount(word & ~((word << 1) | (before >> 63)));
    before = word;
  };
  Index w = 0;
  // A word takes at most 64 columns and reads at most `step_columns` more.
  for (; w < count && a.left() >= 64 + step_columns && b.left() >= 64 + step_columns; ++w) unite(std::true_type(), w);
  for (; w < count; ++w) unite(std::false_type(), w);
  return counts;
}

RowCounts UniteColumnsAsBits(const std::int32_t* a, Index a_count, const std::int32_t* b, Index b_count,
                             std::uint64_t* words, Index count) {
  constexpr std::size_t kFew = hn::MaxLanes(hn::ScalableTag<std::uint64_t>()) >= 8 ? 2 : 4;
  const ListReader from_a{a, nullptr, a_count}, from_b{b, nullptr, b_count};
  return std::max(a_count, b_count) <= 12 * count ? UniteAsBits<kFew>(from_a, from_b, words, count)
                                                  : UniteAsBits<2 * kFew>(from_a, from_b, words, count);
}

Index CountBits(const std::uint64_t* words, Index count) {
  Index bits = 0;
  for (Index w = 0; w < count; ++w) bits += std::popcount(words[w]);
  return bits;
}

/// Bit-sliced counters for 64 columns per word: plane i holds bit i of each column's count. Adding a row is a ripple of
/// half adders, two operations per plane; the comparison with a constant proceeds from the lowest bit up.
template <std::size_t kPlanes, class D>
HWY_INLINE void CountColumns(D tag, Index least, const std::uint64_t* words, Index rows, Index width,
                             std::uint64_t* in_enough, std::uint64_t* in_all) {
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
  hn::StoreU(enough, tag, in_enough);
  hn::StoreU(all, tag, in_all);
}

/// Entry and run counts of a dense row of p.
struct DenseCounts {
  RowCounts row;
  bool weighted = false;

  /// Adds positions [begin, end) of `p`.
  HWY_ATTR void add(const float* p, Index begin, Index end) {
    if (begin == end) return;
    if (begin == 0) {
      const bool attended = p[0] > 0;
      row = {attended ? 1 : 0, attended ? 1 : 0};
      weighted = attended && p[0] < 1;
      ++begin;
    }
    begin = add_vectors(hn::ScalableTag<float>(), p, begin, end);
    add_vectors(hn::CappedTag<float, 1>(), p, begin, end);
  }

  template <class D>
  HWY_INLINE Index add_vectors(D tag, const float* p, Index k, Index end) {
    const auto zero = hn::Zero(tag), one = hn::Set(tag, 1.0f);
    std::size_t entries = 0, runs = 0;
    auto min_p = one;
    for (; k + static_cast<Index>(hn::Lanes(tag)) <= end; k += static_cast<Index>(hn::Lanes(tag))) {
      const auto here = hn::LoadU(tag, p + k), before = hn::LoadU(tag, p + k - 1);
      const auto attended = hn::Gt(here, zero);
      entries += hn::CountTrue(tag, attended);
      runs += hn::CountTrue(tag, hn::And(attended, hn::Ne(here, before)));
      min_p = hn::Min(min_p, hn::IfThenElse(attended, here, one));
    }
    row.entries += static_cast<Index>(entries);
    row.runs += static_cast<Index>(runs);
    weighted |= !hn::AllFalse(tag, hn::Lt(min_p, one));
    return k;
  }
};

RowCounts CountDense(const float* p, Index count, bool* weighted) {
  DenseCounts counts;
  counts.add(p, 0, count);
  *weighted |= counts.weighted;
  return counts.row;
}

/// Writes both lists into a block of zeros that stays in L1.
template <class Op>
HWY_INLINE RowCounts UniteAsDenseBy(ListReader a, ListReader b, float* p, Index keys, bool* weighted) {
  constexpr Index kBlock = 4096;
  DenseCounts counts;
  const auto put_below = [](Index end, ListReader& list, auto&& put) {
    const auto with = [&](auto p_of) {
      return PutBelow(static_cast<std::int32_t>(end), list.columns, list.at, list.count,
                      [&](std::int32_t column, Index i) { put(column, p_of(i)); });
    };
    list.at = list.p == nullptr ? with([](Index) { return 1.0f; }) : with([&](Index i) { return list.p[i]; });
  };
  for (Index begin = 0; begin < keys; begin += kBlock) {
    const Index end = std::min(keys, begin + kBlock);
    std::fill(p + begin, p + end, 0.0f);
    put_below(end, a, [&](std::int32_t column, float weight) { p[column] = weight; });
    put_below(end, b, [&](std::int32_t column, float weight) { p[column] = Op::p(p[column], weight); });
    counts.add(p, begin, end);
  }
  *weighted |= counts.weighted;
  return counts.row;
}

RowCounts UniteAsDense(SetOp op, const std::int32_t* a, const float* a_p, Index a_count, const std::int32_t* b,
                       const float* b_p, Index b_count, float* p, Index keys, bool* weighted) {
  return ByUnion(op, [&](auto functor) HWY_ATTR {
    return UniteAsDenseBy<decltype(functor)>({a, a_p, a_count}, {b, b_p, b_count}, p, keys, weighted);
  });
}

/// Writes the columns of a word's set bits, ascending; may write up to 16 elements more. Targets that compress bytes
/// compress the 64 bit indices at once and widen them 16 at a time: the cost grows with entries. Others compress one
/// vector of columns at a time: the cost grows with words.
inline std::int32_t* PutColumns(std::uint64_t word, std::int32_t first, std::int32_t* out) {
  const hn::CappedTag<std::int32_t, 16> tag;
  const auto lanes = static_cast<int>(hn::Lanes(tag));
#if HWY_TARGET <= HWY_AVX3_DL  // better targets are smaller numbers
  const hn::Full512<std::uint8_t> bytes;
  const hn::Full128<std::uint8_t> some;
  HWY_ALIGN std::uint8_t numbers[64];
  const auto set = hn::LoadMaskBits(bytes, reinterpret_cast<const std::uint8_t*>(&word));
  hn::Store(hn::Compress(hn::Iota(bytes, 0), set), bytes, numbers);
  const int count = std::popcount(word);
  for (int i = 0; i < count; i += lanes)
    hn::StoreU(hn::Add(hn::Set(tag, first), hn::PromoteTo(tag, hn::Load(some, numbers + i))), tag, out + i);
  return out + count;
#else
  const auto from_zero = hn::Iota(tag, 0);
  for (int bit = 0; bit < 64; bit += lanes) {
    const std::uint64_t bits = word >> bit & ((std::uint64_t{1} << lanes) - 1);
    const auto columns = hn::Add(from_zero, hn::Set(tag, first + bit));
    hn::StoreU(hn::Compress(columns, hn::LoadMaskBits(tag, reinterpret_cast<const std::uint8_t*>(&bits))), tag, out);
    out += std::popcount(bits);
  }
  return out;
#endif
}

Index ColumnsOfBits(const std::uint64_t* words, Index count, std::int32_t origin, std::int32_t* out) {
  std::int32_t* const begin = out;
  for (Index w = 0; w < count; ++w) {
    if (words[w] != 0) out = PutColumns(words[w], static_cast<std::int32_t>(origin + w * 64), out);
  }
  return out - begin;
}

/// One exchange step of a bit-matrix transposition by halves, between lanes at this distance: it swaps the off-diagonal
/// parts of each 2 x 2 block. `kept` are the bits that a word of the lower half keeps.
template <std::size_t kDistance, class D, class V>
HWY_INLINE V ExchangeLanes(D tag, V v, std::uint64_t kept) {
  const auto lane = hn::Iota(tag, 0), bit = hn::Set(tag, std::uint64_t{kDistance});
  const V partner = hn::TableLookupLanes(v, hn::IndicesFromVec(tag, hn::Xor(lane, bit)));
  const auto upper = hn::Eq(hn::And(lane, bit), bit);
  const V moved = hn::IfThenElse(upper, hn::ShiftRight<kDistance>(partner), hn::ShiftLeft<kDistance>(partner));
  const V kept_mask = hn::IfThenElse(upper, hn::Set(tag, ~kept), hn::Set(tag, kept));
  return hn::Or(hn::And(v, kept_mask), hn::AndNot(kept_mask, moved));
}

/// Transposition for few rows: each row sets its bit in the lanes of the keys it attends to.
template <class D>
HWY_INLINE void SpreadBits(D tag, const std::uint64_t* words, Index rows, Index stride, std::uint64_t* out) {
  const std::size_t lanes = hn::Lanes(tag);
  for (std::size_t i = 0; i < 64; i += lanes) {
    auto row_bits = hn::Zero(tag);
    for (Index r = 0; r < rows; ++r) {
      const std::uint64_t bits = words[r * stride] >> i;
      const auto attends = hn::LoadMaskBits(tag, reinterpret_cast<const std::uint8_t*>(&bits));
      row_bits = hn::Or(row_bits, hn::IfThenElseZero(attends, hn::Set(tag, std::uint64_t{1} << r)));
    }
    hn::StoreU(row_bits, tag, out + i);
  }
}

void TransposeBits(const std::uint64_t* words, Index rows, Index stride, std::uint64_t* out) {
  const hn::CappedTag<std::uint64_t, 8> tag;
  using V = hn::Vec<decltype(tag)>;
  constexpr std::size_t kLanes = hn::MaxLanes(tag);
  if (kLanes >= 4 && rows <= 8) return SpreadBits(tag, words, rows, stride, out);
  HWY_ALIGN std::uint64_t rest[64];
  for (Index r = 0; r < rows; ++r) rest[r] = words[r * stride];
  std::fill(rest + rows, rest + 64, std::uint64_t{0});
  // Transposition by recursive halves (Warren, Hacker's Delight): first between vectors, then between a vector's lanes.
  std::uint64_t kept = 0x00000000FFFFFFFFu;
  for (std::size_t half = 32; half >= kLanes; half >>= 1, kept ^= kept << half) {
    for (std::size_t i = 0; i < 64; i = (i + half + kLanes) & ~half) {
      const V lower = hn::Load(tag, rest + i), upper = hn::Load(tag, rest + i + half);
      const V low_bits = hn::Set(tag, kept),
              swap = hn::And(hn::Xor(hn::ShiftRightSame(lower, static_cast<int>(half)), upper), low_bits);
      hn::Store(hn::Xor(lower, hn::ShiftLeftSame(swap, static_cast<int>(half))), tag, rest + i);
      hn::Store(hn::Xor(upper, swap), tag, rest + i + half);
    }
  }
  for (std::size_t i = 0; i < 64; i += kLanes) {
    V v = hn::Load(tag, rest + i);
    if constexpr (kLanes > 4) v = ExchangeLanes<4>(tag, v, 0x0F0F0F0F0F0F0F0Fu);
    if constexpr (kLanes > 2) v = ExchangeLanes<2>(tag, v, 0x3333333333333333u);
    if constexpr (kLanes > 1) v = ExchangeLanes<1>(tag, v, 0x5555555555555555u);
    hn::StoreU(v, tag, out + i);
  }
}

/// ColumnsInAtLeast for up to 2^kPlanes - 1 rows.
template <std::size_t kPlanes>
void CountColumnsBy(Index least, const std::uint64_t* words, Index rows, Index width, std::uint64_t* in_enough,
                    std::uint64_t* in_all) {
  const hn::ScalableTag<std::uint64_t> tag;
  const hn::CappedTag<std::uint64_t, 1> one;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  Index w = 0;
  for (; w + lanes <= width; w += lanes)
    CountColumns<kPlanes>(tag, least, words + w, rows, width, in_enough + w, in_all + w);
  for (; w < width; ++w) CountColumns<kPlanes>(one, least, words + w, rows, width, in_enough + w, in_all + w);
}

Index ColumnsInAtLeast(Index least, const std::uint64_t* words, Index rows, Index width, std::uint64_t* in_enough,
                       std::uint64_t* in_all) {
  (rows < 8 && least < 8 ? CountColumnsBy<3> : CountColumnsBy<7>)(least, words, rows, width, in_enough, in_all);
  return CountBits(in_enough, width);
}

}  // namespace reticle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle {

HWY_EXPORT(CombineWords);
HWY_EXPORT(MergeColumns);
HWY_EXPORT(MergeWeighted);
HWY_EXPORT(CountRuns);
HWY_EXPORT(SetBits);
HWY_EXPORT(UniteColumnsAsBits);
HWY_EXPORT(ColumnsInAtLeast);
HWY_EXPORT(TransposeBits);
HWY_EXPORT(ColumnsOfBits);
HWY_EXPORT(CountBits);
HWY_EXPORT(CountDense);
HWY_EXPORT(UniteAsDense);

RowCounts combine_words(SetOp op, const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out, Index count) {
  return HWY_DYNAMIC_DISPATCH(CombineWords)(op, a, b, out, count);
}

RowCounts merge_columns(const std::int32_t* a, Index a_count, const std::int32_t* b, Index b_count, std::int32_t* out) {
  return HWY_DYNAMIC_DISPATCH(MergeColumns)(a, a_count, b, b_count, out);
}

Index merge_weighted_columns(SetOp op, const std::int32_t* a, const float* a_p, Index a_count, const std::int32_t* b,
                             const float* b_p, Index b_count, std::int32_t* out, float* out_p) {
  return HWY_DYNAMIC_DISPATCH(MergeWeighted)(op, a, a_p, a_count, b, b_p, b_count, out, out_p);
}

Index count_runs(const std::int32_t* columns, const float* p, Index count) {
  return HWY_DYNAMIC_DISPATCH(CountRuns)(columns, p, count);
}

RowCounts unite_columns_as_bits(const std::int32_t* a, Index a_count, const std::int32_t* b, Index b_count,
                                std::uint64_t* words, Index count) {
  return HWY_DYNAMIC_DISPATCH(UniteColumnsAsBits)(a, a_count, b, b_count, words, count);
}

RowCounts count_dense(const float* p, Index count, bool& weighted) {
  return HWY_DYNAMIC_DISPATCH(CountDense)(p, count, &weighted);
}

RowCounts unite_columns_as_dense(SetOp op, const std::int32_t* a, const float* a_p, Index a_count,
                                 const std::int32_t* b, const float* b_p, Index b_count, float* p, Index keys,
                                 bool& weighted) {
  return HWY_DYNAMIC_DISPATCH(UniteAsDense)(op, a, a_p, a_count, b, b_p, b_count, p, keys, &weighted);
}

Index count_bits(const std::uint64_t* words, Index count) { return HWY_DYNAMIC_DISPATCH(CountBits)(words, count); }

Index columns_of_bits(const std::uint64_t* words, Index count, std::int32_t origin, std::int32_t* out) {
  return HWY_DYNAMIC_DISPATCH(ColumnsOfBits)(words, count, origin, out);
}

Index columns_in_at_least(Index least, const std::uint64_t* words, Index rows, Index width, std::uint64_t* in_enough,
                          std::uint64_t* in_all) {
  return HWY_DYNAMIC_DISPATCH(ColumnsInAtLeast)(least, words, rows, width, in_enough, in_all);
}

void transpose_bits(const std::uint64_t* words, Index rows, Index stride, std::uint64_t* out) {
  HWY_DYNAMIC_DISPATCH(TransposeBits)(words, rows, stride, out);
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
