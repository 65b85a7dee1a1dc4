// HostCopies, HostInputs and DeviceSequence are internal: they are tested through pipelines, on the GPU and without
// one.
#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/base/warning.hpp>

#include "support/attention.hpp"
#include "support/cuda/on_device.hpp"

namespace reticle::cuda {
namespace {

constexpr Index kTokens = 70, kPrompt = 40;

/// Maskers of decode steps: one that chooses on the CPU, which keys are copied for, and two that follow rules, of which
/// one keeps bounds of pages on the GPU.
const char* const kMaskers[] = {R"({"type": "moba", "block_size": 8, "top_k": 2})",
                                R"({"type": "quest_top_k", "heavy_size": 16, "page_size": 4})",
                                R"({"type": "oracle_top_k", "heavy_size": 9})"};

SparseAttention decoder_of(const std::string& masker) {
  return SparseAttention::from_json(R"({"prefill": {"maskers": []}, "generation": {"maskers": [)" + masker + "]}}");
}

/// Two sequences, here and on the GPU. Tokens from `cut` on are drawn by another seed.
class Sequences {
 public:
  Sequences(unsigned seed, unsigned after, Index cut) {
    for (const auto& [tensor, heads] : {std::pair<Tensor*, Index>{&here_[0], 4}, {&here_[1], 2}, {&here_[2], 2}}) {
      *tensor = drawn(heads, seed++);
      const Tensor rest = drawn(heads, 100 + after++);
      for (Index i = 0; i < 2 * heads; ++i) {
        const auto from = static_cast<std::ptrdiff_t>((i * kTokens + cut) * 64),
                   to = static_cast<std::ptrdiff_t>((i + 1) * kTokens * 64);
        std::copy(rest.span<float>().begin() + from, rest.span<float>().begin() + to,
                  tensor->span<float>().begin() + from);
      }
    }
    copy_there();
  }
  explicit Sequences(unsigned seed) : Sequences(seed, seed, kTokens) {}

  /// The two in the other order.
  Sequences swapped() const {
    Sequences other(0);
    for (std::size_t i = 0; i < 3; ++i) {
      const auto from = here_[i].span<float>();
      const auto half = static_cast<std::ptrdiff_t>(from.size() / 2);
      std::rotate_copy(from.begin(), from.begin() + half, from.end(), other.here_[i].span<float>().begin());
    }
    other.copy_there();
    return other;
  }

  AttentionInputs at(Index from, Index to, bool there) const {
    const Tensor* const tensors = there ? there_ : here_;
    AttentionInputs inputs;
    inputs.queries = tensors[0].view().slice(2, from, to);
    inputs.keys = tensors[1].view().slice(2, 0, to);
    inputs.values = tensors[2].view().slice(2, 0, to);
    inputs.scaling = 0.125f;
    inputs.causal = true;
    inputs.stage = from == 0 ? Stage::prefill : Stage::generation;
    return inputs;
  }

 private:
  static Tensor drawn(Index heads, unsigned seed) {
    std::mt19937 random(seed);
    return reticle::testing::random_tensor(DType::f32, {2, heads, kTokens, 64}, random);
  }
  void copy_there() {
    for (std::size_t i = 0; i < 3; ++i) there_[i] = copy_to(here_[i], kGpu);
  }

