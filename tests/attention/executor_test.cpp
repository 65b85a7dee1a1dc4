#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/executor.hpp>
#include <reticle/core/mask/combine.hpp>

#include "support/attention.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> dense_weights(const AttentionWeights& weights, const MaskShape& shape) {
  std::vector<float> dense(static_cast<std::size_t>(shape.positions()), 0.0f);
  for (Index row = 0; row < shape.rows(); ++row) {
    for (Index i = weights.row_ptr[row]; i < weights.row_ptr[row + 1]; ++i)
      dense[static_cast<std::size_t>(row * shape.keys + weights.indices[i])] =
          weights.values[static_cast<std::size_t>(i)];
  }
  return dense;
}

TEST(Attention, AgreesWithTheReferenceForEveryRepresentationAndSharing) {
  const OwnedInputs owned({.batch = 2, .heads = 4, .kv_heads = 2, .queries = 5, .keys = 70}, 1);
  std::mt19937 random(1);
  AttentionOptions options;
  options.weights = true;
  for (const NamedMask& m : random_masks(owned.inputs.shape(), random)) {
    SCOPED_TRACE(m.name);
    const AttentionResult result = attention(owned.inputs, m.mask, options);
    const Reference reference = reference_attention(owned.inputs, m.mask);
    expect_agrees(result, reference);
    const std::vector<float> weights = dense_weights(*result.weights, owned.inputs.shape());
    for (std::size_t i = 0; i < weights.size(); ++i) ASSERT_NEAR(weights[i], reference.weights[i], 2e-6);
    EXPECT_EQ(result.weights->indices.size(), m.mask.nnz());
  }
}

TEST(Attention, AgreesForEveryDtypeGroupSizeAndHeadSize) {
  std::uint32_t seed = 10;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const Index kv_heads : {1, 2, 4, 8}) {
      for (const auto& [d, dv] :
           {std::pair<Index, Index>{1, 1}, {16, 16}, {64, 80}, {100, 33}, {256, 256}, {576, 512}, {1024, 8}}) {
        SCOPED_TRACE(std::string(name_of(dtype)) + ", kv heads " + std::to_string(kv_heads) + ", d " +
                     std::to_string(d));
        const OwnedInputs owned({1, 8, kv_heads, 2, 40, d, dv}, seed++, dtype);
        std::mt19937 random(seed);
        const Mask mask = Mask::dense(owned.inputs.shape(), random_p(owned.inputs.shape(), 0.5, true, random));
        expect_agrees(attention(owned.inputs, mask), reference_attention(owned.inputs, mask));
      }
    }
  }
}

TEST(Attention, ReadsStridedTensorsInPlace) {
  for (const Index queries : {3, 30}) {
    const Shapes s{2, 4, 2, queries, 60, 16, 16};
    const OwnedInputs owned(s, 30);
    // The same tensors laid out (batch, length, heads, width), and with the width outermost.
    for (const std::initializer_list<int>& order :
         {std::initializer_list<int>{0, 2, 1, 3}, {3, 0, 1, 2}, {3, 2, 1, 0}}) {
      std::vector<int> inverse(4);
      int at = 0;
      for (const int dim : order) inverse[static_cast<std::size_t>(dim)] = at++;
      const auto relaid = [&](const TensorView& view) { return Tensor::copy(view.permute(order), view.dtype); };
      const auto back = [&](const Tensor& tensor) {
        return tensor.view().permute({inverse[0], inverse[1], inverse[2], inverse[3]});
      };
      const Tensor q = relaid(owned.inputs.queries), k = relaid(owned.inputs.keys), v = relaid(owned.inputs.values);
      AttentionInputs strided = owned.inputs;
      strided.queries = back(q);
      strided.keys = back(k);
      strided.values = back(v);
      EXPECT_FALSE(strided.keys.contiguous());
      std::mt19937 random(30);
      const Mask mask = Mask::dense(strided.shape(), random_p(strided.shape(), 0.5, true, random));
      expect_agrees(attention(strided, mask), reference_attention(owned.inputs, mask));
    }
  }
}

