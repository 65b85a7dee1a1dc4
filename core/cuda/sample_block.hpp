// Per-row sampling without replacement on a GPU: one block a row, the candidates that core/ops/select.cpp's
// sample_without_replacement draws from the same Philox stream.
//
// Floyd's algorithm draws t_j from [0, base + j] for j = 0, 1, ..., and takes base + j where t_j is taken already: one
// after another, as it is written. But t_j is taken already if and only if an earlier draw was t_j too, or t_j is base
// + i for an earlier i whose draw was taken already. The first draw of every number is a minimum, which threads find in
// any order; the rest is a short walk backwards.
#pragma once

#include <limits>

#include <reticle/core/base/random.hpp>
#include <reticle/core/cuda/block.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::cuda {

inline constexpr int kSamplePerThread = 4;  // neighbours that a thread looks at together

struct SampleShared {
  int scan[kWarp + 1];
  std::uint32_t rejected;  // whether a number of the stream was skipped
  std::uint32_t next;      // the first that was not used, then
};

namespace sample_detail {

inline constexpr std::int32_t kNever = std::numeric_limits<std::int32_t>::max();

/// Draws from [0, bound) with number `i` of the stream, as Philox::below does; false where it rejects that number.
RETICLE_HD inline bool draw_below(const Philox& random, std::uint32_t i, std::uint32_t bound, std::int32_t& drawn) {
  const std::uint64_t product = static_cast<std::uint64_t>(random.word(i)) * bound;
  const auto low = static_cast<std::uint32_t>(product);
  drawn = static_cast<std::int32_t>(product >> 32);
  return low >= bound || low >= (0u - bound) % bound;
}

/// Whether draw j met a number that was taken already. first[t]: the first draw that was t; less than any where t is
/// known to be taken by then, which says the same.
RETICLE_HD inline bool was_taken(const std::int32_t* draws, const std::int32_t* first, std::int32_t base,
                                 std::int32_t j) {
  for (;;) {
    const std::int32_t t = draws[j];
    if (first[t] < j) return true;
    if (t < base || t - base >= j) return false;
    j = t - base;
  }
}

}  // namespace sample_detail

/// How many i < count are candidates.
template <class Block, class IsCandidate>
RETICLE_HD std::int32_t count_candidates(const Block& block, SampleShared& shared, IsCandidate&& is_candidate,
                                         Index count) {
  PerThread<Block, int> found(block);
  block.each([&](int thread) {
    int sum = 0;
    for (Index i = thread; i < count; i += block.threads()) sum += is_candidate(i) ? 1 : 0;
    found[thread] = sum;
  });
  return block.exclusive_scan(found, shared.scan);
}

/// Calls take(thread, i) for each of the `wanted` drawn of the n candidates i < count, in no order, by the thread that
/// found it. Draws with the stream's numbers from `number` on; returns the first that was not used. Scratch: draws and
/// first, `count` each.
template <class Block, class IsCandidate, class Take>
RETICLE_HD std::uint32_t sample_row(const Block& block, SampleShared& shared, IsCandidate&& is_candidate, Index count,
                                    std::int32_t n, std::int32_t wanted, const Philox& random, std::uint32_t number,
                                    std::int32_t* draws, std::int32_t* first, Take&& take) {
  const bool inverse = wanted > n / 2;  // draw what to leave out
  const std::int32_t drawn = inverse ? n - wanted : wanted, base = n - drawn;
  block.each([&](int thread) {
    if (thread == 0) shared.rejected = 0;
  });
  block.sync();
  block.each([&](int thread) {
    for (std::int32_t v = thread; v < n; v += block.threads()) first[v] = sample_detail::kNever;
    for (std::int32_t j = thread; j < drawn; j += block.threads()) {
      const auto own = static_cast<std::uint32_t>(j), bound = static_cast<std::uint32_t>(base + j + 1);
      if (!sample_detail::draw_below(random, number + own, bound, draws[j])) block.keep_max(&shared.rejected, 1u);
    }
  });
  block.sync();
  std::uint32_t next = number + static_cast<std::uint32_t>(drawn);
  if (shared.rejected != 0) {  // one row in some dozens: later draws come from later numbers
    block.each([&](int thread) {
      if (thread != 0) return;
      std::uint32_t at = number;
      for (std::int32_t j = 0; j < drawn; ++j) {
        while (!sample_detail::draw_below(random, at++, static_cast<std::uint32_t>(base + j + 1), draws[j])) {
        }
      }
      shared.next = at;
    });
    block.sync();
    next = shared.next;
  }
  block.each([&](int thread) {
    for (std::int32_t j = thread; j < drawn; j += block.threads()) block.keep_min(&first[draws[j]], j);
  });
  block.sync();
  block.each([&](int thread) {
    for (std::int32_t j = thread; j < drawn; j += block.threads()) {
      if (sample_detail::was_taken(draws, first, base, j)) block.keep_min(&first[base + j], -1);
    }
  });
  block.sync();
  std::int32_t before = 0;
  PerThread<Block, int> found(block);
  const Index step = static_cast<Index>(block.threads()) * kSamplePerThread;
  for (Index begin = 0; begin < count; begin += step) {
    const auto each_of = [&](int thread, auto&& body) {
      for (int e = 0; e < kSamplePerThread; ++e) {
        const Index i = begin + static_cast<Index>(thread) * kSamplePerThread + e;
        if (i < count && is_candidate(i)) body(i);
      }
    };
    block.each([&](int thread) {
      int sum = 0;
      each_of(thread, [&](Index) { ++sum; });
      found[thread] = sum;
    });
    const int here = block.exclusive_scan(found, shared.scan);
    block.each([&](int thread) {
      std::int32_t rank = before + found[thread];
      each_of(thread, [&](Index i) {
        if ((first[rank++] != sample_detail::kNever) != inverse) take(thread, i);
      });
    });
    before += here;
  }
  block.sync();
  return next;
}

}  // namespace reticle::cuda
