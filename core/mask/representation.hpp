// The closed set of representations: plain structs over shared buffers, and for each the one operation that all
// support, for_each_run: the sorted runs of a row. Every row index here is a stored row.
#pragma once

#include <bit>
#include <cstdint>
#include <variant>

#include <reticle/core/mask/run.hpp>
#include <reticle/core/tensor/buffer.hpp>

namespace reticle {

/// Attends to nothing.
struct Empty {};

/// Attends to everything with p = 1.
struct Full {};

/// One bit per position, rows padded to 64 bits with zeros. For dense 0/1 patterns: unions are bandwidth-bound.
struct BitDense {
  Buffer<std::uint64_t> words;
  static constexpr Index words_per_row(Index keys) { return (keys + 63) / 64; }
};

/// p of every position, 0 where not attended. For dense sampled patterns.
struct WeightedDense {
  Buffer<float> p;
};

/// Column indices, strictly ascending in each row. For content-based and sampled patterns: 4 bytes per entry.
struct Csr {
  Buffer<Index> row_ptr;  // stored rows + 1
  Buffer<std::int32_t> indices;
  Buffer<float> p;  // aligned with indices; empty when every p is 1
};

/// Intervals, ascending and disjoint in each row. For sink, local, causal and block patterns: O(rows) at any length.
struct Runs {
  Buffer<Index> row_ptr;  // stored rows + 1
  Buffer<Interval> intervals;
  Buffer<float> p;  // aligned with intervals; empty when every p is 1
};

using Representation = std::variant<Empty, Full, BitDense, WeightedDense, Csr, Runs>;

/// Calls emit(Run) with the maximal runs of one stored row, ascending: neighbours of equal p form one run.
template <class Emit>
void for_each_run(const Empty&, Index, Index, Emit&&) {}

template <class Emit>
void for_each_run(const Full&, Index, Index keys, Emit&& emit) {
  if (keys > 0) emit(Run{0, static_cast<std::int32_t>(keys), 1.0f});
}

template <class Emit>
void for_each_run(const BitDense& rep, Index row, Index keys, Emit&& emit) {
  const Index count = BitDense::words_per_row(keys);
  const std::uint64_t* words = rep.words.data() + row * count;
  RunJoiner<Emit> join(emit);
  for (Index w = 0; w < count; ++w) {
    std::uint64_t word = words[w];
    while (word != 0) {
      const int begin = std::countr_zero(word);
      const int length = std::countr_one(word >> begin);
      const auto first = static_cast<std::int32_t>(w * 64 + begin);
      join(first, first + length, 1.0f);
      if (begin + length == 64) break;
      word &= ~std::uint64_t{0} << (begin + length);
    }
  }
  join.flush();
}

template <class Emit>
void for_each_run(const WeightedDense& rep, Index row, Index keys, Emit&& emit) {
  const float* p = rep.p.data() + row * keys;
  RunJoiner<Emit> join(emit);
  for (Index k = 0; k < keys; ++k) {
    if (p[k] > 0) join(static_cast<std::int32_t>(k), static_cast<std::int32_t>(k + 1), p[k]);
  }
  join.flush();
}

template <class Emit>
void for_each_run(const Csr& rep, Index row, Index, Emit&& emit) {
  RunJoiner<Emit> join(emit);
  for (Index i = rep.row_ptr[row]; i < rep.row_ptr[row + 1]; ++i) {
    join(rep.indices[i], rep.indices[i] + 1, rep.p.empty() ? 1.0f : rep.p[i]);
  }
  join.flush();
}

template <class Emit>
void for_each_run(const Runs& rep, Index row, Index, Emit&& emit) {
  RunJoiner<Emit> join(emit);
  for (Index i = rep.row_ptr[row]; i < rep.row_ptr[row + 1]; ++i) {
    join(rep.intervals[i].begin, rep.intervals[i].end, rep.p.empty() ? 1.0f : rep.p[i]);
  }
  join.flush();
}

}  // namespace reticle