  Tensor here_[3], there_[3];
};

/// While it lives, nobody is warned that keys are copied to the host.
struct NoWarnings {
  NoWarnings() {
    set_warning_handler([](const std::string&) {});
  }
  NoWarnings(const NoWarnings&) = delete;
  NoWarnings& operator=(const NoWarnings&) = delete;
  ~NoWarnings() { set_warning_handler({}); }
};

/// The prompt, and steps up to token `to`; nothing is compared.
void decode(const SparseAttention& sparse, SequenceState& state, const Sequences& sequences, Index to, bool there) {
  sparse.attend(sequences.at(0, kPrompt, there), state);
  for (Index t = kPrompt; t < to; ++t) sparse.attend(sequences.at(t, t + 1, there), state);
}

void expect_steps_agree(const SparseAttention& sparse, const Sequences& sequences, Index from, Index to,
                        SequenceState& here, SequenceState& there) {
  for (Index t = from; t < to; ++t) {
    const AttentionResult expected = sparse.attend(sequences.at(t, t + 1, false), here).attention,
                          found = sparse.attend(sequences.at(t, t + 1, true), there).attention;
    expect_equal(expected, on_host<float>(found.output), on_host<float>(found.lse), 1e-4, 1e-3);
  }
}

TEST_F(CudaDevice, KeysAreFollowedBeyondTheRoomOfThePrompt) {
  const NoWarnings quiet;
  for (const char* masker : kMaskers) {
    SCOPED_TRACE(masker);
    const SparseAttention sparse = decoder_of(masker);
    const Sequences sequences(1);
    SequenceState here(Recording::figures), there(Recording::figures);
    decode(sparse, here, sequences, kPrompt, false);
    decode(sparse, there, sequences, kPrompt, true);
    expect_steps_agree(sparse, sequences, kPrompt, kTokens, here, there);
  }
}

TEST_F(CudaDevice, TruncatedKeysAreReadAgainThoughOthersComeInTheirPlace) {
  const NoWarnings quiet;
  for (const char* masker : kMaskers) {
    SCOPED_TRACE(masker);
    const SparseAttention sparse = decoder_of(masker);
    const Index cut = kPrompt + 2;
    const Sequences before(1), after(1, 2, cut);
    SequenceState here(Recording::figures), there(Recording::figures);
    decode(sparse, there, before, cut + 6, true);
    there.truncate(cut);
    decode(sparse, here, after, cut, false);  // which never saw the others
    expect_steps_agree(sparse, after, cut, cut + 10, here, there);
  }
}

TEST_F(CudaDevice, SelectedSequencesAreReadAgainInTheirNewOrder) {
  const NoWarnings quiet;
  for (const char* masker : kMaskers) {
    SCOPED_TRACE(masker);
    const SparseAttention sparse = decoder_of(masker);
    const Sequences first(3), second = first.swapped();
    SequenceState here(Recording::figures), there(Recording::figures);
    decode(sparse, there, first, kPrompt + 3, true);
    there.select(std::vector<Index>{1, 0});
    decode(sparse, here, second, kPrompt + 3, false);
    expect_steps_agree(sparse, second, kPrompt + 3, kPrompt + 8, here, there);
  }
}

TEST_F(CudaDevice, AStateThatWasResetBeginsAnotherSequence) {
  const NoWarnings quiet;
  for (const char* masker : kMaskers) {
    SCOPED_TRACE(masker);
    const SparseAttention sparse = decoder_of(masker);
    const Sequences first(4), second(5);
    SequenceState here(Recording::figures), there(Recording::figures);
    decode(sparse, there, first, kPrompt + 3, true);
    there.reset();
    decode(sparse, there, second, kPrompt, true);
    decode(sparse, here, second, kPrompt, false);
    expect_steps_agree(sparse, second, kPrompt, kPrompt + 3, here, there);
  }
}

TEST_F(CudaDevice, AttentionMasksComeToTheHostWithTheKeys) {
  const NoWarnings quiet;
  const SparseAttention sparse = decoder_of(kMaskers[0]);
  const Sequences sequences(6);
  std::mt19937 random(7);
  const Tensor bias = reticle::testing::random_tensor(DType::f32, {2, 1, 1, kPrompt + 1}, random, 3),
               bias_there = copy_to(bias, kGpu);
  SequenceState here(Recording::figures), there(Recording::figures);
  decode(sparse, here, sequences, kPrompt, false);
  decode(sparse, there, sequences, kPrompt, true);
  AttentionInputs step = sequences.at(kPrompt, kPrompt + 1, false),
                  step_there = sequences.at(kPrompt, kPrompt + 1, true);
  step.attention_mask = bias.view();
  step_there.attention_mask = bias_there.view();
  const AttentionResult expected = sparse.attend(step, here).attention,
                        found = sparse.attend(step_there, there).attention;
  expect_equal(expected, on_host<float>(found.output), on_host<float>(found.lse), 1e-4, 1e-3);
}

}  // namespace
}  // namespace reticle::cuda
