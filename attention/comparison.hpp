// Compares sparse attention with dense attention over the same inputs.
#pragma once

#include <vector>

#include <reticle/attention/executor.hpp>

namespace reticle {

struct Comparison {
  double relative_error = 0;
  std::vector<double> head_relative_error;
  double mean_mass = 0, least_mass = 0;
  std::vector<double> head_mean_mass;
  double dense_seconds = 0;

  static constexpr const char* docs[] = {
      "||dense - sparse|| / ||dense||, Frobenius, over the whole output",
      "the same of each (batch * heads)",
      "share of a row's dense attention mass that the mask covers, mean over the rows",
      "the same, of the row that it covers least",
      "the mean, of each (batch * heads)",
      "time of dense attention"};
};

/// Runs dense attention, and, if the mask is weighted, attention over its support too. Tensors must be on the CPU.
Comparison compare_with_dense(const AttentionInputs& inputs, const Mask& mask, const AttentionResult& sparse,
                              const AttentionOptions& options, const Context& context);

}  // namespace reticle
