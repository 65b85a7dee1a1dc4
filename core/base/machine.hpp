// What this processor is good at, measured when a kernel first asks. Choices by it change no result.
#pragma once

#include <cstdint>
#include <string_view>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// How matrices of bfloat16 are multiplied.
enum class Bf16Product : std::uint8_t {
  exact,   // as floats, without rounding weights: the processor has no instruction for pairs of bfloat16
  pairs,   // by the instruction for pairs (AVX512_BF16)
  floats,  // as floats in the order and rounding of the instruction, which gives its bits
};

RETICLE_API std::string_view name_of(Bf16Product product);

/// Whether this processor has the instruction for pairs of bfloat16: Zen 4, Cooper Lake, Sapphire Rapids and later.
RETICLE_API bool has_bf16_pairs();

/// The faster product. The instruction does the work of two multiply-adds of floats in the time of 1 to 1.5 on Zen 4;
/// there are processors where it takes longer than both. It is timed once per process, which takes about 0.2 ms, unless
/// the environment variable RETICLE_BF16_PRODUCT says "pairs" or "floats". ValueError when it says something else.
RETICLE_API Bf16Product bf16_product();

/// Times as long as a multiply-add of floats that the instruction for pairs takes; 0 where there is none. The least of
/// several runs, so that interruptions do not count.
RETICLE_API double time_of_bf16_pairs();

}  // namespace reticle
