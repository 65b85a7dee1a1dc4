#include <string>

#include <hwy/detect_targets.h>
#include <hwy/targets.h>

#include <reticle/core/base/processor.hpp>

namespace reticle {

std::string instruction_set() {
  const auto runnable = hwy::SupportedTargets() & static_cast<std::int64_t>(HWY_TARGETS);
  return hwy::TargetName(runnable & -runnable);  // better targets have lower bits
}

}  // namespace reticle
