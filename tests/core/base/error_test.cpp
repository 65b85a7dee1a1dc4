#include <type_traits>

#include <gtest/gtest.h>

#include <reticle/core/base/error.hpp>

namespace reticle {
namespace {

template <class E>
class Errors : public ::testing::Test {};

using WithAMessage = ::testing::Types<ConfigError, ShapeError, PluginError, FormatError, ValueError, DeviceError>;
TYPED_TEST_SUITE(Errors, WithAMessage);

TYPED_TEST(Errors, AreCaughtAsErrorsAndKeepTheirMessageInACopy) {
  static_assert(std::is_nothrow_copy_constructible_v<TypeParam>, "a copy is made while an exception is in flight");
  try {
    const TypeParam original("what was given, and what is needed");
    throw TypeParam(original);
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "what was given, and what is needed");
    EXPECT_NE(dynamic_cast<const TypeParam*>(&error), nullptr);
  }
}

TYPED_TEST(Errors, AreNotTakenForOneAnother) {
  int same = 0;
  const auto count = [&]<class Other>() { same += std::is_base_of_v<Other, TypeParam> ? 1 : 0; };
  count.template operator()<ConfigError>();
  count.template operator()<ShapeError>();
  count.template operator()<PluginError>();
  count.template operator()<FormatError>();
  count.template operator()<ValueError>();
  count.template operator()<DeviceError>();
  count.template operator()<Cancelled>();
  EXPECT_EQ(same, 1);
}

TEST(Error, OfACancelledCallSaysSo) {
  try {
    throw Cancelled();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "cancelled");
  }
}

}  // namespace
}  // namespace reticle