TEST(Attention, AppliesAttentionMaskCausalitySoftCapAndSinksTogether) {
  const Shapes s{2, 4, 2, 6, 33, 16, 16};
  OwnedInputs owned(s, 40);
  std::mt19937 random(40);
  const std::vector<float> sinks{0.5f, -kInfinity, 3, -2};
  for (const auto& [b, h, q, k] : {std::array<Index, 4>{2, 4, 6, 33}, {1, 1, 6, 33}, {2, 1, 1, 33}, {1, 4, 6, 1}}) {
    Tensor bias = random_tensor(DType::f32, {b, h, q, k}, random);
    for (std::size_t i = 0; i < bias.span<float>().size(); i += 3)
      bias.span<float>()[i] = i % 2 == 0 ? -kInfinity : -std::numeric_limits<float>::max();
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Tensor typed = Tensor::copy(bias, dtype);
      AttentionInputs inputs = owned.inputs;
      inputs.attention_mask = typed.view();
      inputs.causal = true;
      AttentionOptions options;
      options.soft_cap = 1.5f;
      options.sink_logits = sinks;
      options.weights = true;
      const Mask mask = Mask::dense(inputs.shape(), random_p(inputs.shape(), 0.6, true, random));
      const Reference reference = reference_attention(inputs, mask, options);
      const AttentionResult result = attention(inputs, mask, options);
      expect_agrees(result, reference);
      const std::vector<float> weights = dense_weights(*result.weights, inputs.shape());
      for (std::size_t i = 0; i < weights.size(); ++i) ASSERT_NEAR(weights[i], reference.weights[i], 2e-6);
    }
  }
}

TEST(Attention, RowsWithoutEntriesGiveZeroAndNeverNaN) {
  OwnedInputs owned({1, 2, 1, 4, 8, 16, 16}, 50);
  const AttentionResult nothing = attention(owned.inputs, Mask::empty(owned.inputs.shape()));
  for (const float value : nothing.output.span<float>()) EXPECT_EQ(value, 0.0f);
  for (const float value : nothing.lse.span<float>()) EXPECT_EQ(value, -kInfinity);

  Tensor forbids(DType::f32, {1, 1, 1, 8});
  std::fill(forbids.span<float>().begin(), forbids.span<float>().end(), -std::numeric_limits<float>::max());
  owned.inputs.attention_mask = forbids.view();
  AttentionOptions options;
  options.weights = true;
  const AttentionResult forbidden = attention(owned.inputs, Mask::full(owned.inputs.shape()), options);
  for (const float value : forbidden.output.span<float>()) EXPECT_EQ(value, 0.0f);
  for (const float value : forbidden.weights->values) EXPECT_EQ(value, 0.0f);
}

TEST(Attention, TensorsWithoutElementsGiveResultsWithoutElementsOrZeros) {
  for (const Shapes& s : {Shapes{0, 4, 2, 3, 5, 8, 8}, Shapes{1, 0, 0, 3, 5, 8, 8}, Shapes{1, 4, 2, 0, 5, 8, 8},
                          Shapes{1, 4, 2, 3, 0, 8, 8}, Shapes{1, 4, 2, 3, 5, 0, 8}, Shapes{1, 4, 2, 3, 5, 8, 0}}) {
    const OwnedInputs owned(s, 55);
    AttentionInputs inputs = owned.inputs;
    inputs.scaling = 1;
    const AttentionResult result = attention(inputs, Mask::full(inputs.shape()));
    EXPECT_EQ(result.output.view().elements(), s.batch * s.heads * s.queries * s.value_dim);
    if (s.keys == 0) {
      for (const float value : result.output.span<float>()) EXPECT_EQ(value, 0.0f);
    }
  }
}

