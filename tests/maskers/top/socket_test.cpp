#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>

#include "support/attention.hpp"

namespace reticle::testing {
namespace {

Mask mask_of(const std::string& parameters, const AttentionInputs& inputs, SequenceState& state) {
  return SparseAttention::from_json(R"({"maskers": [{"type": "socket", )" + parameters + "}]}").mask(inputs, state);
}

TEST(Socket, KeepsTheKeyThatFallsIntoTheQuerysBucketAndTheLongerValue) {
  // One plane along the only axis: positive keys share the query's bucket.
  Tensor queries(DType::f32, {1, 1, 1, 1}), keys(DType::f32, {1, 1, 4, 1}), values(DType::f32, {1, 1, 4, 1});
  Tensor planes(DType::f32, {1, 1, 1});
  planes.span<float>()[0] = 1;
  queries.span<float>()[0] = 2;
  const float k[] = {-1, 3, -5, 4}, v[] = {9, 1, 1, 2};
  std::copy(std::begin(k), std::end(k), keys.span<float>().begin());
  std::copy(std::begin(v), std::end(v), values.span<float>().begin());
  const std::vector<NamedTensor> extras{{"planes", planes.view()}};
  AttentionInputs inputs;
  inputs.queries = queries.view();
  inputs.keys = keys.view();
  inputs.values = values.view();
  inputs.extras = extras;
  SequenceState sharp, flat;
  const Mask near = mask_of(R"("heavy_size": 2, "K": 1, "L": 1, "tau": 0.1)", inputs, sharp);
  EXPECT_EQ(near.at(0, 0, 0, 1) + near.at(0, 0, 0, 3), 2.0f) << "sharp: the bucket decides";
  const Mask long_values = mask_of(R"("heavy_size": 2, "K": 1, "L": 1, "tau": 1000)", inputs, flat);
  EXPECT_EQ(long_values.at(0, 0, 0, 0) + long_values.at(0, 0, 0, 3), 2.0f) << "flat: the length of the value decides";
}

TEST(Socket, ADecodeStepEqualsAFreshStart) {
  const OwnedInputs owned({1, 4, 2, 20, 90, 16, 24}, 3);
  const std::string parameters = R"("heavy_size": 12, "K": 5, "L": 6)";
  const SparseAttention sparse = SparseAttention::from_json(R"({"maskers": [{"type": "socket", )" + parameters + "}]}");
  SequenceState kept;
  for (Index step = 0; step < 20; ++step) {
    AttentionInputs inputs = owned.inputs;
    inputs.queries = inputs.queries.slice(2, step, step + 1);
    inputs.keys = inputs.keys.slice(2, 0, 71 + step);
    inputs.values = inputs.values.slice(2, 0, 71 + step);
    SequenceState fresh;
    EXPECT_EQ(sparse.mask(inputs, kept), mask_of(parameters, inputs, fresh)) << "step " << step;
  }
  AttentionInputs shorter = owned.inputs;
  shorter.keys = shorter.keys.slice(2, 0, 50);
  shorter.values = shorter.values.slice(2, 0, 50);
  EXPECT_THROW(sparse.mask(shorter, kept), ShapeError);
}

TEST(Socket, SeedsGiveOtherPlanes) {
  const OwnedInputs owned({1, 2, 1, 4, 100, 16, 16}, 4);
  SequenceState a, b, c;
  const Mask first = mask_of(R"("heavy_size": 10, "seed": 1)", owned.inputs, a);
  EXPECT_EQ(first, mask_of(R"("heavy_size": 10, "seed": 1)", owned.inputs, b));
  EXPECT_FALSE(first == mask_of(R"("heavy_size": 10, "seed": 2)", owned.inputs, c));
}

TEST(Socket, RefusesBadParametersAndPlanes) {
  for (const char* parameters : {R"("K": 0)", R"("K": 17)", R"("L": 0)", R"("tau": 0)", R"("heavy_size": 0)"}) {
    EXPECT_THROW(SparseAttention::from_json(std::string(R"({"maskers": [{"type": "socket", )") + parameters + "}]}"),
                 ConfigError);
  }
  OwnedInputs owned({}, 5);
  const Tensor planes(DType::f32, {2, 4, 16});
  const std::vector<NamedTensor> extras{{"planes", planes.view()}};
  owned.inputs.extras = extras;
  SequenceState state;
  EXPECT_THROW(mask_of(R"("K": 4, "L": 3)", owned.inputs, state), ShapeError);
}

}  // namespace
}  // namespace reticle::testing
