#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/executor.hpp>
#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/tensor/tensor.hpp>

#include "support/attention.hpp"
#include "support/message_of.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

constexpr Device kGpu{Device::Kind::cuda, 1};

class OnDevices : public ::testing::Test {
 protected:
  OnDevices() {
    for (float& x : tensor_.span<float>()) x = 0.5f;
    inputs_.queries = inputs_.keys = inputs_.values = tensor_.view();
  }
  void move(const Device& device) {
    for (TensorView* view : {&inputs_.queries, &inputs_.keys, &inputs_.values}) view->device = device;
  }

  Tensor tensor_{DType::f32, {1, 2, 3, 4}};
  AttentionInputs inputs_;
};

TEST_F(OnDevices, TensorsMayLieOnAnyDeviceButOnOne) {
  inputs_.validate();
  move(kGpu);
  inputs_.validate();
  inputs_.keys.device = {};
  EXPECT_EQ(message_of<DeviceError>([&] { inputs_.validate(); }),
            "keys: on the CPU, and the queries on GPU 1; expected one device for all tensors");
  inputs_.keys.device = {Device::Kind::cuda, 0};
  EXPECT_EQ(message_of<DeviceError>([&] { inputs_.validate(); }),
            "keys: on GPU 0, and the queries on GPU 1; expected one device for all tensors");
  move(kGpu);
  const Tensor bias(DType::f32, {1, 1, 3, 3});
  inputs_.attention_mask = bias.view();
  EXPECT_EQ(message_of<DeviceError>([&] { inputs_.validate(); }),
            "attention_mask: on the CPU, and the queries on GPU 1; expected one device for all tensors");
  inputs_.attention_mask.reset();
  const NamedTensor extra{"projection", tensor_.view()};
  inputs_.extras = {&extra, 1};
  EXPECT_EQ(message_of<DeviceError>([&] { inputs_.validate(); }),
            "projection: on the CPU, and the queries on GPU 1; expected one device for all tensors");
}

TEST_F(OnDevices, CodeDemandsTheDeviceThatItRunsOn) {
  EXPECT_EQ(message_of<DeviceError>([&] { inputs_.validate_on(Device::Kind::cuda); }),
            "queries: on the CPU; expected a tensor on a GPU");
  move(kGpu);
  inputs_.validate_on(Device::Kind::cuda);
  const Mask full = Mask::full(inputs_.shape());
  const auto sparse = SparseAttention::from_json(R"({"maskers": [{"type": "tova"}]})");
  // The reason for the DeviceError depends on the machine: no CUDA, no GPU, or not the current GPU.
  const auto on_gpu = [&](auto&& call) { EXPECT_THROW(call(), DeviceError); };
  ::testing::internal::CaptureStderr();
  on_gpu([&] { attention(inputs_, full); });
  const Tensor lse(DType::f32, {tensor_.view().size(0), tensor_.view().size(1), tensor_.view().size(2)});
  on_gpu([&] { attention_backward(inputs_, full, tensor_.view(), lse.view(), tensor_.view()); });
  on_gpu([&] { AttentionPlan(inputs_, full); });
  on_gpu([&] {
    SequenceState state;
    sparse.mask(inputs_, state);
  });
  on_gpu([&] {
    SequenceState state;
    sparse.attend(inputs_, state);
  });
  on_gpu([&] {
    SequenceState recorded(Recording::figures);
    sparse.attend(inputs_, recorded);
  });
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");  // no warning about copies, since none was made
  EXPECT_EQ(message_of<DeviceError>([&] { Tensor::copy(inputs_.queries, DType::f32); }),
            "copy: on GPU 1; expected a tensor on the CPU");
}

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

