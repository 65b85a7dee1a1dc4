#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>

#include <reticle/attention/inference_handler.hpp>
#include <reticle/core/mask/combine.hpp>

namespace reticle {

void StageRecord::add(double entries_of_call, double visible_to_it) {
  entries += entries_of_call;
  visible += visible_to_it;
  sparsity.push_back(visible_to_it > 0 ? 1 - entries_of_call / visible_to_it : 0);
}

double StageRecord::mean_sparsity() const {
  return sparsity.empty()
             ? 0
             : std::accumulate(sparsity.begin(), sparsity.end(), 0.0) / static_cast<double>(sparsity.size());
}

double StageRecord::density() const { return visible > 0 ? entries / visible : 1; }

void StageRecord::merge(const StageRecord& other) {
  sparsity.insert(sparsity.end(), other.sparsity.begin(), other.sparsity.end());
  masks.insert(masks.end(), other.masks.begin(), other.masks.end());
  entries += other.entries;
  visible += other.visible;
}

Mask InferenceHandler::mask(const AttentionInputs& inputs, InferenceState& state, const Context& context) const {
  AttentionInputs causal = inputs;
  causal.causal = true;
  Mask mask = sparse_.mask(causal, state.maskers, context);
  record(causal, mask.nnz(context), mask, state, context);  // the mask's entries are causal
  return mask;
}

void InferenceHandler::record(const AttentionInputs& inputs, Index entries, const std::optional<Mask>& mask,
                              InferenceState& state, const Context& context) const {
  StageRecord& record = state.record(inputs.stage);
  const Index visible = causal_nnz(Mask::full(inputs.shape()), context);
  record.add(static_cast<double>(entries), static_cast<double>(visible));
  if (keep_masks_ && mask) record.masks.push_back({inputs.layer, *mask});
}

Attended InferenceHandler::attended(const AttentionInputs& inputs, InferenceState& state,
                                    const AttentionOptions& options, Wanted wanted, const Context& context) const {
  AttentionInputs causal = inputs;
  causal.causal = true;
  wanted.mask = keep_masks_;
  wanted.entries = true;
  Attended found = sparse_.attend(causal, state.maskers, options, wanted, context);
  record(causal, *found.entries, found.mask, state, context);
  return found;
}

AttentionResult InferenceHandler::attend(const AttentionInputs& inputs, InferenceState& state,
                                         const AttentionOptions& options, const Context& context) const {
  return attended(inputs, state, options, {}, context).attention;
}

void InferenceHandler::attend_into(const AttentionInputs& inputs, InferenceState& state, void* output, float* lse,
                                   const AttentionOptions& options, const Context& context) const {
  inputs.validate_on(Device::Kind::cuda);
  attended(inputs, state, options, {.output = output, .lse = lse}, context);
}

namespace {

/// The rows of b after those of a, in each (batch, head) of a (b, h, rows, ...) tensor.
Tensor append_rows(const TensorView& a, const TensorView& b) {
  std::vector<Index> shape(a.shape.begin(), a.shape.begin() + a.rank);
  shape[2] += b.size(2);
  Tensor whole(a.dtype, shape);
  const auto bytes_of = [](const TensorView& view) {
    return static_cast<std::size_t>(view.elements() / (view.size(0) * view.size(1)) * size_of(view.dtype));
  };
  auto* to = static_cast<std::byte*>(whole.data());
  for (Index matrix = 0; matrix < a.size(0) * a.size(1); ++matrix) {
    for (const TensorView* part : {&a, &b}) {
      const std::size_t bytes = bytes_of(*part);
      if (bytes > 0)
        std::memcpy(to, static_cast<const std::byte*>(part->data) + static_cast<std::size_t>(matrix) * bytes, bytes);
      to += bytes;
    }
  }
  return whole;
}

}  // namespace

AttentionResult InferenceHandler::forward(const AttentionInputs& sequence, Index output_length, InferenceState& state,
                                          const AttentionOptions& options, const Context& context) const {
  sequence.validate_on(Device::Kind::cpu);
  const Index length = sequence.queries_length();
  if (output_length < 0 || output_length >= std::max<Index>(1, length) || sequence.keys_length() != length)
    throw ShapeError("inference handler: an output of " + std::to_string(output_length) + " of " +
                     std::to_string(length) + " queries and " + std::to_string(sequence.keys_length()) +
                     " keys; expected as many keys as queries, and at least one of them for the prompt");
  AttentionInputs part = sequence.rows(0, length - output_length);
  part.stage = Stage::prefill;
  AttentionResult prompt = attend(part, state, options, context);
  if (output_length == 0) return prompt;
  part = sequence.rows(length - output_length, length);
  part.stage = Stage::generation;
  const AttentionResult generated = attend(part, state, options, context);
  return {append_rows(prompt.output, generated.output), append_rows(prompt.lse, generated.lse), std::nullopt};
}

}  // namespace reticle
