#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/picture.hpp>

#include "support/naive_mask.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

TEST(Picture, CellsAreMeansOfTheirPositions) {
  const Mask mask = Mask::dense({1, 1, 2, 4}, std::vector<float>{1, 1, 0, 0, 1, 0.5f, 0, 0});
  const Picture small = picture(mask, 0, 0, 2, 1);
  EXPECT_EQ(small.cells, (std::vector<float>{0.875f, 0}));
  const Picture exact = picture(mask, 0, 0, 100, 100);
  EXPECT_EQ(exact.width, 4);
  EXPECT_EQ(exact.cells, (std::vector<float>{1, 1, 0, 0, 1, 0.5f, 0, 0}));
  EXPECT_EQ(to_text(exact), "██··\n█▒··\n");
  EXPECT_THROW(picture(mask, 0, 1, 2, 2), ShapeError);
  std::mt19937 random(9);
  for (const NamedMask& m : random_masks({1, 1, 37, 53}, random)) {
    double total = 0;
    const Picture cells = picture(m.mask, 0, 0, 10, 7);
    for (Index y = 0; y < 7; ++y) {
      for (Index x = 0; x < 10; ++x) {
        const Index area = ((x + 1) * 53 / 10 - x * 53 / 10) * ((y + 1) * 37 / 7 - y * 37 / 7);
        total += static_cast<double>(cells.cells[static_cast<std::size_t>(y * 10 + x)]) * static_cast<double>(area);
      }
    }
    double expected = 0;
    for (const float p : NaiveMask(m.mask).p) expected += static_cast<double>(p);
    EXPECT_NEAR(total, expected, 1e-3) << m.name;
  }
}

TEST(Picture, MasksOverEachOtherKeepTheirColorsAndMixByWhatTheyKeep) {
  const Color red{200, 0, 0}, blue{0, 0, 100}, ground{255, 255, 255};
  const std::vector<Mask> masks{Mask::dense({1, 1, 1, 4}, std::vector<float>{1, 0, 0, 0.25f}),
                                Mask::dense({1, 1, 1, 4}, std::vector<float>{0, 1, 0, 0})};
  const std::vector<Color> colors{red, blue};
  const ColorPicture each = overlay(masks, colors, 0, 0, 4, 1, ground);
  EXPECT_EQ(each.cells,
            (std::vector<Color>{red, blue, ground, {228, 128, 128}}));  // p 0.25 has opacity sqrt(0.25) = 0.5
  const ColorPicture together = overlay(masks, colors, 0, 0, 2, 1, ground);
  EXPECT_EQ(together.cells[0], (Color{100, 0, 50}));
  EXPECT_THROW(overlay(masks, std::vector<Color>{red}, 0, 0, 4, 1), ShapeError);
  EXPECT_THROW(overlay(std::vector<Mask>{}, std::vector<Color>{}, 0, 0, 4, 1), ShapeError);
  EXPECT_THROW(overlay(std::vector<Mask>{masks[0], Mask::empty({1, 1, 1, 5})}, colors, 0, 0, 4, 1), ShapeError);
}

}  // namespace
}  // namespace reticle::testing