TEST(AttentionInputs, ThatDoNotFitTogetherAreRefused) {
  const WrittenInputs good({1, 4, 2, 3}, std::vector<float>(24), {1, 2, 5, 3}, std::vector<float>(30));
  EXPECT_NO_THROW(good.inputs.validate());
  const auto refusal = [&](auto&& spoil) {
    AttentionInputs inputs = good.inputs;
    spoil(inputs);
    return message_of<ShapeError>([&] { inputs.validate(); });
  };
  EXPECT_EQ(refusal([](AttentionInputs& in) { in.keys = in.keys.slice(3, 0, 2); }),
            "keys need the head_dim of the queries (queries F32 (1, 4, 2, 3), keys F32 (1, 2, 5, 2), values F32 (1, 2, "
            "5, 3))");
  EXPECT_EQ(refusal([](AttentionInputs& in) { in.values = in.values.slice(2, 0, 4); }),
            "values need the heads and the length of the keys (queries F32 (1, 4, 2, 3), keys F32 (1, 2, 5, 3), values "
            "F32 (1, 2, 4, 3))");
  EXPECT_EQ(refusal([](AttentionInputs& in) { in.queries = in.queries.slice(1, 0, 3); }),
            "the query heads, 3, must be a multiple of the KV heads, 2 (queries F32 (1, 3, 2, 3), keys F32 (1, 2, 5, "
            "3), values F32 (1, 2, 5, 3))");
  EXPECT_EQ(refusal([](AttentionInputs& in) { in.values = in.values.slice(0, 0, 0); }),
            "queries, keys and values need one batch size (queries F32 (1, 4, 2, 3), keys F32 (1, 2, 5, 3), values F32 "
            "(0, 2, 5, 3))");
  const Tensor narrow(DType::f32, {1, 1, 2, 4}), integers(DType::i64, {1, 1, 2, 5});
  EXPECT_EQ(refusal([&](AttentionInputs& in) { in.attention_mask = narrow.view(); }),
            "attention_mask: F32 (1, 1, 2, 4) does not broadcast to (1, 4, 2, 5)");
  EXPECT_EQ(refusal([&](AttentionInputs& in) { in.attention_mask = integers.view(); }),
            "attention_mask: dtype is I64; expected F32, F16 or BF16");
}

TEST(AttentionInputs, NumbersThatMakeNoSenseAreRefused) {
  WrittenInputs written({1, 1, 1, 1}, {1}, {1, 1, 1, 1}, {1});
  written.inputs.scaling = std::nanf("");
  EXPECT_EQ(message_of<ValueError>([&] { written.inputs.validate(); }), "scaling is nan; expected a finite number");
  written.inputs.scaling = 1;
  written.inputs.layer = -1;
  EXPECT_EQ(message_of<ValueError>([&] { written.inputs.validate(); }),
            "layer is -1; expected the number of a layer, from 0");
}

TEST(AttentionInputs, AlignTheLastQueryWithTheLastKey) {
  WrittenInputs written({1, 4, 3, 1}, std::vector<float>(12), {1, 2, 2, 1}, std::vector<float>(4));
  EXPECT_EQ(written.inputs.position(0), -1);
  EXPECT_EQ(written.inputs.position(2), 1);
  EXPECT_EQ(written.inputs.visible_keys(0), 2);
  written.inputs.causal = true;
  EXPECT_EQ(written.inputs.visible_keys(0), 0);
  EXPECT_EQ(written.inputs.visible_keys(1), 1);
  EXPECT_EQ(written.inputs.kv_head(1), 0);
  EXPECT_EQ(written.inputs.kv_head(2), 1);
}

TEST(AttentionInputs, OfSomeQueriesHaveTheKeysUpToTheLastOfThem) {
  WrittenInputs written({1, 1, 4, 1}, {1, 2, 3, 4}, {1, 1, 6, 1}, {0, 10, 20, 30, 40, 50});
  written.attention_mask = Tensor(DType::f32, {1, 1, 4, 6});
  written.inputs.attention_mask = written.attention_mask.view();
  const AttentionInputs part = written.inputs.rows(1, 3);
  EXPECT_EQ(part.queries_length(), 2);
  EXPECT_EQ(*part.queries.at<float>(0, 0, 0, 0), 2);
  EXPECT_EQ(part.keys_length(), 5);
  EXPECT_EQ(part.values.size(2), 5);
  EXPECT_EQ(part.attention_mask->describe(), "F32 (1, 1, 2, 5)");
  EXPECT_EQ(part.position(1), written.inputs.position(2));
  EXPECT_THROW(written.inputs.rows(3, 5), ShapeError);
}