TEST(Attention, IsBitIdenticalForAnyNumberOfThreads) {
  const OwnedInputs owned({1, 8, 2, 40, 300, 64, 64}, 70, DType::bf16);
  std::mt19937 random(70);
  const Mask mask = Mask::dense(owned.inputs.shape(), random_p(owned.inputs.shape(), 0.4, true, random));
  const AttentionResult one = attention(owned.inputs, mask, {}, Context(1));
  for (const int threads : {2, 3, 7}) {
    const AttentionResult many = attention(owned.inputs, mask, {}, Context(threads));
    EXPECT_TRUE(std::ranges::equal(one.lse.span<float>(), many.lse.span<float>()));
    EXPECT_EQ(std::memcmp(one.output.view().data, many.output.view().data,
                          static_cast<std::size_t>(one.output.view().elements() * 2)),
              0);
  }
}

TEST(Attention, StatesOfDisjointKeysMergeToTheWhole) {
  const OwnedInputs owned({1, 4, 2, 3, 90, 32, 32}, 80);
  std::mt19937 random(80);
  const Mask whole = Mask::dense(owned.inputs.shape(), random_p(owned.inputs.shape(), 0.4, true, random));
  const Mask first = Mask::intervals(owned.inputs.shape().one_row(), [](RowId) { return Interval{0, 31}; });
  const Mask middle = Mask::intervals(owned.inputs.shape().one_row(), [](RowId) { return Interval{31, 40}; });
  const Mask last = complement(first | middle);
  const auto part = [&](const Mask& keys) { return attention(owned.inputs, whole - complement(keys)); };
  const Reference reference = reference_attention(owned.inputs, whole);
  expect_agrees(merge(merge(part(first), part(middle)), part(last)), reference);
  expect_agrees(merge(part(last), merge(part(middle), part(first))), reference);
  const AttentionResult nothing = attention(owned.inputs, Mask::empty(owned.inputs.shape()));
  expect_agrees(merge(nothing, merge(part(first | middle | last), nothing)), reference);
  EXPECT_EQ(merge(nothing, nothing).lse.span<float>()[0], -kInfinity);
}

/// Keys and values without those that a mask leaves in all heads of a KV head, as a cache that evicted them holds them.
struct Evicted {
  Evicted(const AttentionInputs& inputs, const Mask& kept) : inputs(inputs) {
    const Index batch = inputs.batch(), kv_heads = inputs.kv_heads(), group = inputs.group();
    for (Index list = 0; list < batch * kv_heads; ++list) {
      begin.push_back(static_cast<Index>(positions.size()));
      for (std::int32_t key = 0; key < inputs.keys_length(); ++key) {
        bool wanted = false;
        for (Index row = 0; row < group * inputs.queries_length() && !wanted; ++row)
          wanted = kept.at(list / kv_heads, list % kv_heads * group + row / inputs.queries_length(),
                           row % inputs.queries_length(), key) > 0;
        if (wanted) positions.push_back(key);
      }
      end.push_back(static_cast<Index>(positions.size()));
      positions.push_back(-1);  // room, of no list
    }
    const auto rows = static_cast<Index>(positions.size());
    const auto gather = [&](const TensorView& from) {
      Tensor to(from.dtype, {batch, kv_heads, rows, from.size(3)});
      const auto width = static_cast<std::size_t>(from.size(3) * size_of(from.dtype));
      std::memset(to.data(), 0xff, static_cast<std::size_t>(batch * kv_heads * rows) * width);  // NaN
      for (Index list = 0; list < batch * kv_heads; ++list) {
        for (Index row = begin[static_cast<std::size_t>(list)]; row < end[static_cast<std::size_t>(list)]; ++row)
          std::memcpy(static_cast<std::byte*>(to.data()) + static_cast<std::size_t>(list * rows + row) * width,
                      static_cast<const std::byte*>(head_matrix(from, list / kv_heads, list % kv_heads).data) +
                          static_cast<std::size_t>(positions[static_cast<std::size_t>(row)]) * width,
                      width);
      }
      return to;
    };
    keys = gather(inputs.keys);
    values = gather(inputs.values);
    this->inputs.keys = keys.view();
    this->inputs.values = values.view();
    this->inputs.stage = Stage::generation;
    this->inputs.stored = StoredKeys{positions, begin, end, inputs.keys_length()};
  }

