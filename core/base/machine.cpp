#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>

#include <hwy/base.h>

#include <reticle/core/base/error.hpp>
#include <reticle/core/base/machine.hpp>

#if HWY_ARCH_X86_64
#include <immintrin.h>
#endif

namespace reticle {

std::string_view name_of(Bf16Product product) {
  switch (product) {
    case Bf16Product::pairs:
      return "pairs";
    case Bf16Product::floats:
      return "floats";
    case Bf16Product::exact:
      break;
  }
  return "exact";
}

#if HWY_ARCH_X86_64
HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
namespace {

constexpr int kChains = 12;  // independent sums: enough to hide the latency of either instruction
constexpr int kSteps = 400, kRuns = 7;

/// Seconds of the fastest of several runs of a step over independent sums.
template <class Step>
double fastest(const Step& step) {
  double best = 1;
  for (int run = 0; run < kRuns; ++run) {
    __m512 sums[kChains] = {};
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kSteps; ++i) {
      for (__m512& sum : sums) sum = step(sum);
    }
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    for (const __m512& sum : sums) asm volatile("" ::"v"(sum));
  }
  return best;
}

double measure() {
  const __m512 x = _mm512_set1_ps(1e-3f);
  const auto pair = reinterpret_cast<__m512bh>(x);
  const double pairs = fastest([&](__m512 sum) { return _mm512_dpbf16_ps(sum, pair, pair); }),
               floats = fastest([&](__m512 sum) { return _mm512_fmadd_ps(x, x, sum); });
  return pairs / floats;
}

}  // namespace
HWY_POP_ATTRIBUTES

bool has_bf16_pairs() {
  static const bool present = __builtin_cpu_supports("avx512bf16") != 0;
  return present;
}

double time_of_bf16_pairs() { return has_bf16_pairs() ? measure() : 0; }
#else
bool has_bf16_pairs() { return false; }
double time_of_bf16_pairs() { return 0; }
#endif

Bf16Product bf16_product() {
  if (!has_bf16_pairs()) return Bf16Product::exact;
  static const Bf16Product chosen = [] {
    if (const char* asked = std::getenv("RETICLE_BF16_PRODUCT"); asked != nullptr && *asked != '\0') {
      for (const Bf16Product product : {Bf16Product::pairs, Bf16Product::floats}) {
        if (name_of(product) == asked) return product;
      }
      throw ValueError("RETICLE_BF16_PRODUCT is \"" + std::string(asked) + "\"; expected \"pairs\" or \"floats\"");
    }
    // Floats take two multiply-adds for a pair, and their tiles must be converted, which costs a twentieth.
    return time_of_bf16_pairs() < 2.1 ? Bf16Product::pairs : Bf16Product::floats;
  }();
  return chosen;
}

}  // namespace reticle
