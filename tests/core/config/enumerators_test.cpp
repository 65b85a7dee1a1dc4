#include <cstdint>

#include <gtest/gtest.h>

#include <reticle/core/config/enumerators.hpp>

namespace reticle::enumerators_test {

enum class Colour : std::uint8_t { red, dark_blue = 2, green };
enum class Single : std::uint8_t { only };

namespace {

TEST(Enumerators, AreNamedAsTheyAreWritten) {
  EXPECT_EQ(name_of_enumerator(Colour::red), "red");
  EXPECT_EQ(name_of_enumerator(Colour::dark_blue), "dark_blue");
}

TEST(Enumerators, AreFoundByTheirNames) {
  EXPECT_EQ(enumerator_of<Colour>("green"), Colour::green);
  EXPECT_EQ(enumerator_of<Colour>("dark_blue"), Colour::dark_blue);
  for (const char* name : {"", "Red", "blue", "red "}) EXPECT_FALSE(enumerator_of<Colour>(name)) << name;
}

TEST(Enumerators, AreListedForMessages) {
  EXPECT_EQ(list_enumerators<Colour>(), "red, dark_blue, green");
  EXPECT_EQ(list_enumerators<Colour>("\"", " or "), "\"red\", \"dark_blue\" or \"green\"");
  EXPECT_EQ(list_enumerators<Single>("'", " or "), "'only'");
}

}  // namespace
}  // namespace reticle::enumerators_test
