// Every allocation of a call fails once: the call throws, what was there before stays as it was, and the next call
// gives what it always gives. The allocator below stands in for malloc in this process (glibc lets it), threads
// included, so that no allocation is missed: operator new, nlohmann's, the C library's own.
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <new>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/llama/decoder.hpp>
#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/reshape.hpp>
#include <reticle/core/registry.hpp>

#include "support/attention.hpp"
#include "support/files.hpp"
#include "support/models.hpp"
#include "support/random_mask.hpp"

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* memory, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
}

namespace {

/// How many more allocations succeed; negative: all do.
std::atomic<long> left{-1};

bool fails() {
  if (left.load(std::memory_order_relaxed) < 0) return false;
  return left.fetch_sub(1, std::memory_order_relaxed) == 0;
}

void* refused() {
  errno = ENOMEM;
  return nullptr;
}

}  // namespace

extern "C" {
void* malloc(std::size_t size) { return fails() ? refused() : __libc_malloc(size); }
void* calloc(std::size_t count, std::size_t size) { return fails() ? refused() : __libc_calloc(count, size); }
void* realloc(void* memory, std::size_t size) { return fails() ? refused() : __libc_realloc(memory, size); }
void* memalign(std::size_t alignment, std::size_t size) {
  return fails() ? refused() : __libc_memalign(alignment, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  return fails() ? refused() : __libc_memalign(alignment, size);
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t size) {
  if (fails()) return ENOMEM;
  *memory = __libc_memalign(alignment, size);
  return *memory == nullptr ? ENOMEM : 0;
}
}

namespace reticle::testing {
namespace {

/// call() with its first allocation failing, then its second, and so on, until there are no more; Result is comparable.
template <class Result>
void expect_every_failed_allocation_survived(const std::string& name, const std::function<Result()>& call) {
  const Result expected = call();
  long threw = 0;
  for (long n = 0;; ++n) {
    left = n;
    bool returned = true;
    try {
      const Result result = call();
      if (left.exchange(-1) >= 0) break;  // there are not so many
      EXPECT_TRUE(result == expected) << name << " went on without allocation " << n << ", with another result";
    } catch (const std::exception&) {
      left = -1;
      returned = false;
    }
    if (returned) continue;  // a hint that it can do without
    ++threw;
    EXPECT_TRUE(call() == expected) << name << " after its allocation " << n << " had failed";
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(threw, 0) << name;
  std::printf("%s: %ld allocations failed in turn\n", name.c_str(), threw);
}

std::vector<float> values(const Tensor& tensor) {
  const Tensor floats = Tensor::copy(tensor, DType::f32);
  const auto span = floats.span<float>();
  return {span.begin(), span.end()};
}

class Allocations : public ::testing::Test {
 protected:
  OwnedInputs owned{{1, 4, 2, 20, 64, 16, 16}, 1};
  Context context{2};
};

TEST_F(Allocations, OfAttentionAndItsGradients) {
  std::mt19937 random(1);
  const Mask mask = random_masks(owned.inputs.shape(), random).back().mask;
  const AttentionResult forward = attention(owned.inputs, mask, {}, context);
  expect_every_failed_allocation_survived<std::vector<float>>(
      "attention", [&] { return values(attention(owned.inputs, mask, {}, context).output); });
  expect_every_failed_allocation_survived<std::vector<float>>("attention_backward", [&] {
    return values(
        attention_backward(owned.inputs, mask, forward.output, forward.lse, forward.output, {}, context).keys);
  });
}

TEST_F(Allocations, OfTheMaskAlgebra) {
  std::mt19937 random(2);
  const std::vector<NamedMask> masks = random_masks(owned.inputs.shape(), random);
  const Mask &a = masks[4].mask, &b = masks.back().mask;
  expect_every_failed_allocation_survived<Mask>("merge", [&] { return merge(a, b, MergeRule::add, context); });
  expect_every_failed_allocation_survived<Mask>("subtract", [&] { return b - a; });
  expect_every_failed_allocation_survived<Mask>("slice", [&] { return slice(b, Dim::keys, 3, 40); });
  for (const MaskKind kind : kStoredKinds) {
    const Mask& from = kind == MaskKind::csr ? masks[2].mask : a;  // in another form
    expect_every_failed_allocation_survived<Mask>("convert to " + std::string(name_of(kind)),
                                                  [&] { return convert(from, kind, context); });
  }
}

TEST_F(Allocations, OfEveryMasker) {
  for (const MaskerType* type : Registry::global().list()) {
    const std::string config = R"({"maskers": [{"type": ")" + type->name + R"("}], "causal": true})";
    AttentionInputs step = owned.inputs.rows(19, 20);
    step.stage = Stage::generation;
    std::optional<SparseAttention> sparse;
    const auto call = [&] {
      if (!sparse) sparse = SparseAttention::from_json(config);
      SequenceState state;
      std::vector<float> outputs =
          values(sparse->run(owned.inputs.rows(0, 19), state, false, {}, context).attention.output);
      const std::vector<float> last = values(sparse->run(step, state, false, {}, context).attention.output);
      outputs.insert(outputs.end(), last.begin(), last.end());
      return outputs;
    };
    try {
      call();
    } catch (const Error&) {
      continue;  // needs a file or extra tensors
    }
    expect_every_failed_allocation_survived<std::vector<float>>(type->name, call);
  }
}

TEST_F(Allocations, OfAStateThatGoesOn) {
  // A failed step may leave what maskers keep half made; reset, a state serves again.
  const auto sparse = SparseAttention::from_json(R"({"maskers": [{"type": "quest_top_k"}, {"type": "pq_cache"}]})");
  SequenceState state;
  expect_every_failed_allocation_survived<std::vector<float>>("a state that is reset", [&] {
    state.reset();
    return values(sparse.run(owned.inputs, state, false, {}, context).attention.output);
  });
}

TEST_F(Allocations, OfThreadsThatComputeForTheFirstTime) {
  // What a thread keeps from call to call it does not have yet.
  std::mt19937 random(3);
  const Mask mask = random_masks(owned.inputs.shape(), random).back().mask;
  const auto sparse = SparseAttention::from_json(R"({"maskers": [{"type": "top_k"}, {"type": "adaptive_sampling"}]})");
  const Context alone{1};
  expect_every_failed_allocation_survived<Mask>("a new thread", [&] {
    std::optional<Mask> result;
    std::exception_ptr error;
    std::thread([&] {
      try {
        SequenceState state;
        result = merge(mask, sparse.run(owned.inputs, state, true, {}, alone).mask, MergeRule::add, alone);
      } catch (...) {
        error = std::current_exception();
      }
    }).join();
    if (error) std::rethrow_exception(error);
    return result.value();
  });
}

TEST_F(Allocations, OfADecoder) {
  const TemporaryFolder folder;
  ModelFiles(1).write(folder.path());
  const std::vector<std::int32_t> tokens{1, 2, 3, 4};
  const Decoder decoder = Decoder::load(folder.path());
  expect_every_failed_allocation_survived<std::vector<float>>("a decoder", [&] {
    DecoderState state = decoder.start(8);
    return values(decoder.forward(tokens, state, {}, context));
  });
}

TEST_F(Allocations, OfAContext) {
  // Threads that cannot be made are an error; those that were made end.
  expect_every_failed_allocation_survived<Index>("a pool of threads", [] {
    std::atomic<Index> sum = 0;
    Context(3).for_each_chunk(10, 1, [&](Index i, Index, Index) { sum += i; });
    return sum.load();
  });
}

}  // namespace
}  // namespace reticle::testing
