// Runs kernels with every instruction set that they are compiled for and this processor has.
#pragma once

#define HWY_WANT_AVX3_DL  // matches the kernels compiled for it

#include <gtest/gtest.h>
#include <hwy/detect_targets.h>
#include <hwy/targets.h>

namespace reticle::testing {

template <class Body>
void for_each_target(Body&& body) {
  for (std::int64_t targets = hwy::SupportedTargets() & HWY_TARGETS; targets != 0; targets &= targets - 1) {
    hwy::SetSupportedTargetsForTest(targets & -targets);
    SCOPED_TRACE(hwy::TargetName(targets & -targets));
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace reticle::testing
