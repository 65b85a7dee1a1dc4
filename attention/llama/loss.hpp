// The loss of a language model's predictions.
#pragma once

#include <cstdint>
#include <span>

#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle {

/// Cross-entropy of one token, in nats: -log(softmax(logits)[token]), over logits of the vocabulary. ValueError for a
/// token outside of it.
RETICLE_API double cross_entropy(std::span<const float> logits, std::int32_t token);

/// Mean cross-entropy, in nats, of the last `output_length` of `tokens`, each predicted from the logits (tokens,
/// vocab_size) F32 of the token before it: the loss of nano-sparse-attention. ShapeError unless output_length is in [1,
/// tokens).
RETICLE_API double loss_of_last(const TensorView& logits, std::span<const std::int32_t> tokens, Index output_length);

}  // namespace reticle
