// The physical limits that benchmarks are measured against, taken on the machine they run on: best of several, measured
// once a process.
#pragma once

namespace reticle::bench {

/// Bytes per second that so many threads together read of memory that exceeds every cache.
double read_bandwidth(int threads);

/// Bytes per second, read plus written, of one thread's memcpy over memory that exceeds every cache.
double copy_bandwidth();

/// Float operations per second of one thread's independent multiply-adds in registers, two to an element, in the widest
/// vectors.
double multiply_add_peak();

}  // namespace reticle::bench