  AttentionInputs inputs;
  Tensor keys, values;
  std::vector<std::int32_t> positions;
  std::vector<Index> begin, end;
};

TEST(Attention, OverTheKeysThatAreLeftIsToTheBitThatOfTheMaskOverAll) {
  std::mt19937 random(3);
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const Index heads : {2, 6, 24}) {  // one head to a KV head, few, and a tile of them
      for (const Index queries : {1, 3}) {
        const OwnedInputs owned({.batch = 2, .heads = heads, .kv_heads = 2, .queries = queries, .keys = 700}, 5, dtype);
        for (const auto& [name, mask] : random_masks(owned.inputs.shape(), random)) {
          const Evicted evicted(owned.inputs, mask);
          const AttentionResult left = attention(evicted.inputs, mask), all = attention(owned.inputs, mask);
          const auto same = [](const Tensor& a, const Tensor& b) {
            return std::memcmp(a.view().data, b.view().data,
                               static_cast<std::size_t>(a.view().elements() * size_of(a.view().dtype))) == 0;
          };
          EXPECT_TRUE(same(left.output, all.output) && same(left.lse, all.lse))
              << name << ", " << heads << " heads, " << queries << " queries";
        }
      }
    }
  }
}

TEST(Attention, RecentKeysAreReadInsteadOfTheirCodes) {
  std::mt19937 random(41);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Index queries : {1, 3, 40}) {
      for (const Index recent : {0, 1, 50, 90}) {
        OwnedInputs owned({2, 4, 2, queries, 90, 32, 40}, 50, dtype);
        const Tensor key_codes = Tensor::copy(owned.keys, DType::q4),
                     value_codes = Tensor::copy(owned.values, DType::q8);
        // What is attended to: the codes' channels, then the recent keys as they were.
        Tensor keys = Tensor::copy(key_codes, DType::f32), values = Tensor::copy(value_codes, DType::f32);
        const auto restore = [&](const Tensor& from, Tensor& to) {
          const TensorView view = from.view();
          for (Index row = 0; row < 4; ++row) {
            for (Index i = (90 - recent) * view.size(3); i < 90 * view.size(3); ++i)
              to.span<float>()[static_cast<std::size_t>(row * 90 * view.size(3) + i)] =
                  read_float(view, row * 90 * view.size(3) + i);
          }
        };
        restore(owned.keys, keys);
        restore(owned.values, values);
        AttentionInputs expected = owned.inputs;
        expected.keys = keys.view();
        expected.values = values.view();
        AttentionInputs given = owned.inputs;
        given.keys = key_codes.view();
        given.values = value_codes.view();
        given.recent_keys = owned.keys.view().slice(2, 90 - recent, 90);
        given.recent_values = owned.values.view().slice(2, 90 - recent, 90);
        AttentionOptions options;
        const std::vector<float> sinks{0.5f, -1, 2, 0};
        options.sink_logits = sinks;
        const Tensor bias = random_tensor(DType::f32, {2, 1, queries, 90}, random);
        const Mask mask = Mask::dense(given.shape(), random_p(given.shape(), 0.5, true, random));
        for (AttentionInputs* inputs : {&expected, &given}) {
          inputs->causal = true;
          inputs->attention_mask = bias.view();
        }
        const Reference reference = reference_attention(expected, mask, options);
        const AttentionResult result = attention(given, mask, options),
                              planned = attention(given, AttentionPlan(given, mask), options);
        for (std::size_t i = 0; i < reference.output.size(); ++i) {
          const auto at = static_cast<Index>(i);
          EXPECT_NEAR(read_float(result.output, at), reference.output[i], dtype == DType::f32 ? 2e-3 : 2e-2);
          EXPECT_EQ(read_float(result.output, at), read_float(planned.output, at));
        }
        // A part of the queries sees the recent keys that are not after them.
        if (queries > 1) {
          const AttentionInputs first = given.rows(0, 1);
          EXPECT_EQ(first.recent_keys->size(2), std::max<Index>(0, recent - (queries - 1)));
          EXPECT_NO_THROW(first.validate());
        }
      }
    }
  }
}

