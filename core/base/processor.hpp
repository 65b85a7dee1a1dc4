#pragma once

#include <string>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// The instruction set that kernels run with in this process, as Highway names it ("AVX2", "AVX3_ZEN4", "NEON_BF16"):
/// the best that this build has kernels for and the processor shows.
RETICLE_API std::string instruction_set();

}  // namespace reticle
