#include <algorithm>
#include <cmath>
#include <span>
#include <string>

#include <reticle/attention/llama/loss.hpp>
#include <reticle/core/base/error.hpp>

namespace reticle {

double cross_entropy(std::span<const float> logits, std::int32_t token) {
  if (token < 0 || static_cast<std::size_t>(token) >= logits.size())
    throw ValueError("cross_entropy: token " + std::to_string(token) + " has no logit; there are " +
                     std::to_string(logits.size()) + " logits");
  const float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - static_cast<double>(max));
  return static_cast<double>(max) + std::log(sum) - static_cast<double>(logits[static_cast<std::size_t>(token)]);
}

double loss_of_last(const TensorView& logits, std::span<const std::int32_t> tokens, Index output_length) {
  require_rank(logits, 2, "loss: logits");
  const auto count = static_cast<Index>(tokens.size());
  if (logits.size(0) != count || logits.dtype != DType::f32 || output_length < 1 || output_length >= count)
    throw ShapeError("loss: the last " + std::to_string(output_length) + " of " + std::to_string(count) +
                     " tokens by logits " + logits.describe() +
                     "; expected F32 logits of every token, and at least one token before those that count");
  double sum = 0;
  for (Index i = count - output_length; i < count; ++i) {
    const std::int32_t target = tokens[static_cast<std::size_t>(i)];
    if (target < 0 || target >= logits.size(1))
      throw ValueError("loss: token " + std::to_string(i) + " is " + std::to_string(target) + "; there are " +
                       std::to_string(logits.size(1)) + " logits");
    sum += cross_entropy({logits.at<float>(i - 1, 0), static_cast<std::size_t>(logits.size(1))}, target);
  }
  return sum / static_cast<double>(output_length);
}

}  // namespace reticle
