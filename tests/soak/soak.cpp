// Decodes for long and watches memory: `reticle_soak STEPS SEQUENCES` decodes STEPS tokens, 1000 to a sequence, and
// then runs SEQUENCES short ones, by patterns that keep state of every kind. Exit status 1 when resident memory grew by
// more than 2 MiB after the first tenth.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <unistd.h>
#include <vector>

#include <reticle/attention/kv_cache.hpp>
#include <reticle/attention/sparse_attention.hpp>

#include "support/attention.hpp"

namespace reticle::testing {
namespace {

constexpr const char* kPattern = R"({
  "prefill": {"maskers": [{"type": "sink", "sink_size": 4}, {"type": "local", "window_size": 32}]},
  "generation": {"maskers": [
    {"type": "sink", "sink_size": 4, "heads": [0]}, {"type": "local", "window_size": 32, "heads": [0]},
    {"type": "quest_top_k", "heavy_size": 32, "heads": [1]},
    {"type": "pq_cache", "heavy_size": 16, "pq_bits": 3, "kmeans_iter": 2, "heads": [1]},
    {"type": "tova", "token_capacity": 48, "heads": [2]},
    {"type": "random_sampling", "sampling_rate": 0.05, "heads": [3]},
    {"type": "moba", "block_size": 16, "top_k": 2, "heads": [3]}]},
  "causal": true})";

/// Of this process, in KiB.
long resident() {
  long pages = 0, mine = 0;
  std::ifstream("/proc/self/statm") >> pages >> mine;
  return mine * (sysconf(_SC_PAGESIZE) / 1024);
}

struct Soak {
  static constexpr Index kLongest = 1024;
  OwnedInputs owned{{1, 4, 2, kLongest, kLongest, 16, 16}, 1};
  SparseAttention sparse = SparseAttention::from_json(kPattern);
  Context context{1};
  double sum = 0;

  /// A prompt of `prompt` tokens and the steps up to `length`.
  void sequence(Index prompt, Index length) {
    SequenceState state(Recording::figures);
    AttentionInputs part = owned.inputs.rows(0, prompt);
    part.stage = Stage::prefill;
    add(sparse.attend(part, state, {}, {}, context).attention);
    for (Index query = prompt; query < length; ++query) {
      part = owned.inputs.rows(query, query + 1);
      part.stage = Stage::generation;
      add(sparse.attend(part, state, {}, {}, context).attention);
    }
  }
  void add(const AttentionResult& result) { sum += static_cast<double>(result.output.span<float>()[0]); }
};

/// Whether memory was flat while body(i) ran `count` times.
template <class Body>
bool flat(const char* what, long count, Body&& body) {
  long start = 0, most = 0;
  for (long i = 0; i < count; ++i) {
    body();
    if (i == count / 10) start = resident();
    if (i >= count / 10) most = std::max(most, resident());
    if (count >= 10 && (i + 1) % (count / 10) == 0) {
      std::printf("%s: %ld of %ld, %ld KiB resident\n", what, i + 1, count, resident());
      std::fflush(stdout);
    }
  }
  std::printf("%s: grew by %ld KiB after the first tenth\n", what, most - start);
  return most - start <= 2048;
}

}  // namespace
}  // namespace reticle::testing

int main(int argc, char** argv) {
  using namespace reticle::testing;
  const long steps = argc > 1 ? std::atol(argv[1]) : 20000, sequences = argc > 2 ? std::atol(argv[2]) : 1000;
  Soak soak;
  const bool decoding = flat("decode steps, thousands", steps / 1000, [&] { soak.sequence(24, 1024); });
  const bool starting = flat("sequences", sequences, [&] { soak.sequence(16, 20); });
  std::printf("sum %.6f\n", soak.sum);
  return decoding && starting ? 0 : 1;
}