TEST(Attention, RecentKeysThatAreNotTheLastOfTheKeysAreRefused) {
  const OwnedInputs owned({1, 2, 1, 1, 20, 32, 32}, 51);
  const Tensor codes = Tensor::copy(owned.keys, DType::q8);
  AttentionInputs inputs = owned.inputs;
  inputs.keys = inputs.values = codes.view();
  const Mask mask = Mask::full(inputs.shape());
  inputs.recent_keys = owned.keys.view().slice(2, 10, 20);
  EXPECT_THROW(attention(inputs, mask), ShapeError);
  inputs.recent_values = owned.keys.view().slice(2, 11, 20);
  EXPECT_THROW(attention(inputs, mask), ShapeError);
  inputs.recent_values = codes.view().slice(2, 10, 20);
  EXPECT_THROW(attention(inputs, mask), ShapeError);
  inputs.recent_values = owned.keys.view().slice(2, 10, 20);
  AttentionOptions options;
  options.weights = true;
  EXPECT_THROW(attention(inputs, mask, options), ValueError);
  EXPECT_NO_THROW(attention(inputs, mask));
}

TEST(Attention, AKeyThatWasEvictedIsNotAttendedTo) {
  const OwnedInputs owned({.batch = 1, .heads = 2, .kv_heads = 1, .queries = 1, .keys = 9}, 5);
  const Mask kept = Mask::from_runs(owned.inputs.shape().one_row(), [](RowId, FunctionRef<void(reticle::Run)> emit) {
    emit({0, 3, 1});
    emit({7, 9, 1});
  });
  const Evicted evicted(owned.inputs, kept);
  try {
    attention(evicted.inputs, Mask::full(owned.inputs.shape()));
    ADD_FAILURE() << "expected a ValueError";
  } catch (const ValueError& error) {
    EXPECT_EQ(std::string(error.what()), "stored keys: the key at position 3 was evicted, and is attended to again");
  }
  AttentionInputs wrong = evicted.inputs;
  const std::vector<Index> beyond = {6};
  wrong.stored->end = beyond;
  wrong.stored->begin = std::span<const Index>(beyond).first(1);
  EXPECT_NO_THROW(wrong.validate());
  const std::vector<Index> outside = {7};
  wrong.stored->end = outside;
  EXPECT_THROW(attention(wrong, kept), ShapeError);
  wrong = evicted.inputs;
  wrong.stage = Stage::prefill;
  EXPECT_THROW(attention(wrong, kept), ValueError);
}

