#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/base/warning.hpp>

namespace reticle::testing {
namespace {

TEST(Warnings, GoToTheHandlerOrToStandardError) {
  std::vector<std::string> heard;
  set_warning_handler([&](const std::string& message) { heard.push_back(message); });
  warn("keys are copied");
  set_warning_handler({});
  ::testing::internal::CaptureStderr();
  warn("keys are copied again");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "reticle: warning: keys are copied again\n");
  EXPECT_EQ(heard, std::vector<std::string>{"keys are copied"});
}

TEST(Warnings, HandlersMayThrowAndBeChangedFromWithin) {
  set_warning_handler([](const std::string& message) {
    set_warning_handler({});
    throw message;
  });
  EXPECT_THROW(warn("as an error"), std::string);
  ::testing::internal::CaptureStderr();
  warn("later");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "reticle: warning: later\n");
}

}  // namespace
}  // namespace reticle::testing
