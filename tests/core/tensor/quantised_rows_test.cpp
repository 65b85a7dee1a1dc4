#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/tensor/quantised_rows.hpp>
#include <reticle/core/tensor/tensor.hpp>

#include "support/attention.hpp"

namespace reticle::testing {
namespace {

std::vector<float> random_row(Index width, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> row(static_cast<std::size_t>(width));
  for (float& x : row) x = normal(random);
  return row;
}

std::vector<float> round_trip(const std::vector<float>& row, DType dtype) {
  std::vector<std::byte> stored(static_cast<std::size_t>(row_bytes(dtype, static_cast<Index>(row.size()))));
  std::vector<float> read(row.size());
  quantise_row(row, dtype, stored.data());
  dequantise_row(stored.data(), dtype, 1, read);
  return read;
}

float largest(std::span<const float> numbers) {
  float found = 0;
  for (const float x : numbers) found = std::max(found, std::abs(x));
  return found;
}

TEST(QuantisedRows, ARowOf128ChannelsTakes8AndAHalfOr4AndAHalfBitsAChannel) {
  EXPECT_EQ(row_bytes(DType::q8, 128), 136);
  EXPECT_EQ(row_bytes(DType::q4, 128), 72);
  EXPECT_EQ(row_bytes(DType::q8, 1), 32 + 1 + 4);
}

TEST(QuantisedRows, EveryChannelIsRoundedWithinTheStepOfItsGroup) {
  std::mt19937 random(1);
  for (const Index width : {1, 31, 32, 33, 64, 100, 128, 1024}) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      std::vector<float> row = random_row(width, random);
      row[static_cast<std::size_t>(width) / 2] *= repeat % 3 == 0 ? 30.0f : 1.0f;  // a channel of outliers
      const float all = largest(row);
      const std::vector<float> q8 = round_trip(row, DType::q8), q4 = round_trip(row, DType::q4);
      for (std::size_t i = 0; i < row.size(); ++i) {
        const std::size_t begin = i / 32 * 32, count = std::min<std::size_t>(32, row.size() - begin);
        const float group = largest(std::span(row).subspan(begin, count));
        // The side of the group's extreme has one step more than the other side.
        const float q8_step = group / 128 + all / (128 * 24), q4_step = group / 8 + all / (8 * 95);
        EXPECT_LE(std::abs(q8[i] - row[i]), 1.001f * q8_step) << width << ", channel " << i;
        EXPECT_LE(std::abs(q4[i] - row[i]), 1.001f * q4_step) << width << ", channel " << i;
        if (std::abs(row[i]) < 0.9f * group) {
          EXPECT_LE(std::abs(q8[i] - row[i]), 0.501f * q8_step);
        }
      }
    }
  }
}

TEST(QuantisedRows, ZerosAndRowsTooSmallForAScaleBecomeZero) {
  for (const DType dtype : {DType::q8, DType::q4}) {
    for (const float x : {0.0f, 1e-38f, -1e-31f}) {
      const std::vector<float> read = round_trip(std::vector<float>(40, x), dtype);
      EXPECT_EQ(largest(read), 0) << x;
    }
  }
}

TEST(QuantisedRows, ARowWithNaNOrInfinityIsReadAsNaN) {
  for (const DType dtype : {DType::q8, DType::q4}) {
    for (const float x : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      std::vector<float> row(64, 1.0f);
      row[7] = x;
      for (const float read : round_trip(row, dtype)) EXPECT_TRUE(std::isnan(read));
    }
  }
}

TEST(QuantisedRows, LargeRowsKeepTheirScale) {
  for (const DType dtype : {DType::q8, DType::q4}) {
    const std::vector<float> row(32, 3e38f);
    for (const float read : round_trip(row, dtype)) EXPECT_NEAR(read / row[0], 1, 1e-5);
  }
}

TEST(QuantisedRows, QuantisingWhatWasQuantisedChangesNothing) {
  std::mt19937 random(2);
  for (const DType dtype : {DType::q8, DType::q4}) {
    const std::vector<float> once = round_trip(random_row(128, random), dtype);
    const std::vector<float> twice = round_trip(once, dtype);
    for (std::size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(twice[i], once[i], 1e-5f);
  }
}

TEST(QuantisedRows, TensorsAreConvertedRowByRowWhateverTheirStrides) {
  std::mt19937 random(3);
  const Tensor floats = random_tensor(DType::bf16, {3, 2, 5, 40}, random);
  const Tensor swapped = Tensor::copy(floats.view().permute({1, 0, 2, 3}), DType::bf16);
  for (const DType dtype : {DType::q8, DType::q4}) {
    const Tensor quantised = Tensor::copy(floats.view().permute({1, 0, 2, 3}), dtype);
    EXPECT_TRUE(quantised.view().contiguous());
    EXPECT_EQ(quantised.view().bytes(), 30 * row_bytes(dtype, 40));
    const Tensor back = Tensor::copy(quantised, DType::f32);
    std::vector<float> row(40), wanted(40);
    for (Index i = 0; i < 30; ++i) {
      for (std::size_t j = 0; j < 40; ++j) row[j] = read_float(swapped, i * 40 + static_cast<Index>(j));
      wanted = round_trip(row, dtype);
      for (std::size_t j = 0; j < 40; ++j)
        EXPECT_EQ(back.span<float>()[static_cast<std::size_t>(i) * 40 + j], wanted[j]);
    }
    // A slice of the tokens is a view of the same rows.
    const TensorView tokens = quantised.view().slice(2, 1, 4);
    EXPECT_FALSE(tokens.contiguous());
    const Tensor copied = Tensor::copy(tokens, dtype), read = Tensor::copy(copied, DType::f32);
    EXPECT_EQ(read_float(read, 0), read_float(back, 40));
    EXPECT_EQ(read_float(read, 3 * 40), read_float(back, 6 * 40));
  }
}

TEST(QuantisedRows, TensorsThatCannotBeQuantisedAreRefusedByShapeAndDtype) {
  EXPECT_THROW(Tensor::copy(Tensor(DType::f32, {2, 1025}), DType::q8), ShapeError);
  EXPECT_THROW(Tensor::copy(TensorView(nullptr, DType::f32, {}), DType::q8), ShapeError);
  EXPECT_THROW(Tensor::copy(Tensor(DType::i32, {2, 32}), DType::q4), ShapeError);
  const Tensor empty = Tensor::copy(Tensor(DType::f32, {2, 0, 32}), DType::q4);
  EXPECT_EQ(empty.view().bytes(), 0);
}

}  // namespace
}  // namespace reticle::testing
