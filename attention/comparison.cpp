#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include <reticle/attention/comparison.hpp>
#include <reticle/core/base/stopwatch.hpp>
#include <reticle/core/mask/combine.hpp>

namespace reticle {
namespace {

double norm(std::span<const double> squares) {
  double sum = 0;
  for (const double square : squares) sum += square;
  return std::sqrt(sum);
}

}  // namespace

Comparison compare_with_dense(const AttentionInputs& inputs, const Mask& mask, const AttentionResult& sparse,
                              const AttentionOptions& options, const Context& context) {
  Comparison comparison;
  AttentionOptions plain = options;
  plain.weights = false;
  const Stopwatch watch;
  const AttentionResult dense = attention(inputs, Mask::full(inputs.shape()), plain, context);
  comparison.dense_seconds = watch.seconds();

  const auto heads = static_cast<std::size_t>(inputs.batch() * inputs.heads());
  const auto rows = static_cast<std::size_t>(inputs.queries_length());
  const auto per_head = rows * static_cast<std::size_t>(inputs.values.size(3));
  std::vector<double> error(heads, 0), size(heads, 0);
  dispatch_float(inputs.queries.dtype, "output", [&]<class T>() {
    const auto* ours = static_cast<const T*>(sparse.output.view().data);
    const auto* truth = static_cast<const T*>(dense.output.view().data);
    for (std::size_t i = 0; i < heads * per_head; ++i) {
      const double difference = static_cast<double>(to_float(truth[i])) - static_cast<double>(to_float(ours[i]));
      error[i / per_head] += difference * difference;
      size[i / per_head] += static_cast<double>(to_float(truth[i])) * static_cast<double>(to_float(truth[i]));
    }
  });
  const auto ratio = [](double numerator, double denominator) {
    return denominator > 0 ? numerator / denominator : numerator;
  };
  comparison.relative_error = ratio(norm(error), norm(size));
  for (std::size_t head = 0; head < heads; ++head)
    comparison.head_relative_error.push_back(ratio(std::sqrt(error[head]), std::sqrt(size[head])));

  // The attention mass of a set of keys is exp(LSE over the set - LSE over all keys), both without sampling weights and
  // sinks.
  plain.sink_logits = {};
  const bool reusable = options.sink_logits.empty();
  const AttentionResult covered =
      reusable && !mask.weighted() ? AttentionResult() : attention(inputs, support(mask, context), plain, context);
  const AttentionResult all =
      reusable ? AttentionResult() : attention(inputs, Mask::full(inputs.shape()), plain, context);
  const auto lse_covered = (reusable && !mask.weighted() ? sparse : covered).lse.span<float>();
  const auto lse_all = (reusable ? dense : all).lse.span<float>();
  comparison.least_mass = 1;
  for (std::size_t head = 0; head < heads; ++head) {
    double sum = 0;
    for (std::size_t row = head * rows; row < (head + 1) * rows; ++row) {
      const bool nothing_to_cover = lse_all[row] == -std::numeric_limits<float>::infinity();
      const double mass = nothing_to_cover ? 1.0 : std::exp(static_cast<double>(lse_covered[row]) - lse_all[row]);
      comparison.least_mass = std::min(comparison.least_mass, mass);
      sum += mass;
    }
    comparison.head_mean_mass.push_back(rows == 0 ? 1 : sum / static_cast<double>(rows));
    comparison.mean_mass += comparison.head_mean_mass.back() / static_cast<double>(heads);
  }
  return comparison;
}

}  // namespace reticle
