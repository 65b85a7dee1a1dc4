// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// Counter-based: a draw is a function of where it is used, so it is the same on any thread count and device.
#pragma once

#include <cmath>
#include <cstdint>

#include <reticle/core/base/export.hpp>

namespace reticle {

class Philox {
 public:
  struct Block {
    std::uint32_t word[4];
  };

  /// The stream of one row. seed is the key; (layer, batch, head, row) are three words of the counter, the fourth
  /// counts the blocks drawn. Layer and batch share a word, 16 bits each.
  RETICLE_HD constexpr Philox(std::uint64_t seed, std::uint32_t layer, std::uint32_t batch, std::uint32_t head,
                              std::uint32_t row)
      : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
        counter_{0, row, head, (layer << 16) ^ batch} {}

  RETICLE_HD constexpr std::uint32_t next() {
    if (used_ == 4) {
      block_ = generate(counter_, key_);
      ++counter_.word[0];
      used_ = 0;
    }
    return block_.word[used_++];
  }

  /// Word i of the stream, whatever has been drawn; lets threads draw in parallel.
  RETICLE_HD constexpr std::uint32_t word(std::uint32_t i) const {
    const Block block = generate({{i / 4, counter_.word[1], counter_.word[2], counter_.word[3]}}, key_);
    const std::uint32_t low = i % 2 == 0 ? block.word[0] : block.word[1];  // constant indices: stays in registers
    const std::uint32_t high = i % 2 == 0 ? block.word[2] : block.word[3];
    return i % 4 < 2 ? low : high;
  }

  /// Uniform in [0, bound), without bias (multiplication with rejection, Lemire 2019). bound in [1, 2^32 - 1].
  RETICLE_HD constexpr std::uint32_t below(std::uint32_t bound) {
    std::uint64_t product = static_cast<std::uint64_t>(next()) * bound;
    if (static_cast<std::uint32_t>(product) < bound) {
      const std::uint32_t threshold = (0u - bound) % bound;
      while (static_cast<std::uint32_t>(product) < threshold) product = static_cast<std::uint64_t>(next()) * bound;
    }
    return static_cast<std::uint32_t>(product >> 32);
  }

  /// Uniform in (0, 1).
  RETICLE_HD constexpr float uniform() { return (static_cast<float>(next() >> 8) + 0.5f) * 0x1p-24f; }

  /// Standard normal (Box and Muller 1958).
  RETICLE_HD float normal() {
    const float radius = std::sqrt(-2.0f * std::log(uniform()));
    return radius * std::cos(6.283185307179586f * uniform());
  }

  /// Ten rounds on one counter.
  RETICLE_HD static constexpr Block generate(Block counter, const std::uint32_t (&key)[2]) {
    std::uint32_t k0 = key[0], k1 = key[1];
    Block c = counter;
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = static_cast<std::uint64_t>(0xD2511F53u) * c.word[0];
      const std::uint64_t p1 = static_cast<std::uint64_t>(0xCD9E8D57u) * c.word[2];
      c = {{static_cast<std::uint32_t>(p1 >> 32) ^ c.word[1] ^ k0, static_cast<std::uint32_t>(p1),
            static_cast<std::uint32_t>(p0 >> 32) ^ c.word[3] ^ k1, static_cast<std::uint32_t>(p0)}};
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return c;
  }

 private:
  std::uint32_t key_[2];
  Block counter_;
  Block block_{};
  int used_ = 4;
};

/// A well-mixed seed for the n-th consumer of a seed (SplitMix64 finaliser); n = 0 keeps the seed.
RETICLE_HD constexpr std::uint64_t derive_seed(std::uint64_t seed, std::uint64_t n) {
  if (n == 0) return seed;
  std::uint64_t z = seed + n * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace reticle
