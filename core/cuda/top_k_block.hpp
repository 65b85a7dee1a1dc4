// Top-k of a row on a GPU, one block per row: the indices of the k highest scores, ascending; ties go to the lower
// index, and NaN and -infinity are never selected. Selects the same indices as core/ops/top_k.cpp, bit for bit.
//
// Reads a row twice. The first pass counts scores by the leading 12 bits of their order key (sign, exponent, 3 bits of
// mantissa), which gives the bin of the k-th score. The second pass copies, in order, the scores in that bin or above,
// k and the bin's few others, as (key, index) to shared memory. There the exact threshold is found, 8 bits at a time,
// and the indices above it are written. If the bin has too many scores for shared memory (all scores equal, say), the
// threshold is found by reading the row once for every 8 bits, and the row is read once more. Bytes: 8 per score in the
// first case, 20 in the second, and 4 per selected index.
#pragma once

#include <cstdint>

#include <reticle/core/base/types.hpp>
#include <reticle/core/cuda/block.hpp>
#include <reticle/core/ops/order_key.hpp>

namespace reticle::cuda {

inline constexpr int kTopKThreads = 512;
inline constexpr int kTopKBins = 4096;        // 12 bits
inline constexpr int kTopKCandidates = 8192;  // capacity in shared memory
inline constexpr int kTopKPerThread = 4;      // scores that a thread reads at once: 16 bytes

/// The scores in the bin or above, in order.
struct TopKCandidates {
  std::uint32_t keys[kTopKCandidates];
  std::int32_t indices[kTopKCandidates];
};

/// Shared memory of a block.
struct TopKShared {
  int bins[kTopKBins];
  int scan[kWarp + 1];
  int bin, wanted, count;  // results of one thread for all threads
  std::uint32_t threshold;
  TopKCandidates candidates;
};

namespace top_k_detail {

/// Searches from the highest bin down: finds the bin of the `wanted`-th score, how many of its scores are wanted, and
/// how many scores are in it or above. With fewer than `wanted` scores in all: the lowest bin that is not empty, and
/// all of it.
template <class Block>
RETICLE_HD void find_bin(const Block& block, TopKShared& shared, int bins) {
  const int share = (bins + block.threads() - 1) / block.threads();
  PerThread<Block, int> before(block), sums(block);
  block.sync();
  block.each([&](int thread) {
    int sum = 0;
    for (int i = 0; i < share; ++i) {
      const int bin = bins - 1 - (thread * share + i);
      if (bin >= 0) sum += shared.bins[bin];
    }
    before[thread] = sums[thread] = sum;
  });
  const int all = block.exclusive_scan(before, shared.scan);
  const int wanted = shared.wanted < all ? shared.wanted : all;
  block.sync();
  block.each([&](int thread) {
    if (all == 0 && thread == 0) {
      shared.bin = bins - 1;
      shared.wanted = shared.count = 0;
    }
    if (all == 0 || before[thread] >= wanted || before[thread] + sums[thread] < wanted) return;
    int bin = bins - 1 - thread * share, above = before[thread];
    while (above + shared.bins[bin] < wanted) above += shared.bins[bin--];
    shared.bin = bin;
    shared.wanted = wanted - above;
    shared.count = above + shared.bins[bin];
  });
  block.sync();
}

template <class Block>
RETICLE_HD void clear(const Block& block, TopKShared& shared, int bins) {
  block.each([&](int thread) {
    for (int bin = thread; bin < bins; bin += block.threads()) shared.bins[bin] = 0;
  });
  block.sync();
}

/// Finds the exact threshold among keys that share the bits above `shift`, 8 bits at a time. key_of(i), i < count, is 0
/// for scores to be ignored. `shared.wanted` of the keys that equal the threshold are to be selected.
template <class Block, class KeyOf>
RETICLE_HD void refine(const Block& block, TopKShared& shared, std::uint32_t prefix, int shift, Index count,
                       KeyOf&& key_of) {
  while (shift > 0) {
    const int bits = shift < 8 ? shift : 8;
    const int low = shift - bits;
    clear(block, shared, 1 << bits);
    block.each([&](int thread) {
      for (Index i = thread; i < count; i += block.threads()) {
        const std::uint32_t key = key_of(i);
        if (key != 0 && (key >> shift) == prefix) block.add(&shared.bins[(key >> low) & ((1u << bits) - 1)], 1);
      }
    });
    find_bin(block, shared, 1 << bits);
    prefix = (prefix << bits) | static_cast<std::uint32_t>(shared.bin);
    shift = low;
  }
  block.each([&](int thread) {
    if (thread == 0) shared.threshold = prefix;
  });
  block.sync();
}

/// Writes, in order, the indices of keys above the threshold and of the first `shared.wanted` that equal it.
template <class Block, class KeyOf, class IndexOf>
RETICLE_HD int write_selected(const Block& block, TopKShared& shared, Index count, KeyOf&& key_of, IndexOf&& index_of,
                              std::int32_t* out) {
  const std::uint32_t threshold = shared.threshold;
  const int wanted = shared.wanted;
  int written = 0, equal = 0;
  PerThread<Block, int> places(block), ranks(block), equals(block), counts(block);
  const Index step = static_cast<Index>(block.threads()) * kTopKPerThread;
  for (Index begin = 0; begin < count; begin += step) {
    block.each([&](int thread) {
      int ties = 0;
      for (int i = 0; i < kTopKPerThread; ++i) {
        const Index at = begin + static_cast<Index>(thread) * kTopKPerThread + i;
        ties += at < count && key_of(at) == threshold ? 1 : 0;
      }
      ranks[thread] = equals[thread] = ties;
    });
    const int all_ties = block.exclusive_scan(ranks, shared.scan);
    block.each([&](int thread) {
      int selected = 0, rank = equal + ranks[thread];
      for (int i = 0; i < kTopKPerThread; ++i) {
        const Index at = begin + static_cast<Index>(thread) * kTopKPerThread + i;
        if (at >= count) continue;
        const std::uint32_t key = key_of(at);
        selected += key > threshold || (key == threshold && rank++ < wanted) ? 1 : 0;
      }
      places[thread] = counts[thread] = selected;
    });
    const int all_selected = block.exclusive_scan(places, shared.scan);
    block.each([&](int thread) {
      if (counts[thread] == 0) return;
      int place = written + places[thread], rank = equal + ranks[thread];
      for (int i = 0; i < kTopKPerThread; ++i) {
        const Index at = begin + static_cast<Index>(thread) * kTopKPerThread + i;
        if (at >= count) continue;
        const std::uint32_t key = key_of(at);
        if (key > threshold || (key == threshold && rank++ < wanted)) out[place++] = index_of(at);
      }
    });
    equal += all_ties;
    written += all_selected;
  }
  return written;
}

}  // namespace top_k_detail

/// Writes the indices of the k highest of `count` order keys key_of(i), ascending, to out[0, n); returns n <= k, which
/// is less than k if fewer keys are greater than 0. k > 0.
template <class Block, class KeyOf>
RETICLE_HD int top_k_row(const Block& block, TopKShared& shared, KeyOf&& key_of, Index count, int k,
                         std::int32_t* out) {
  constexpr int kShift = 20;  // below the leading 12 bits
  top_k_detail::clear(block, shared, kTopKBins);
  block.each([&](int thread) {
    for (Index i = thread; i < count; i += block.threads()) {
      const std::uint32_t key = key_of(i);
      if (key != 0) block.add(&shared.bins[key >> kShift], 1);
    }
    if (thread == 0) shared.wanted = k;
  });
  top_k_detail::find_bin(block, shared, kTopKBins);
  const auto bin = static_cast<std::uint32_t>(shared.bin);
  const int candidates = shared.count;
  if (candidates > kTopKCandidates) {
    top_k_detail::refine(block, shared, bin, kShift, count, key_of);
    return top_k_detail::write_selected(
        block, shared, count, key_of, [](Index i) { return static_cast<std::int32_t>(i); }, out);
  }
  int kept = 0;
  PerThread<Block, int> places(block);
  const Index step = static_cast<Index>(block.threads()) * kTopKPerThread;
  for (Index begin = 0; begin < count; begin += step) {
    const auto each_of = [&](int thread, auto&& take) {
      for (int i = 0; i < kTopKPerThread; ++i) {
        const Index at = begin + static_cast<Index>(thread) * kTopKPerThread + i;
        if (at >= count) continue;
        const std::uint32_t key = key_of(at);
        if (key != 0 && (key >> kShift) >= bin) take(key, at);
      }
    };
    block.each([&](int thread) {
      int found = 0;
      each_of(thread, [&](std::uint32_t, Index) { ++found; });
      places[thread] = found;
    });
    const int all = block.exclusive_scan(places, shared.scan);
    if (all == 0) continue;
    block.each([&](int thread) {
      int place = kept + places[thread];
      each_of(thread, [&](std::uint32_t key, Index at) {
        shared.candidates.keys[place] = key;
        shared.candidates.indices[place++] = static_cast<std::int32_t>(at);
      });
    });
    kept += all;
  }
  block.sync();
  const auto key_of_candidate = [&shared](Index i) { return shared.candidates.keys[i]; };
  top_k_detail::refine(block, shared, bin, kShift, kept, key_of_candidate);
  return top_k_detail::write_selected(
      block, shared, kept, key_of_candidate, [&shared](Index i) { return shared.candidates.indices[i]; }, out);
}

}  // namespace reticle::cuda
