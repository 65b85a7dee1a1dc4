// The physical limits that benchmarks are measured against, taken on the machine they run on.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

namespace reticle::bench {

/// Bytes per second of reading (summing) memory that exceeds every cache, one thread, best of several.
inline double read_bandwidth() {
  static const double best = [] {
    std::vector<unsigned long long> data(std::size_t{1} << 25, 1);  // 256 MB
    double fastest = 0;
    for (int repeat = 0; repeat < 5; ++repeat) {
      const auto start = std::chrono::steady_clock::now();
      unsigned long long sums[8] = {};
      for (std::size_t i = 0; i < data.size(); i += 8) {
        for (std::size_t lane = 0; lane < 8; ++lane) sums[lane] += data[i + lane];
      }
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      volatile unsigned long long sink = sums[0] + sums[7];
      (void)sink;
      fastest = std::max(fastest, static_cast<double>(data.size() * 8) / elapsed.count());
    }
    return fastest;
  }();
  return best;
}

/// Bytes per second, read plus written, of memcpy over memory that exceeds every cache, one thread, best of several.
inline double copy_bandwidth() {
  static const double best = [] {
    std::vector<char> from(std::size_t{1} << 27, 1), to(from.size());
    double fastest = 0;
    for (int repeat = 0; repeat < 5; ++repeat) {
      const auto start = std::chrono::steady_clock::now();
      std::memcpy(to.data(), from.data(), from.size());
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      fastest = std::max(fastest, 2 * static_cast<double>(from.size()) / elapsed.count());
    }
    return fastest;
  }();
  return best;
}

}  // namespace reticle::bench
