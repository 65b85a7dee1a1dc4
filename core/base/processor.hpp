#pragma once

#include <string>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// The instruction set that kernels use in this process, by Highway's name ("AVX2", "AVX3_ZEN4", "NEON_BF16"): the best
/// one that this build has kernels for and the processor supports.
RETICLE_API std::string instruction_set();

}  // namespace reticle
