// The device of the preset `emulated`; in other builds there is none to be tested.
#if defined(RETICLE_EMULATED_DEVICE)
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/base/error.hpp>
#include <reticle/core/cuda/emulated/device.hpp>

#include "support/cuda/on_device.hpp"
#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

void wait_for(Stream stream) { copy_to_host(nullptr, nullptr, 0, stream); }

bool runs_late() {
  const char* const how = std::getenv("RETICLE_EMULATED_STREAMS");
  return how != nullptr && std::string_view(how) == "late";
}

TEST(CudaDeviceEmulated, AStreamsWorkIsDoneInOrderOnceSomebodyWaits) {
  int number = 0;
  Stream const first = &number, second = &number + 1;  // any two addresses name two streams
  std::vector<int> done;
  for (const int i : {1, 2, 3}) emulated::enqueue(first, [&, i] { done.push_back(i); });
  emulated::enqueue(second, [&] { done.push_back(9); });
  if (runs_late()) {
    EXPECT_TRUE(done.empty()) << "nobody has waited";
    wait_for(second);
    EXPECT_EQ(done, std::vector<int>{9}) << "the other stream has not been waited for";
    wait_for(first);
    EXPECT_EQ(done, (std::vector<int>{9, 1, 2, 3}));
  } else {
    EXPECT_EQ(done, (std::vector<int>{1, 2, 3, 9}));
  }
}

TEST(CudaDeviceEmulated, WorkThatAddsWorkIsFollowedByIt) {
  std::vector<int> done;
  emulated::enqueue(nullptr, [&] {
    done.push_back(1);
    emulated::enqueue(nullptr, [&] { done.push_back(2); });
  });
  wait_for(nullptr);
  EXPECT_EQ(done, (std::vector<int>{1, 2}));
}

TEST(CudaDeviceEmulated, MemoryThatNobodyWroteHoldsNaN) {
  for (const float value : on_host<float>(Buffer(20, nullptr), 5)) EXPECT_TRUE(std::isnan(value));
  const emulated::SharedMemory<float[5]> shared;
  for (const float value : *shared) EXPECT_TRUE(std::isnan(value));
}

TEST(CudaDeviceEmulated, FreedMemoryIsGivenOutAgain) {
  wait_for(nullptr);  // memory is freed in the stream's order, that of earlier tests, too
  void* before = nullptr;
  {
    const Buffer buffer(1000, nullptr);
    before = buffer.as<void>();
  }
  wait_for(nullptr);
  const Buffer again(1000, nullptr);
  EXPECT_EQ(again.as<void>(), before);
}

TEST(CudaDeviceEmulated, MemoryThatThereIsNotIsADeviceError) {
  EXPECT_EQ(reticle::testing::message_of<DeviceError>([] { Buffer(std::size_t{1} << 50, nullptr); }),
            "CUDA: allocating device memory: out of memory");
  EXPECT_EQ(on_host<std::int32_t>(Buffer::zeros(4, nullptr), 1), std::vector<std::int32_t>{0}) << "work goes on";
}

TEST(CudaDeviceEmulated, TheHostFaultsWhereItReadsDeviceMemory) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Buffer buffer = Buffer::zeros(16, nullptr);
  wait_for(nullptr);
  EXPECT_DEATH(static_cast<void>(*const_cast<const volatile char*>(buffer.as<char>())), "");
}

TEST(CudaDeviceEmulated, CopiesInTheWrongDirectionAreRefused) {
  char host[4] = {};
  const Buffer buffer(4, nullptr);
  const auto refusal = [](const auto& call) { return reticle::testing::message_of<DeviceError>(call); };
  EXPECT_EQ(refusal([&] { copy_to_device(host, host, 4, nullptr); }), "CUDA: copying to the device: invalid argument");
  EXPECT_EQ(refusal([&] { copy_to_host(buffer.as<void>(), buffer.as<void>(), 4, nullptr); }),
            "CUDA: copying from the device: invalid argument");
  EXPECT_EQ(refusal([&] { copy_on_device(buffer.as<void>(), host, 4, nullptr); }),
            "CUDA: copying on the device: invalid argument");
}

TEST(CudaDeviceEmulated, CopiesTakeTheHostsBytesAtOnce) {
  std::vector<int> values = {1, 2, 3};
  const Buffer buffer(3 * sizeof(int), nullptr);
  copy_to_device(buffer.as<void>(), values.data(), 3 * sizeof(int), nullptr);
  values = {7, 8, 9};
  EXPECT_EQ(on_host<int>(buffer, 3), (std::vector<int>{1, 2, 3}));
}

TEST(CudaDeviceEmulated, CapabilityIsTheOneAskedFor) {
  const char* const asked = std::getenv("RETICLE_EMULATED_CAPABILITY");
  EXPECT_EQ(compute_capability(), asked == nullptr ? 90 : std::atoi(asked));
  EXPECT_EQ(multiprocessors(), 4);
  EXPECT_EQ(device_count(), 1);
}

}  // namespace
}  // namespace reticle::cuda
#endif
