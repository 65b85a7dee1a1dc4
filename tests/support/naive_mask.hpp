// The reference mask: p of every logical position in one vector. Masks are tested against it in lockstep.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/convert.hpp>

namespace reticle::testing {

struct NaiveMask {
  MaskShape shape;  // logical
  std::vector<float> p;

  explicit NaiveMask(const MaskShape& logical)
      : shape(logical.unshared()), p(static_cast<std::size_t>(logical.positions()), 0.0f) {}
  explicit NaiveMask(const Mask& mask) : NaiveMask(mask.shape()) {
    std::vector<Run> runs;
    for (Index row = 0; row < shape.rows(); ++row) {
      runs.clear();
      mask.row(shape.row_of_logical(row), runs);
      for (const Run& run : runs) {
        for (Index k = run.begin; k < run.end; ++k) at(row, k) = run.p;
      }
    }
  }

  float& at(Index row, Index key) { return p[static_cast<std::size_t>(row * shape.keys + key)]; }
  float at(Index row, Index key) const { return p[static_cast<std::size_t>(row * shape.keys + key)]; }

  template <class Op>
  NaiveMask combine(const NaiveMask& other, Op op) const {
    NaiveMask result(shape);
    for (std::size_t i = 0; i < p.size(); ++i) result.p[i] = op(p[i], other.p[i]);
    return result;
  }
  /// A mask with each p replaced by op(row, key, p).
  template <class Op>
  NaiveMask map(Op op) const {
    NaiveMask result(shape);
    for (Index row = 0; row < shape.rows(); ++row) {
      for (Index key = 0; key < shape.keys; ++key) result.at(row, key) = op(row, key, at(row, key));
    }
    return result;
  }
  Index nnz() const {
    return static_cast<Index>(std::count_if(p.begin(), p.end(), [](float x) { return x > 0; }));
  }
};

/// Expects the same logical shape and p everywhere, and that the mask's counts and flags agree with its content.
inline void expect_equal(const Mask& mask, const NaiveMask& naive, const std::string& what = "") {
  ASSERT_TRUE(mask.shape().same_logical(naive.shape)) << what << ": " << describe(mask);
  const NaiveMask content(mask);
  EXPECT_EQ(content.p, naive.p) << what << ": " << describe(mask);
  EXPECT_EQ(mask.nnz(), naive.nnz()) << what << ": " << describe(mask);
  EXPECT_EQ(mask.weighted(), std::any_of(naive.p.begin(), naive.p.end(), [](float x) { return x > 0 && x < 1; }))
      << what << ": " << describe(mask);
  EXPECT_EQ(mask, Mask::dense(naive.shape, naive.p)) << what << ": " << describe(mask);
}

}  // namespace reticle::testing