TEST(AttentionInputs, FindExtrasByName) {
  const Tensor tensor = tensor_of({1}, {5});
  const NamedTensor extras[] = {{"codes", tensor.view()}};
  AttentionInputs inputs;
  inputs.extras = extras;
  ASSERT_TRUE(inputs.extra("codes"));
  EXPECT_EQ(inputs.extra("codes")->data, tensor.view().data);
  EXPECT_FALSE(inputs.extra("code"));
}

TEST(AttentionMask, ForbidsKeysAtOrBelowHalfOfTheLowestNumber) {
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  const Tensor mask = tensor_of({1, 1, 1, 5}, {0.5f, kLowest, kLowest / 2, kLowest / 4, kForbidden});
  const AttentionMaskRow row(mask, {0, 0, 0});
  const float expected[] = {0.5f, kForbidden, kForbidden, kLowest / 4, kForbidden};
  for (Index key = 0; key < 5; ++key) EXPECT_EQ(row(key), expected[key]) << key;
  const Tensor half = Tensor::copy(tensor_of({1, 1, 1, 3}, {-65504, -32752, -32000}), DType::f16);
  const AttentionMaskRow half_row(half, {0, 0, 0});
  EXPECT_EQ(half_row(0), kForbidden);
  EXPECT_EQ(half_row(1), kForbidden);
  EXPECT_EQ(half_row(2), -32000);
}

TEST(AttentionMask, IsBroadcastOverEveryDimensionOfOne) {
  const Tensor of_heads = tensor_of({1, 2, 1, 1}, {3, 4});
  EXPECT_EQ(AttentionMaskRow(of_heads, {5, 1, 7})(9), 4);
  const Tensor of_queries = tensor_of({2, 1, 2, 2}, {0, 1, 2, 3, 4, 5, 6, 7});
  EXPECT_EQ(AttentionMaskRow(of_queries, {1, 3, 0})(1), 5);
}

TEST(AttentionMask, IsAddedToScoresAndForbidsWhateverTheyHold) {
  WrittenInputs written({1, 1, 2, 1}, {1, 1}, {1, 1, 4, 1}, std::vector<float>(4));
  written.inputs.causal = true;
  written.attention_mask = tensor_of({1, 1, 1, 4}, {0.5f, kForbidden, -1, 0});
  written.inputs.attention_mask = written.attention_mask.view();
  std::vector<float> scores{1, std::nanf(""), 3, std::nanf("")};
  add_attention_mask(written.inputs, {0, 0, 0}, scores.data());
  EXPECT_EQ(scores, (std::vector<float>{1.5f, kForbidden, 2, kForbidden}));
}

TEST(ForbiddenKeysOfARow, AreMaximalRuns) {
  WrittenInputs written({1, 1, 1, 1}, {1}, {1, 1, 8, 1}, std::vector<float>(8));
  EXPECT_TRUE(forbidden_keys(written.inputs, {0, 0, 0}).empty()) << "without an attention mask";
  written.forbid({0, 1, 4, 6, 7});
  EXPECT_EQ(forbidden_keys(written.inputs, {0, 0, 0}), (std::vector<reticle::Run>{{0, 2, 1}, {4, 5, 1}, {6, 8, 1}}));
}

