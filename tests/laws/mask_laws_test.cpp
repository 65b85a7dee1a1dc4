// Tests every law of the mask algebra over random masks in every pair of representations and sharings.
#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>

#include "support/naive_mask.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

// Numbers of keys: more than one word, a single key, a multiple of 64, less than a word. Rows fill more than one chunk.
const MaskShape kShapes[] = {{2, 3, 4, 70}, {1, 1, 1, 1}, {1, 2, 3, 128}, {2, 1, 7, 13}};

class Laws : public ::testing::TestWithParam<int> {
 protected:
  std::mt19937 random{static_cast<std::uint32_t>(1000 + GetParam())};
  MaskShape shape = kShapes[static_cast<std::size_t>(GetParam()) % std::size(kShapes)];

  template <class Body>
  void for_each_pair(bool weighted, Body body) {
    const std::vector<NamedMask> left = random_masks(shape, random, weighted);
    const std::vector<NamedMask> right = random_masks(shape, random, weighted);
    for (const NamedMask& a : left) {
      for (const NamedMask& b : right) {
        SCOPED_TRACE(a.name + " with " + b.name + ", seed " + std::to_string(1000 + GetParam()));
        body(a.mask, b.mask);
        if (HasFatalFailure()) return;
      }
    }
  }
};

float add(float a, float b) { return std::min(1.0f, a + b); }
float independent(float a, float b) { return a == 0 ? b : b == 0 ? a : 1.0f - (1.0f - a) * (1.0f - b); }

TEST_P(Laws, OperationsFollowTheirDefinitionInEveryRepresentation) {
  for_each_pair(true, [](const Mask& a, const Mask& b) {
    const NaiveMask x(a), y(b);
    expect_equal(merge(a, b), x.combine(y, add), "add");
    expect_equal(merge(a, b, MergeRule::max), x.combine(y, [](float p, float q) { return std::max(p, q); }), "max");
    expect_equal(merge(a, b, MergeRule::independent), x.combine(y, independent), "independent");
    expect_equal(intersect(a, b), x.combine(y, [](float p, float q) { return std::min(p, q); }), "intersect");
    expect_equal(subtract(a, b), x.combine(y, [](float p, float q) { return q > 0 ? 0.0f : p; }), "subtract");
  });
}

TEST_P(Laws, MergeIsCommutative) {
  for_each_pair(true, [](const Mask& a, const Mask& b) {
    for (const MergeRule rule : {MergeRule::add, MergeRule::max, MergeRule::independent})
      EXPECT_EQ(merge(a, b, rule), merge(b, a, rule));
    EXPECT_EQ(a & b, b & a);
  });
}

TEST_P(Laws, MergeIsAssociative) {
  const std::vector<NamedMask> third = random_masks(shape, random);
  std::size_t next = 0;
  for_each_pair(true, [&](const Mask& a, const Mask& b) {
    const Mask& c = third[next++ % third.size()].mask;
    EXPECT_EQ((a | b) | c, a | (b | c));
    EXPECT_EQ(merge(merge(a, b, MergeRule::max), c, MergeRule::max),
              merge(a, merge(b, c, MergeRule::max), MergeRule::max));
    EXPECT_EQ((a & b) & c, a & (b & c));
  });
}

TEST_P(Laws, EmptyIsTheIdentityOfMergeAndFullAbsorbs) {
  for (const NamedMask& a : random_masks(shape, random)) {
    SCOPED_TRACE(a.name);
    const Mask empty = Mask::empty(shape), full = Mask::full(shape);
    for (const MergeRule rule : {MergeRule::add, MergeRule::max, MergeRule::independent}) {
      EXPECT_EQ(merge(a.mask, empty, rule), a.mask);
      EXPECT_EQ(merge(empty, a.mask, rule), a.mask);
      EXPECT_EQ(merge(a.mask, full, rule), full);
      EXPECT_EQ(merge(full, a.mask, rule), full);
    }
    EXPECT_EQ(a.mask & full, a.mask);
    EXPECT_EQ(a.mask & empty, empty);
    EXPECT_EQ(a.mask - empty, a.mask);
    EXPECT_EQ(a.mask - full, empty);
    EXPECT_EQ(empty - a.mask, empty);
  }
}

TEST_P(Laws, FullStoredInAnyRepresentationBehavesLikeFull) {
  for (const MaskKind kind : kStoredKinds) {
    const Mask full = convert(Mask::full(shape), kind);
    for (const NamedMask& a : random_masks(shape, random)) {
      SCOPED_TRACE(a.name + " with full as " + std::string(name_of(kind)));
      EXPECT_EQ(a.mask | full, Mask::full(shape));
      EXPECT_EQ(a.mask & full, a.mask);
      EXPECT_EQ(a.mask - full, Mask::empty(shape));
    }
  }
}

