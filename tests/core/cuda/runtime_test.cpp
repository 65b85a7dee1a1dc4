#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/runtime.hpp>

#include "support/cuda/on_device.hpp"

namespace reticle::cuda {
namespace {

TEST_F(CudaDevice, BytesGoThereAndComeBack) {
  for (const std::size_t count : {0u, 1u, 7u, 4099u}) {
    std::vector<std::uint16_t> bytes(count);
    for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::uint16_t>(i * 31 + 5);
    const std::vector<std::uint16_t> before = bytes;
    const Buffer buffer = Buffer::copy_of(std::span<const std::uint16_t>(bytes), nullptr);
    bytes.assign(count, 0);  // which may be done as soon as the call returns
    EXPECT_EQ(buffer.bytes(), count * 2);
    Buffer second(count * 2, nullptr);
    second.copy_on_device(buffer.as<void>(), nullptr);
    EXPECT_EQ(on_host<std::uint16_t>(second, count), before);
  }
}

TEST_F(CudaDevice, MemoryOfZerosHoldsZeros) {
  EXPECT_EQ(on_host<std::int32_t>(Buffer::zeros(17 * 4, nullptr), 17), std::vector<std::int32_t>(17, 0));
}

TEST_F(CudaDevice, AMovedBufferIsTheOthersAndLeavesAnEmptyOne) {
  const std::vector<float> values = {1, 2, 3};
  Buffer first = Buffer::copy_of(std::span<const float>(values), nullptr);
  const float* const data = first.as<float>();
  Buffer second(std::move(first));
  EXPECT_EQ(first.bytes(), 0u);  // NOLINT(bugprone-use-after-move): what a move leaves is documented
  EXPECT_EQ(first.as<float>(), nullptr);
  EXPECT_EQ(second.as<float>(), data);
  EXPECT_EQ(on_host<float>(second, 3), values);
}

TEST_F(CudaDevice, TheCurrentDeviceIsOneOfThoseThereAre) {
  EXPECT_GE(current_device(), 0);
  EXPECT_LT(current_device(), device_count());
  EXPECT_GE(multiprocessors(), 1);
  EXPECT_GE(compute_capability(), 80) << "8.0 is the least that kernels are compiled for";
}

}  // namespace
}  // namespace reticle::cuda
