// Top-p of a row on a GPU, one block per row: the fewest keys of highest score whose softmax mass exceeds a share.
// Selects the same keys as top_p in core/ops/select.cpp, bit for bit: masses are integers, so threads may add them in
// any order.
//
// The row is read once for the highest score, once for the total mass, once for each of three digits of the order key
// (the masses are added by digit, and the search continues in the digit where the share is exceeded), and once to write
// the keys above the cut.
#pragma once

#include <limits>

#include <reticle/core/cuda/top_k_block.hpp>
#include <reticle/core/ops/softmax_mass.hpp>

namespace reticle::cuda {

struct TopPCut {
  std::uint64_t bins[kCutBins];
  std::uint64_t scan[kWarp + 1];
  std::uint64_t total, passed;
  std::uint32_t largest, digit;
};

/// Shared memory of a block; the selection begins after the cut has been found.
union TopPShared {
  TopPCut cut;
  TopKShared selection;
};

namespace top_p_detail {

/// The end of the selection: all keys above `key`, and the first `ties` that equal it.
struct Cut {
  std::uint32_t key = 0;
  int ties = 0;
};

/// Finds the cut of a row that has a key above 0; share < 1.
template <class Block, class KeyOf>
RETICLE_HD Cut find_cut(const Block& block, TopPCut& shared, const MassScale& mass, KeyOf&& key_of, Index count,
                        double share) {
  constexpr int kAllTies = std::numeric_limits<int>::max();
  block.each([&](int thread) {
    std::uint64_t sum = 0;
    for (Index i = thread; i < count; i += block.threads()) {
      const std::uint32_t key = key_of(i);
      if (key != 0) sum += mass.of(key);
    }
    block.add(&shared.total, sum);
  });
  block.sync();
  std::uint64_t left = share_of(share, shared.total);
  std::uint32_t prefix = 0;
  for (int i = 0; i < kCutDigits; ++i) {
    const int shift = cut_digit(i).shift, bits = cut_digit(i).bits, bins = 1 << bits;
    block.each([&](int thread) {
      for (int bin = thread; bin < bins; bin += block.threads()) shared.bins[bin] = 0;
    });
    block.sync();
    block.each([&](int thread) {
      for (Index at = thread; at < count; at += block.threads()) {
        const std::uint32_t key = key_of(at);
        const bool within = i == 0 || ((key ^ prefix) >> (shift + bits)) == 0;
        if (key != 0 && within) block.add(&shared.bins[(key >> shift) & ((1u << bits) - 1)], mass.of(key));
      }
    });
    block.sync();
    const int bins_per_thread = (bins + block.threads() - 1) / block.threads();
    PerThread<Block, std::uint64_t> before(block), sums(block);
    block.each([&](int thread) {
      std::uint64_t sum = 0;
      for (int n = 0; n < bins_per_thread; ++n) {
        const int bin = bins - 1 - (thread * bins_per_thread + n);
        if (bin >= 0) sum += shared.bins[bin];
      }
      before[thread] = sums[thread] = sum;
    });
    if (block.exclusive_scan(before, shared.scan) <= left) return {prefix, kAllTies};  // rounding error: take all
    block.each([&](int thread) {
      if (before[thread] > left || before[thread] + sums[thread] <= left) return;
      int bin = bins - 1 - thread * bins_per_thread;
      std::uint64_t passed = before[thread];
      while (passed + shared.bins[bin] <= left) passed += shared.bins[bin--];
      shared.digit = static_cast<std::uint32_t>(bin);
      shared.passed = passed;
    });
    block.sync();
    left -= shared.passed;
    prefix |= shared.digit << shift;
    block.sync();
  }
  const std::uint64_t each = mass.of(prefix);  // not 0, since the digits were found by masses
  return {prefix, each == 0 ? kAllTies : static_cast<int>(left / each) + 1};
}

}  // namespace top_p_detail

/// Writes the indices, ascending, of the fewest of `count` order keys key_of(i), highest first, whose mass exceeds
/// `share` of the total, to out[0, n); returns n. share < 0 selects nothing, 0 the highest key, 1 or more all keys
/// above 0.
template <class Block, class KeyOf>
RETICLE_HD int top_p_row(const Block& block, TopPShared& shared, KeyOf&& key_of, Index count, double share,
                         std::int32_t* out) {
  if (!(share >= 0)) return 0;
  block.each([&](int thread) {
    if (thread != 0) return;
    shared.cut.largest = 0;
    shared.cut.total = 0;
  });
  block.sync();
  block.each([&](int thread) {
    std::uint32_t largest = 0;
    for (Index i = thread; i < count; i += block.threads()) {
      const std::uint32_t key = key_of(i);
      largest = key > largest ? key : largest;
    }
    block.keep_max(&shared.cut.largest, largest);
  });
  block.sync();
  const std::uint32_t largest = shared.cut.largest;
  if (largest == 0) return 0;
  top_p_detail::Cut cut;
  if (share < 1) cut = top_p_detail::find_cut(block, shared.cut, MassScale(largest, count), key_of, count, share);
  block.sync();
  block.each([&](int thread) {
    if (thread != 0) return;
    shared.selection.threshold = cut.key;
    shared.selection.wanted = cut.key == 0 ? 0 : cut.ties;
  });
  block.sync();
  return top_k_detail::write_selected(
      block, shared.selection, count, key_of, [](Index i) { return static_cast<std::int32_t>(i); }, out);
}

}  // namespace reticle::cuda
