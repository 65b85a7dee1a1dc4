// The physical limits that benchmarks are compared with, measured on the same machine: the best of several runs, once
// per process.
#pragma once

namespace reticle::bench {

/// Bytes per second that `threads` threads together read from memory larger than every cache.
double read_bandwidth(int threads);

/// Bytes per second, read plus written, of one thread's memcpy in memory larger than every cache.
double copy_bandwidth();

/// Float operations per second of one thread's independent multiply-adds in registers, counted as two per element, with
/// the widest vectors.
double multiply_add_peak();

}  // namespace reticle::bench
