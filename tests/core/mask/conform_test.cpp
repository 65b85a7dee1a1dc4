#include <algorithm>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/combine.hpp>

namespace reticle {
namespace {

TEST(Conform, RepresentationIsTheSmallestForItsContent) {
  const auto kind = [](const std::vector<float>& p) {
    return Mask::dense({1, 1, 1, static_cast<Index>(p.size())}, p).kind();
  };
  std::vector<float> p(6400, 0.0f);
  EXPECT_EQ(kind(p), MaskKind::empty);
  std::fill(p.begin(), p.begin() + 3000, 1.0f);
  EXPECT_EQ(kind(p), MaskKind::runs) << "one long run";
  std::fill(p.begin(), p.end(), 0.0f);
  for (std::size_t i = 0; i < p.size(); i += 100) p[i] = 1;
  EXPECT_EQ(kind(p), MaskKind::csr) << "scattered, 1 %";
  for (std::size_t i = 0; i < p.size(); i += 3) p[i] = 1;
  EXPECT_EQ(kind(p), MaskKind::bits) << "scattered, 33 %";
  for (float& value : p) value *= 0.5f;
  EXPECT_EQ(kind(p), MaskKind::csr) << "weighted, 33 %";
  for (std::size_t i = 0; i < p.size(); ++i) p[i] = i % 2 == 0 ? 0.5f : 0.25f;
  EXPECT_EQ(kind(p), MaskKind::dense) << "weighted everywhere";
  std::fill(p.begin(), p.end(), 1.0f);
  EXPECT_EQ(kind(p), MaskKind::full);
}

TEST(Conform, OfEquallySmallFormsTheEarlierIsTaken) {
  // A run takes 8 bytes, an entry 4: runs of two entries take as much either way, single entries less as a list.
  const auto kind = [](std::int32_t length) {
    return Mask::from_runs({1, 1, 1, 6400},
                           [length](RowId, FunctionRef<void(reticle::Run)> emit) {
                             for (std::int32_t k = 0; k < 6400; k += 640) emit({k, k + length, 1});
                           })
        .kind();
  };
  EXPECT_EQ(kind(1), MaskKind::csr);
  EXPECT_EQ(kind(2), MaskKind::runs);
}

TEST(Conform, AUnionOfWeightedListsIsDenseWhereMoreThanHalfOfThePositionsAreExpected) {
  const MaskShape shape{1, 1, 8, 640};
  const auto spread = [&](Index step, float p) {
    return Mask::from_selections(shape, [step, p](RowId row, Selection& selection) {
      for (Index k = row.query % step; k < 640; k += step) {
        selection.indices.push_back(static_cast<std::int32_t>(k));
        selection.p.push_back(p);
      }
    });
  };
  EXPECT_EQ(merge(spread(3, 0.5f), spread(5, 0.25f)).kind(), MaskKind::csr) << "7 / 15 of the positions";
  EXPECT_EQ(merge(spread(2, 0.5f), spread(3, 0.25f)).kind(), MaskKind::dense) << "2 / 3 of them";
}

}  // namespace
}  // namespace reticle