TEST(ReachableKeys, AreThoseThatSomeQueryOfTheGroupMayAttendTo) {
  WrittenInputs written({1, 4, 2, 1}, std::vector<float>(8), {1, 2, 3, 1}, std::vector<float>(6));
  EXPECT_TRUE(ReachableKeys(written.inputs, 0, 0).all());
  written.attention_mask = Tensor(DType::f32, {1, 4, 2, 3});
  std::ranges::fill(written.attention_mask.span<float>(), kForbidden);
  written.attention_mask.span<float>()[0 * 6 + 0] = 0;      // head 0, query 0, key 0
  written.attention_mask.span<float>()[1 * 6 + 3 + 2] = 0;  // head 1, query 1, key 2
  for (std::size_t key = 0; key < 3; ++key) written.attention_mask.span<float>()[2 * 6 + key] = 0;
  written.inputs.attention_mask = written.attention_mask.view();
  const ReachableKeys first(written.inputs, 0, 0), second(written.inputs, 0, 1);
  EXPECT_FALSE(first.all());
  EXPECT_TRUE(first(0));
  EXPECT_FALSE(first(1));
  EXPECT_TRUE(first(2));
  EXPECT_TRUE(second.all());
}

TEST(RecordedKey, MustBeOneThatThereIs) {
  const WrittenInputs written({1, 1, 1, 1}, {1}, {1, 1, 4, 1}, std::vector<float>(4));
  EXPECT_EQ(recorded_key(3, written.inputs, "draws"), 3);
  EXPECT_EQ(message_of<ShapeError>([&] { recorded_key(4, written.inputs, "draws"); }),
            "draws: holds 4; there are 4 keys");
  EXPECT_EQ(message_of<ShapeError>([&] { recorded_key(-1, written.inputs, "draws"); }),
            "draws: holds -1; there are 4 keys");
}

/// A cache after eviction from a sequence of ten keys, with two lists: rows 0 to 2, and rows 3 and 4.
class EvictedKeys : public ::testing::Test {
 protected:
  EvictedKeys() {
    written_.inputs.stage = Stage::generation;
    written_.inputs.stored = StoredKeys{positions_, begin_, end_, 10};
  }
  const std::vector<std::int32_t> positions_{0, 4, 9, 2, 9};
  const std::vector<Index> begin_{0, 3}, end_{3, 5};
  WrittenInputs written_{{1, 2, 1, 1}, {1, 1}, {1, 2, 5, 1}, std::vector<float>(10)};
};

TEST_F(EvictedKeys, AreCountedAsKeysOfTheSequence) {
  written_.inputs.validate();
  EXPECT_EQ(written_.inputs.keys_length(), 10);
  EXPECT_EQ(written_.inputs.position(0), 9);
}

TEST_F(EvictedKeys, LeaveTheOthersInRowsOfTheirOwn) {
  const KeyRows first(written_.inputs, 0, 0), second(written_.inputs, 0, 1), unmoved;
  EXPECT_TRUE(first.moved());
  EXPECT_EQ(first.find(4), 1);
  EXPECT_EQ(second.find(9), 4);
  EXPECT_EQ(second.find(4), -1);
  EXPECT_EQ(second.any(), 3);
  EXPECT_FALSE(unmoved.moved());
  EXPECT_EQ(unmoved.find(7), 7);
}

TEST_F(EvictedKeys, AreMissingFromAListOfPositions) {
  const KeyRows keys(written_.inputs, 0, 0);
  const std::vector<std::int32_t> positions{0, 2, 4, 9};
  std::vector<std::int32_t> rows(4);
  keys.find(positions, rows.data(), -5);
  EXPECT_EQ(rows, (std::vector<std::int32_t>{0, -5, 1, 2}));
  EXPECT_EQ(message_of<ValueError>([&] { keys.find(positions, rows.data()); }),
            "stored keys: the key at position 2 was evicted, and is attended to again");
}

