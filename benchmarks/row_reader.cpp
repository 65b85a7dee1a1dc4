// Reads rows by index lists and computes nothing: the upper limit for attention over random tokens on this machine,
// because gathering isolated rows is slower than streaming them. Called by peers.py.
#include <atomic>
#include <cstdint>

#include <reticle/core/base/context.hpp>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "benchmarks/row_reader.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace reticle::bench::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Prefetches the row that is `ahead` rows later into the L2 cache; returns a byte of the rows' sum.
std::uint8_t ReadRows(const std::uint8_t* rows, Index row_bytes, const std::int32_t* indices, Index count,
                      Index ahead) {
  const hn::ScalableTag<std::uint8_t> tag;
  const auto lanes = static_cast<Index>(hn::Lanes(tag));
  auto sum = hn::Zero(tag);
  for (Index i = 0; i < count; ++i) {
    const std::uint8_t* const row = rows + indices[i] * row_bytes;
    if (i + ahead < count) {
      const std::uint8_t* const later = rows + indices[i + ahead] * row_bytes;
      for (Index byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(later + byte, 0, 2);
    }
    for (Index byte = 0; byte + lanes <= row_bytes; byte += lanes) sum = hn::Add(sum, hn::LoadU(tag, row + byte));
  }
  return hn::GetLane(sum);
}

}  // namespace reticle::bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle::bench {
HWY_EXPORT(ReadRows);
}  // namespace reticle::bench

/// Reads, in parallel, list i's counts[i] rows of row_bytes from bases[i] on; returns a checksum that keeps the reads
/// alive.
extern "C" __attribute__((visibility("default"))) int reticle_bench_read_rows(
    const std::uint8_t* const* bases, const std::int32_t* const* indices, const std::int64_t* counts,
    std::int64_t lists, std::int64_t row_bytes, std::int64_t ahead) {
  std::atomic<std::uint8_t> sum = 0;
  const reticle::Context context;
  context.for_each_chunk(lists, 1, [&](reticle::Index i, reticle::Index, reticle::Index) {
    sum += HWY_DYNAMIC_DISPATCH(reticle::bench::ReadRows)(bases[i], row_bytes, indices[i], counts[i], ahead);
  });
  return sum;
}
#endif
