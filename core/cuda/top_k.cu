#include <string>

#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/top_k.hpp>
#include <reticle/core/cuda/top_k_block.hpp>

namespace reticle::cuda {
namespace {

struct SelectTopK {
  static constexpr int kThreads = kTopKThreads;
  using Shared = TopKShared;
  const float* scores;
  Index count;
  int k;
  std::int32_t *indices, *counts;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index row) const {
    const float* const row_scores = scores + row * count;
    const int found = top_k_row(
        block, shared, [row_scores](Index i) { return order_key(row_scores[i]); }, count, k, indices + row * k);
    block.each([&](int thread) {
      if (thread == 0) counts[row] = found;
    });
  }
};

}  // namespace

void top_k(const float* scores, Index rows, Index count, Index k, std::int32_t* indices, std::int32_t* counts,
           Stream stream) {
  constexpr Index kMaxCount = 2147483647;
  if (k < 1 || k > (Index{1} << 20)) throw ValueError("top_k: k is " + std::to_string(k) + "; expected 1 to 2^20");
  if (rows < 0 || count < 0 || rows > kMaxCount || count > kMaxCount)
    throw ValueError("top_k: " + std::to_string(rows) + " rows of " + std::to_string(count) + " are too many");
  launch(SelectTopK{scores, count, static_cast<int>(k), indices, counts}, rows, stream, "selecting");
}

}  // namespace reticle::cuda
