// Page bounds on a GPU: the elementwise maximum and minimum of the keys of every page, which give upper bounds of q.k,
// as in core/ops/page_bounds.hpp. Bounding reads a page's keys once, when they are new; scoring reads 8 bytes per
// element of head_dim and page, where scoring keys would read page_size elements.
#pragma once

#include <cstdint>
#include <limits>

#include <reticle/core/cuda/row_block.hpp>

namespace reticle::cuda {

inline constexpr int kPageThreads = 128;
inline constexpr int kPagesPerBlock = 64;  // pages that a block scores
inline constexpr int kMaxHeadDim = 256;

/// Bounds of pages, (batch * KV heads, capacity, [maximum | minimum], head_dim).
struct PageBoundsProblem {
  const void* keys = nullptr;  // (b, hkv, sk, d)
  Strides key_strides;
  int kv_heads = 1, key_count = 0, head_dim = 0, page_size = 1, capacity = 0;
  float* bounds = nullptr;
  const std::uint8_t* reachable = nullptr;  // (b * hkv, sk), see reachable_block.hpp; null: all are

  RETICLE_HD float* of(int batch, int kv_head, int page) const {
    return bounds + ((static_cast<Index>(batch) * kv_heads + kv_head) * capacity + page) * 2 * head_dim;
  }
};

/// Computes the bounds of page `page` from the keys that exist so far.
template <class T, class Block>
RETICLE_HD void bound_page(const Block& block, const PageBoundsProblem& problem, int batch, int kv_head, int page) {
  const int first = page * problem.page_size, d = problem.head_dim;
  const int last = first + problem.page_size < problem.key_count ? first + problem.page_size : problem.key_count;
  const Strides& strides = problem.key_strides;
  const T* const keys = static_cast<const T*>(problem.keys) + batch * strides.batch + kv_head * strides.head;
  float* const bounds = problem.of(batch, kv_head, page);
  const std::uint8_t* const reachable =
      problem.reachable == nullptr
          ? nullptr
          : problem.reachable + (static_cast<Index>(batch) * problem.kv_heads + kv_head) * problem.key_count;
  block.each([&](int thread) {
    for (int e = thread; e < d; e += block.threads()) {
      // Without any key the bounds are finite, so that 0 * bound is not NaN.
      float largest = -std::numeric_limits<float>::max(), least = std::numeric_limits<float>::max();
      for (int key = first; key < last; ++key) {
        if (reachable != nullptr && reachable[key] == 0) continue;
        const float element = widened(keys[static_cast<Index>(key) * strides.row + e]);
        largest = element > largest ? element : largest;
        least = element < least ? element : least;
      }
      bounds[e] = largest;
      bounds[d + e] = least;
    }
  });
}

struct PageScoreProblem {
  PageBoundsProblem pages;
  const void* queries = nullptr;  // (b, hq, sq, d)
  Strides query_strides;
  int heads = 1, rows = 1, page_count = 0;
  float* scores = nullptr;  // (b * hq * sq, page_count)
};

/// Scores pages [part * kPagesPerBlock, (part + 1) * kPagesPerBlock) for row number `row`; each warp takes a page, and
/// its lanes take neighbouring elements.
template <class T, class Block>
RETICLE_HD void score_pages(const Block& block, float* query, const PageScoreProblem& problem, int row, int part) {
  const int head = row / problem.rows % problem.heads, batch = row / problem.rows / problem.heads;
  const int kv_head = head * problem.pages.kv_heads / problem.heads, d = problem.pages.head_dim;
  const Strides& strides = problem.query_strides;
  const T* const row_query = static_cast<const T*>(problem.queries) + batch * strides.batch + head * strides.head +
                             row % problem.rows * strides.row;
  block.each([&](int thread) {
    for (int e = thread; e < d; e += block.threads()) query[e] = widened(row_query[e]);
  });
  block.sync();
  const int first = part * kPagesPerBlock, warps = block.threads() / kWarp;
  PerThread<Block, float> sums(block);
  for (int step = 0; step < kPagesPerBlock; step += warps) {
    block.each([&](int thread) {
      const int page = first + step + thread / kWarp;
      float sum = 0;
      if (page < problem.page_count) {
        const float* const bounds = problem.pages.of(batch, kv_head, page);
        for (int e = thread % kWarp; e < d; e += kWarp) sum += query[e] * (query[e] > 0 ? bounds[e] : bounds[d + e]);
      }
      sums[thread] = sum;
    });
    block.template sum_over<kWarp>(sums);
    block.each([&](int thread) {
      const int page = first + step + thread / kWarp;
      if (thread % kWarp == 0 && page < problem.page_count)
        problem.scores[static_cast<Index>(row) * problem.page_count + page] = sums[thread];
    });
  }
}

}  // namespace reticle::cuda
