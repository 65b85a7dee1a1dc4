// The fixture of tests of builds without a CUDA toolkit.
#pragma once

#include <string>

#include <gtest/gtest.h>

#include <reticle/core/base/error.hpp>
#include <reticle/core/cuda/runtime.hpp>

#include "support/message_of.hpp"

namespace reticle::cuda {

inline constexpr char kNoCuda[] = "CUDA: this build has no CUDA (configure with RETICLE_CUDA=ON)";

/// Skips where the build has a toolkit or the emulated device, whose refusals name what failed instead.
class CudaUnavailable : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!std::string(why_unavailable()).starts_with("this build has no CUDA")) GTEST_SKIP() << "this build has CUDA";
  }

  template <class Call>
  static std::string refusal(const Call& call) {
    return reticle::testing::message_of<DeviceError>(call);
  }
};

}  // namespace reticle::cuda
