#include <optional>
#include <string>

#include <gtest/gtest.h>

#include <reticle/core/config/fields.hpp>
#include <reticle/core/config/subset.hpp>

namespace reticle {
namespace {

TEST(IndexRange, IsReadFromTextAndPrintedAsItWasWritten) {
  for (const char* text : {"4-7", "0-0", "16-", "0-"}) {
    const std::optional<IndexRange> range = IndexRange::parse(text);
    ASSERT_TRUE(range) << text;
    EXPECT_EQ(range->text(), text);
  }
  EXPECT_EQ(IndexRange::parse("4-7")->first, 4);
  EXPECT_EQ(IndexRange::parse("4-7")->last, 7);
  EXPECT_EQ(IndexRange::parse("16-")->last, IndexRange::kNoLast);
  for (const char* text : {"", "-", "3", "-2", "3-2", "x", "1-2x", " 1-2", "1 - 2", "1-99999999999999999999"})
    EXPECT_FALSE(IndexRange::parse(text)) << text;
}

TEST(Subset, HoldsWhatItsRangesHoldAndWithoutAnyEverything) {
  const Subset all, some{{{0, 0}, {4, 7}, {16, IndexRange::kNoLast}}};
  for (const Index index : {0, 4, 7, 16, 1000000}) EXPECT_TRUE(some.contains(index)) << index;
  for (const Index index : {1, 3, 8, 15}) {
    EXPECT_FALSE(some.contains(index)) << index;
    EXPECT_TRUE(all.contains(index));
  }
  EXPECT_TRUE(all.all());
  EXPECT_FALSE(some.all());
}

TEST(Subset, MeetsAnotherWhereTheyShareAnIndex) {
  const Subset all, low{{{0, 3}}}, middle{{{3, 5}, {9, 9}}}, high{{{6, IndexRange::kNoLast}}};
  EXPECT_TRUE(low.meets(middle));
  EXPECT_TRUE(middle.meets(high));
  EXPECT_FALSE(low.meets(high));
  EXPECT_FALSE(high.meets(low));
  EXPECT_TRUE(all.meets(high));
  EXPECT_TRUE(high.meets(all));
}

TEST(Subset, IsAListInJson) {
  const Subset some{{{0, 0}, {4, 7}, {16, IndexRange::kNoLast}}};
  EXPECT_EQ(json_of(some), R"([0,"4-7","16-"])");
}

}  // namespace
}  // namespace reticle
