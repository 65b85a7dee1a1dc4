// Sampling of a row without replacement on a GPU, one block per row: draws the same candidates as
// sample_without_replacement in core/ops/select.cpp, from the same Philox stream.
//
// Floyd's algorithm (Bentley and Floyd 1987) draws t_j from [0, base + j] for j = 0, 1, ..., and takes base + j if t_j
// is already taken, which is sequential as written. But t_j is already taken if and only if an earlier draw was t_j,
// too, or t_j is base + i for an earlier i whose own draw was already taken. The first draw of every number is a
// minimum, which threads compute in any order; the rest is a short walk backwards.
#pragma once

#include <limits>

#include <reticle/core/base/random.hpp>
#include <reticle/core/cuda/block.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::cuda {

inline constexpr int kSamplePerThread = 4;  // neighbouring candidates that a thread checks together

struct SampleShared {
  int scan[kWarp + 1];
  std::uint32_t rejected;  // whether a number of the stream was rejected
  std::uint32_t next;      // the first number not used, in that case
};

namespace sample_detail {

inline constexpr std::int32_t kNever = std::numeric_limits<std::int32_t>::max();

/// Draws from [0, bound) with number `i` of the stream, as Philox::below does; false if that number is rejected.
RETICLE_HD inline bool draw_below(const Philox& random, std::uint32_t i, std::uint32_t bound, std::int32_t& drawn) {
  const std::uint64_t product = static_cast<std::uint64_t>(random.word(i)) * bound;
  const auto low = static_cast<std::uint32_t>(product);
  drawn = static_cast<std::int32_t>(product >> 32);
  return low >= bound || low >= (0u - bound) % bound;
}

/// Whether draw j met a number that was already taken. first[t] is the first draw that was t, or any smaller number if
/// t is known to be taken by then, which gives the same result.
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

/// The number of candidates i < count.
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

/// Calls take(thread, i) for each of the `wanted` candidates drawn from the n candidates i < count, in any order, from
/// the thread that found it. Draws with the stream's numbers from `number` on, and returns the first number not used.
/// Scratch memory: `draws` and `first`, `count` elements each.
template <class Block, class IsCandidate, class Take>
RETICLE_HD std::uint32_t sample_row(const Block& block, SampleShared& shared, IsCandidate&& is_candidate, Index count,
                                    std::int32_t n, std::int32_t wanted, const Philox& random, std::uint32_t number,
                                    std::int32_t* draws, std::int32_t* first, Take&& take) {
  const bool inverse = wanted > n / 2;  // draw the candidates to leave out
  const std::int32_t drawn = inverse ? n - wanted : wanted, base = n - drawn;
  block.each([&](int thread) {
    if (thread == 0) shared.rejected = 0;
  });
  block.sync();
  block.each([&](int thread) {
    for (std::int32_t v = thread; v < n; v += block.threads()) first[v] = sample_detail::kNever;
    for (std::int32_t j = thread; j < drawn; j += block.threads()) {
      const auto index = static_cast<std::uint32_t>(j), bound = static_cast<std::uint32_t>(base + j + 1);
      if (!sample_detail::draw_below(random, number + index, bound, draws[j])) block.keep_max(&shared.rejected, 1u);
    }
  });
  block.sync();
  std::uint32_t next = number + static_cast<std::uint32_t>(drawn);
  if (shared.rejected != 0) {  // about one row in some dozens: the draws after it use later numbers
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