TEST_P(Laws, ZeroOneMergeIsIdempotent) {
  for (const NamedMask& a : random_masks(shape, random, /*with_weighted=*/false))
    EXPECT_EQ(a.mask | a.mask, a.mask) << a.name;
}

TEST_P(Laws, ZeroOneMasksAreABooleanAlgebra) {
  for_each_pair(false, [&](const Mask& a, const Mask& b) {
    EXPECT_EQ(~(a | b), ~a & ~b);
    EXPECT_EQ(~(a & b), ~a | ~b);
    EXPECT_EQ(a - b, a & ~b);
    EXPECT_EQ(~~a, a);
    EXPECT_EQ(a | ~a, Mask::full(shape));
    EXPECT_EQ(a & ~a, Mask::empty(shape));
    EXPECT_EQ(a & (a | b), a);
    EXPECT_EQ(a | (a & b), a);
  });
}

TEST_P(Laws, ConversionRoundTripsAreExact) {
  for (const NamedMask& a : random_masks(shape, random)) {
    SCOPED_TRACE(a.name);
    const NaiveMask content(a.mask);
    for (const MaskKind kind : kStoredKinds) {
      if (a.mask.weighted() && kind == MaskKind::bits) continue;
      const Mask converted = convert(a.mask, kind);
      EXPECT_EQ(converted.kind(), kind);
      expect_equal(converted, content, std::string(name_of(kind)));
      EXPECT_EQ(hash(converted), hash(a.mask));
    }
    expect_equal(unshare(a.mask), content, "unshared");
    EXPECT_EQ(hash(unshare(a.mask)), hash(a.mask));
  }
}

TEST_P(Laws, ResultsDependNeitherOnRepresentationNorOnThreads) {
  const Context one(1), three(3);
  for_each_pair(true, [&](const Mask& a, const Mask& b) {
    const Mask plain = merge(a, b, MergeRule::add, one);
    const Mask other = merge(a, b, MergeRule::add, three);
    EXPECT_EQ(plain, other);
    EXPECT_EQ(plain.kind(), other.kind());
    if (a.kind() == MaskKind::empty || a.kind() == MaskKind::full || b.kind() == MaskKind::empty ||
        b.kind() == MaskKind::full)
      return;  // these cases return an operand unchanged, in its representation
    const Mask from_csr = merge(convert(a, MaskKind::csr), convert(b, MaskKind::runs), MergeRule::add, three);
    EXPECT_EQ(plain, from_csr);
    EXPECT_EQ(plain.kind(), from_csr.kind());
  });
}

TEST_P(Laws, SharedRowsAreNotMaterialisedUnlessTheResultNeedsThem) {
  const std::vector<NamedMask> masks = random_masks(shape, random);
  for (const NamedMask& a : masks) {
    for (const NamedMask& b : masks) {
      const MaskShape allowed = a.mask.shape().sharing_both(b.mask.shape());
      EXPECT_LE((a.mask | b.mask).shape().stored_rows(), allowed.stored_rows()) << a.name << " with " << b.name;
    }
  }
}

TEST_P(Laws, CausalRestrictionIsIntersectionWithTheCausalMask) {
  const Mask causal = restrict_causal(Mask::full(shape));
  for (const NamedMask& a : random_masks(shape, random)) {
    SCOPED_TRACE(a.name);
    EXPECT_EQ(restrict_causal(a.mask), a.mask & causal);
    EXPECT_EQ(causal_nnz(a.mask), restrict_causal(a.mask).nnz());
    expect_equal(restrict_causal(a.mask), NaiveMask(a.mask).map([&](Index row, Index key, float p) {
      return key <= shape.keys - shape.queries + row % shape.queries ? p : 0.0f;
    }));
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, Laws, ::testing::Range(0, 8));

TEST(MergeOfWeights, IsAssociativeToRounding) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> uniform(0, 1);
  const MaskShape shape{1, 1, 4, 50};
  std::vector<float> p[3];
  for (auto& values : p) {
    for (Index i = 0; i < shape.positions(); ++i) values.push_back(uniform(random));
  }
  const Mask a = Mask::dense(shape, p[0]), b = Mask::dense(shape, p[1]), c = Mask::dense(shape, p[2]);
  for (const MergeRule rule : {MergeRule::add, MergeRule::independent}) {
    const Array<float> left = to_dense(merge(merge(a, b, rule), c, rule));
    const Array<float> right = to_dense(merge(a, merge(b, c, rule), rule));
    for (std::size_t i = 0; i < left.size(); ++i) EXPECT_NEAR(left[i], right[i], 2e-7f);
  }
}

}  // namespace
}  // namespace reticle::testing
