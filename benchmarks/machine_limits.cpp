// Prints this machine's physical limits as JSON: {"read": [one thread, all threads], "copy": ..., "multiply_add": ...},
// in bytes and float operations per second.
#include <cstdio>
#include <thread>

#include "limits.hpp"

int main() {
  const int threads = static_cast<int>(std::thread::hardware_concurrency());
  std::printf("{\"threads\": %d, \"read\": [%.0f, %.0f], \"copy\": %.0f, \"multiply_add\": %.0f}\n", threads,
              reticle::bench::read_bandwidth(1), reticle::bench::read_bandwidth(threads),
              reticle::bench::copy_bandwidth(), reticle::bench::multiply_add_peak());
}
