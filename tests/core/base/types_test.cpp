#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>

#include <gtest/gtest.h>

#include <reticle/core/base/types.hpp>

namespace reticle {
namespace {

TEST(DType, HasANameAndASize) {
  const struct {
    DType dtype;
    std::string_view name;
    Index bytes;
  } all[] = {{DType::f32, "F32", 4},     {DType::f16, "F16", 2}, {DType::bf16, "BF16", 2}, {DType::f64, "F64", 8},
             {DType::i64, "I64", 8},     {DType::i32, "I32", 4}, {DType::i16, "I16", 2},   {DType::i8, "I8", 1},
             {DType::u64, "U64", 8},     {DType::u32, "U32", 4}, {DType::u16, "U16", 2},   {DType::u8, "U8", 1},
             {DType::boolean, "BOOL", 1}};
  for (const auto& [dtype, name, bytes] : all) {
    EXPECT_EQ(name_of(dtype), name);
    EXPECT_EQ(size_of(dtype), bytes) << name;
  }
}

TEST(Device, DescribesItselfForMessages) {
  EXPECT_EQ(Device{}.describe(), "the CPU");
  EXPECT_EQ((Device{Device::Kind::cuda, 0}).describe(), "GPU 0");
  EXPECT_EQ((Device{Device::Kind::cuda, 12}).describe(), "GPU 12");
}

TEST(Device, OfOneKindAreToldApartByTheirIndex) {
  EXPECT_EQ(Device{}, (Device{Device::Kind::cpu, 0}));
  EXPECT_NE((Device{Device::Kind::cuda, 0}), (Device{Device::Kind::cuda, 1}));
  EXPECT_NE(Device{}, (Device{Device::Kind::cuda, 0}));
}

TEST(Half, EveryValueSurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Half half{static_cast<std::uint16_t>(bits)};
    const float value = to_float(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(from_float<Half>(value))));
    } else {
      EXPECT_EQ(from_float<Half>(value).bits, half.bits);
    }
    const BFloat16 brain{static_cast<std::uint16_t>(bits)};
    if (!std::isnan(to_float(brain))) {
      EXPECT_EQ(from_float<BFloat16>(to_float(brain)).bits, brain.bits);
    }
  }
}

TEST(Half, RoundsToNearestEven) {
  EXPECT_EQ(to_float(from_float<Half>(1.0f + 0x1p-11f)), 1.0f);
  EXPECT_EQ(to_float(from_float<Half>(1.0f + 0x3p-11f)), 1.0f + 0x1p-9f);
  EXPECT_EQ(to_float(from_float<Half>(65519.0f)), 65504.0f);
  EXPECT_EQ(to_float(from_float<Half>(65520.0f)), std::numeric_limits<float>::infinity());
  EXPECT_EQ(to_float(from_float<Half>(0x1p-25f)), 0.0f);
  EXPECT_EQ(to_float(from_float<Half>(0x1.8p-25f)), 0x1p-24f);
  EXPECT_EQ(to_float(from_float<BFloat16>(1.0f + 0x1p-8f)), 1.0f);
  EXPECT_EQ(to_float(from_float<BFloat16>(1.0f + 0x3p-8f)), 1.0f + 0x1p-6f);
  EXPECT_TRUE(std::isnan(to_float(from_float<BFloat16>(std::nanf("")))));
}

}  // namespace
}  // namespace reticle
