#include "limits.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <vector>

#include <reticle/core/base/context.hpp>
#include <reticle/core/tensor/buffer.hpp>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "benchmarks/limits.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace reticle::bench::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Ten independent chains of multiply-adds; returns the number of float operations.
double MultiplyAdds(long long repeats, float* out) {
  const hn::ScalableTag<float> tag;
  using V = hn::Vec<decltype(tag)>;
  constexpr int kChains = 10;
  V sums[kChains];
  for (V& sum : sums) sum = hn::Set(tag, *out);
  const V a = hn::Set(tag, 0.999f), b = hn::Set(tag, 0.001f);
  for (long long i = 0; i < repeats; ++i) {
    for (V& sum : sums) sum = hn::MulAdd(sum, a, b);
  }
  for (const V sum : sums) *out += hn::GetLane(sum);
  return 2.0 * kChains * static_cast<double>(repeats) * static_cast<double>(hn::Lanes(tag));
}

void ReadWords(const std::uint64_t* data, std::size_t count) {
  const hn::ScalableTag<std::uint64_t> tag;
  const std::size_t lanes = hn::Lanes(tag);
  auto a = hn::Zero(tag), b = a, c = a, d = a;
  for (std::size_t i = 0; i + 4 * lanes <= count; i += 4 * lanes) {
    const std::uint64_t* at = data + i;
    a = hn::Add(a, hn::LoadU(tag, at));
    b = hn::Add(b, hn::LoadU(tag, at + lanes));
    c = hn::Add(c, hn::LoadU(tag, at + 2 * lanes));
    d = hn::Add(d, hn::LoadU(tag, at + 3 * lanes));
  }
  volatile std::uint64_t sum = hn::GetLane(hn::Add(hn::Add(a, b), hn::Add(c, d)));
  (void)sum;
}

}  // namespace reticle::bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace reticle::bench {
namespace {

HWY_EXPORT(MultiplyAdds);
HWY_EXPORT(ReadWords);

/// The highest rate in five runs of `work`, which returns the amount of work done.
template <class Work>
double best_rate(Work&& work) {
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    const double done = work();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, done / elapsed.count());
  }
  return best;
}

volatile double sink = 0;

}  // namespace

double read_bandwidth(int threads) {
  static std::map<int, double> measured;
  double& best = measured[threads];
  if (best != 0) return best;
  const Array<std::uint64_t> data(std::size_t{1} << 26, 1);  // 512 MB
  const Context context(threads);
  const Index chunk = static_cast<Index>(data.size()) / threads;
  best = best_rate([&] {
    context.for_each_chunk(threads, 1, [&](Index thread, Index, Index) {
      HWY_DYNAMIC_DISPATCH(ReadWords)(data.data() + thread * chunk, static_cast<std::size_t>(chunk));
    });
    return static_cast<double>(data.size() * sizeof data[0]);
  });
  return best;
}

double copy_bandwidth() {
  static const double best = [] {
    const std::vector<char> from(std::size_t{1} << 27, 1);
    std::vector<char> to(from.size());
    return best_rate([&] {
      std::memcpy(to.data(), from.data(), from.size());
      return 2 * static_cast<double>(from.size());
    });
  }();
  return best;
}

double multiply_add_peak() {
  static const double best = best_rate([] {
    float out = 1;
    const double done = HWY_DYNAMIC_DISPATCH(MultiplyAdds)(4'000'000, &out);
    sink = sink + static_cast<double>(out);
    return done;
  });
  return best;
}

}  // namespace reticle::bench
#endif