TEST_F(EvictedKeys, ThatAreDescribedWronglyAreRefused) {
  written_.inputs.stored->positions = std::span(positions_).first(4);
  EXPECT_EQ(message_of<ShapeError>([&] { written_.inputs.validate(); }),
            "stored keys: 4 positions, 2 begins and 2 ends; expected a position of each of 5 rows, and 2 lists");
  written_.inputs.stored->positions = positions_;
  const std::vector<Index> end{3, 6};
  written_.inputs.stored->end = end;
  EXPECT_EQ(message_of<ShapeError>([&] { written_.inputs.validate(); }), "stored keys: list 1 is rows [3, 6) of 5");
  written_.inputs.stage = Stage::prefill;
  EXPECT_EQ(message_of<ValueError>([&] { written_.inputs.validate(); }),
            "stored keys: expected the generation stage and no attention_mask");
}

class SeenKeysOfTwo : public ::testing::Test {
 protected:
  SeenKeysOfTwo() {
    float next = 0;
    for (float& x : keys_.span<float>()) x = next++;
    seen_.continue_with(of(4));
    seen_.finish(of(4));
  }
  AttentionInputs of(Index keys) const {
    AttentionInputs inputs;
    inputs.queries = keys_.view().slice(2, 0, 1);
    inputs.keys = inputs.values = keys_.view().slice(2, 0, keys);
    return inputs;
  }

  Tensor keys_{DType::f32, {2, 1, 6, 4}};
  SeenKeys seen_;
};

TEST_F(SeenKeysOfTwo, RefusesOtherExtentsAndFewerKeys) {
  EXPECT_NO_THROW(seen_.continue_with(of(5)));
  EXPECT_THROW(seen_.continue_with(of(3)), ShapeError);
  AttentionInputs one = of(5);
  for (TensorView* view : {&one.queries, &one.keys, &one.values}) *view = view->slice(0, 0, 1);
  EXPECT_THROW(seen_.continue_with(one), ShapeError);
}

TEST_F(SeenKeysOfTwo, RefusesOtherSequences) {
  const float before = keys_.span<float>()[3 * 4];
  keys_.span<float>()[3 * 4] = -1;  // the last key that was read of the first sequence
  EXPECT_THROW(seen_.continue_with(of(5)), ShapeError);
  seen_.truncate(3);
  EXPECT_EQ(seen_.count(), 3);
  EXPECT_NO_THROW(seen_.continue_with(of(4))) << "key 3 is to be read again";
  keys_.span<float>()[3 * 4] = before;
}

TEST_F(SeenKeysOfTwo, FollowsWhatIsSelected) {
  const std::vector<Index> twice = {1, 1, 0};
  seen_.select(twice);
  EXPECT_EQ(seen_.batch(), 3);
  Tensor three(DType::f32, {3, 1, 6, 4});
  for (std::size_t row = 0; row < 3; ++row) {
    const auto from = keys_.span<float>().subspan(static_cast<std::size_t>(twice[row]) * 24, 24);
    std::copy(from.begin(), from.end(), three.span<float>().begin() + static_cast<std::ptrdiff_t>(row) * 24);
  }
  AttentionInputs inputs;
  inputs.queries = three.view().slice(2, 0, 1);
  inputs.keys = inputs.values = three.view().slice(2, 0, 5);
  EXPECT_NO_THROW(seen_.continue_with(inputs));
  EXPECT_THROW(seen_.select(std::vector<Index>{3}), ShapeError);
}

TEST(SeenKeys, RefuseCallsOfOtherExtents) {
  for (const testing::Shapes& other : {testing::Shapes{2, 4, 2, 1, 50, 16, 16}, testing::Shapes{1, 2, 2, 1, 50, 16, 16},
                                       testing::Shapes{1, 4, 4, 1, 50, 16, 16}, testing::Shapes{1, 4, 2, 1, 50, 8, 8},
                                       testing::Shapes{1, 4, 2, 1, 39, 16, 16}}) {
    SeenKeys seen;
    const testing::OwnedInputs first({1, 4, 2, 1, 40, 16, 16}, 1), next(other, 1);
    seen.continue_with(first.inputs);
    seen.finish(first.inputs);
    EXPECT_THROW(seen.continue_with(next.inputs), ShapeError);
    EXPECT_EQ(seen.count(), 40);
  }
}

}  // namespace
}  // namespace reticle::testing
