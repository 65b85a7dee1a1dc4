// SparseAttention over tensors on a GPU: keys are chosen there by rules, or on the host by maskers.
#include <optional>
#include <string>
#include <vector>

#include <reticle/attention/cuda/sequence.hpp>
#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/base/warning.hpp>
#include <reticle/core/cuda/mask.hpp>
#include <reticle/core/cuda/tensor.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/ops/select_by_rules.hpp>

namespace reticle {

/// How a layer's keys are chosen: by rules, which run on the GPU, or by a mask made on the host.
struct SparseAttention::OnGpu {
  std::vector<Rule> rules;
  Mask mask;
};

SparseAttention::OnGpu SparseAttention::chosen_on_gpu(const AttentionInputs& inputs, SequenceState& state,
                                                      const Context& context) const {
  cuda::validate_on_current_gpu(inputs);
  const Ruled steps = ruled(Stage::generation, inputs.layer, inputs.keys_length(), context);
  std::string why = "maskers choose on the CPU";
  if (inputs.extras.empty()) {
    const bool by_rules = !steps.rules.empty();
    if (inputs.stage == Stage::generation && inputs.queries_length() == 1 && by_rules) return {steps.rules, {}};
    // A dense prompt before steps that follow rules needs no maskers on the host: none of these rules observes the
    // prompt.
    if (!serves(inputs.stage, inputs.layer) && (by_rules || !serves(Stage::generation, inputs.layer)))
      return {{}, Mask::full(inputs.shape())};
    if (!by_rules) why = steps.why;
  }
  warn(why +
       "; keys are copied to it (maskers that say what they choose as rules choose on the GPU, one query at a time)");
  const cuda::HostInputs host(inputs, state.on_gpu().copies(inputs.layer), context);
  Metrics metrics;
  return {{}, build(host.inputs(), std::nullopt, state, context, metrics)};
}

Mask SparseAttention::mask_on_gpu(const AttentionInputs& inputs, SequenceState& state, const Context& context) const {
  const OnGpu chosen = chosen_on_gpu(inputs, state, context);
  if (chosen.rules.empty()) return inputs.causal ? restrict_causal(chosen.mask, context) : chosen.mask;
  const SequenceState::Lease lease(state);
  const Index rows = inputs.batch() * inputs.heads();
  const cuda::KeyLists lists =
      state.on_gpu().decoder(rows, inputs.keys_length(), context.stream).choose(inputs, chosen.rules, context.stream);
  return cuda::mask_of_lists(inputs.shape(), lists, context.stream);
}

Attended SparseAttention::attend_on_gpu(const AttentionInputs& inputs, SequenceState& state,
                                        const AttentionOptions& options, Wanted wanted, const Context& context) const {
  options.validate(inputs);
  const OnGpu chosen = chosen_on_gpu(inputs, state, context);
  Attended attended;
  void* output = wanted.output;
  float* lse = wanted.lse;
  if (output == nullptr) {
    attended.attention = cuda::empty_result(inputs, context.stream);
    output = attended.attention.output.data();
    lse = static_cast<float*>(attended.attention.lse.data());
  }
  if (chosen.rules.empty()) {
    attention_into(inputs, chosen.mask, output, lse, options, context);
    if (wanted.entries) attended.entries = inputs.causal ? causal_nnz(chosen.mask, context) : chosen.mask.nnz();
    if (wanted.mask) attended.mask = inputs.causal ? restrict_causal(chosen.mask, context) : chosen.mask;
    return attended;
  }
  const SequenceState::Lease lease(state);
  const Index rows = inputs.batch() * inputs.heads(), keys = inputs.keys_length();
  cuda::SparseDecoder& decoder = state.on_gpu().decoder(rows, keys, context.stream);
  const cuda::KeyLists lists = decoder.run(inputs, chosen.rules, output, lse, context.stream, options);
  if (wanted.mask) attended.mask = cuda::mask_of_lists(inputs.shape(), lists, context.stream);
  if (!wanted.entries) return attended;
  const std::optional<Index> row_entries = inputs.attention_mask ? std::nullopt : entries_of(chosen.rules, keys);
  attended.entries = row_entries ? rows * *row_entries : cuda::entries_of_lists(lists, rows, context.stream);
  return attended;
}

}  // namespace reticle