TEST(Attention, NonFiniteInputsAreReportedWithTheirRow) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
    for (const int which : {0, 1, 2}) {
      OwnedInputs owned({1, 2, 1, 3, 300, 16, 16}, 90);
      Tensor* const tensors[] = {&owned.queries, &owned.keys, &owned.values};
      auto elements = tensors[which]->span<float>();
      elements[elements.size() - 5] = bad;
      try {
        attention(owned.inputs, Mask::full(owned.inputs.shape()), {}, Context(1));
        ADD_FAILURE() << "accepted " << bad << " in tensor " << which;
      } catch (const ValueError& error) {
        // An infinite key scores -infinity, as if forbidden, against some queries: the first other row is named.
        const std::string row = which == 0 ? "(0, 1, 2)" : which == 1 && std::isinf(bad) ? "(0, 0, 1)" : "(0, 0, 0)";
        EXPECT_EQ(std::string(error.what()),
                  "attention: the result of row " + row +
                      " is not finite: its queries, keys, values or mask hold NaN or infinity, or its scores overflow");
      }
      AttentionOptions lenient;
      lenient.allow_non_finite = true;
      EXPECT_NO_THROW(attention(owned.inputs, Mask::full(owned.inputs.shape()), lenient));
      // What is not attended is not read.
      if (which != 0) {
        const Mask others = Mask::intervals(owned.inputs.shape().one_row(), [](RowId) { return Interval{0, 299}; });
        EXPECT_NO_THROW(attention(owned.inputs, others));
      }
    }
  }
}

TEST(Attention, InputsThatDoNotFitAreRefusedByName) {
  const OwnedInputs owned({1, 4, 2, 3, 8, 16, 16}, 95);
  const auto refusal = [](const AttentionInputs& inputs, const Mask& mask, const AttentionOptions& options = {}) {
    try {
      attention(inputs, mask, options);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const Mask full = Mask::full(owned.inputs.shape());
  EXPECT_EQ(refusal(owned.inputs, Mask::full({1, 4, 3, 9})),
            "attention: mask (1, 4, 3, 9) does not fit queries F32 (1, 4, 3, 16) and keys F32 (1, 2, 8, 16); expected "
            "a mask of "
            "(1, 4, 3, 8)");
  AttentionInputs bad = owned.inputs;
  bad.keys = bad.keys.slice(3, 0, 15);
  EXPECT_EQ(refusal(bad, full),
            "keys need the head_dim of the queries (queries F32 (1, 4, 3, 16), keys F32 (1, 2, 8, 15), values F32 (1, "
            "2, 8, 16))");
  bad = owned.inputs;
  bad.queries = bad.queries.slice(1, 0, 3);
  EXPECT_EQ(refusal(bad, full).substr(0, 61), "the query heads, 3, must be a multiple of the KV heads, 2 (qu");
  bad = owned.inputs;
  bad.values = bad.values.slice(2, 0, 7);
  EXPECT_EQ(refusal(bad, full).substr(0, 51), "values need the heads and the length of the keys (q");
  bad = owned.inputs;
  bad.queries.rank = 3;
  EXPECT_EQ(refusal(bad, full), "queries: has 3 dimensions, F32 (1, 4, 3); expected 4");
  bad = owned.inputs;
  bad.values.dtype = DType::i32;
  EXPECT_EQ(refusal(bad, full), "values: dtype is I32; expected F32, F16 or BF16");
  bad = owned.inputs;
  bad.scaling = kInfinity;
  EXPECT_EQ(refusal(bad, full), "scaling is inf; expected a finite number");
  const Tensor mask(DType::f32, {1, 1, 3, 7});
  bad = owned.inputs;
  bad.attention_mask = mask.view();
  EXPECT_EQ(refusal(bad, full), "attention_mask: F32 (1, 1, 3, 7) does not broadcast to (1, 4, 3, 8)");
  AttentionOptions options;
  const std::vector<float> sinks(3);
  options.sink_logits = sinks;
  EXPECT_EQ(refusal(owned.inputs, full, options), "sink_logits: has 3 entries; expected one for each of 4 heads");
  options = {};
  options.soft_cap = 0.0f;
  EXPECT_EQ(refusal(owned.inputs, full, options), "soft_cap is 0.000000; expected a finite number > 0");
  const OwnedInputs wide({1, 1, 1, 1, 1, 1025, 16}, 1);
  EXPECT_EQ(refusal(wide.inputs, Mask::full(wide.inputs.shape())),
            "queries: head size is 1025; at most 1024 is supported");
}

}  // namespace
}  // namespace reticle::testing
