#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/base/did_you_mean.hpp>

namespace reticle {
namespace {

constexpr std::string_view kKnown[] = {"sink", "sink_size", "local", "window_size", "top_p"};

TEST(DidYouMean, NamesTheNameOfFewestEdits) {
  EXPECT_EQ(did_you_mean("snk", kKnown), "; did you mean \"sink\"?") << "one letter too few";
  EXPECT_EQ(did_you_mean("sinkk", kKnown), "; did you mean \"sink\"?") << "one too many";
  EXPECT_EQ(did_you_mean("lokal", kKnown), "; did you mean \"local\"?") << "one replaced";
  EXPECT_EQ(did_you_mean("widnow_size", kKnown), "; did you mean \"window_size\"?") << "two swapped";
}

TEST(DidYouMean, ABeginningOfThreeLettersIsNear) {
  EXPECT_EQ(did_you_mean("win", kKnown), "; did you mean \"window_size\"?");
  EXPECT_EQ(did_you_mean("wi", kKnown), "") << "two letters begin too many names";
}

TEST(DidYouMean, OfEquallyNearNamesTheFirstIsNamed) {
  const std::string_view alike[] = {"aaab", "aaac"};
  EXPECT_EQ(did_you_mean("aaad", alike), "; did you mean \"aaab\"?");
}

TEST(DidYouMean, SaysNothingWhereHalfOfTheLettersAreOthersOrNoNameIsKnown) {
  EXPECT_EQ(did_you_mean("abcd", std::vector<std::string_view>{"abyz"}), "; did you mean \"abyz\"?") << "half";
  EXPECT_EQ(did_you_mean("abcd", std::vector<std::string_view>{"axyz"}), "") << "more than half";
  EXPECT_EQ(did_you_mean("sink", {}), "");
  EXPECT_EQ(did_you_mean("", kKnown), "");
}

TEST(DidYouMean, NamesTooLongToBeMisspelledAreNotCompared) {
  const std::string known(257, 'a');
  const std::string_view names[] = {known};
  EXPECT_EQ(did_you_mean(std::string(256, 'a'), names), "; did you mean \"" + known + "\"?");
  EXPECT_EQ(did_you_mean(std::string(257, 'a'), names), "");
}

}  // namespace
}  // namespace reticle
