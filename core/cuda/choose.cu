#include <algorithm>

#include <reticle/core/cuda/check.cuh>
#include <reticle/core/cuda/choose.hpp>
#include <reticle/core/cuda/choose_block.hpp>
#include <reticle/core/cuda/scores.hpp>

namespace reticle::cuda {
namespace {

__global__ void __launch_bounds__(kTopKThreads, 1) choose_kernel(const __grid_constant__ ChooseProblem problem) {
  extern __shared__ __align__(16) unsigned char memory[];
  choose_row(DeviceBlock(), *reinterpret_cast<ChooseShared*>(memory), problem, static_cast<int>(blockIdx.x));
}

}  // namespace

struct KeyChooser::State {
  Index rows, most_keys;
  Buffer scores, p, indices, counts;
  Buffer extra;  // of sampling, while it lasts; then the lists' p
};

KeyChooser::KeyChooser(Index rows, Index most_keys, Stream stream) {
  constexpr Index kMost = 2147483647;
  if (rows < 1 || most_keys < 1 || rows > kMost || most_keys > kMost)
    throw ValueError("choosing keys: for " + std::to_string(rows) + " rows of " + std::to_string(most_keys) +
                     " keys; needed is at least one of each, and fewer than 2^31");
  const std::size_t bytes = static_cast<std::size_t>(rows) * static_cast<std::size_t>(most_keys) * sizeof(float);
  state_ = std::make_shared<const State>(
      State{rows, most_keys, Buffer(bytes, stream), Buffer(bytes, stream), Buffer(bytes, stream),
            Buffer(static_cast<std::size_t>(rows) * sizeof(std::int32_t), stream), Buffer(bytes, stream)});
}

KeyLists KeyChooser::choose(const AttentionInputs& inputs, std::span<const Rule> rules, Stream stream,
                            std::int32_t* counts) const {
  const State& own = *state_;
  const Index rows = inputs.batch() * inputs.heads() * inputs.queries_length(), keys = inputs.keys_length();
  if (rows > own.rows || keys > own.most_keys)
    throw ShapeError("choosing keys: queries " + inputs.queries.describe() + " and keys " + inputs.keys.describe() +
                     "; needed are at most " + std::to_string(own.rows) + " rows of " + std::to_string(own.most_keys) +
                     " keys");
  if (rules.empty() || rules.size() > static_cast<std::size_t>(kMostRules))
    throw ValueError("choosing keys: " + std::to_string(rules.size()) + " rules; needed are 1 to " +
                     std::to_string(kMostRules));
  if (inputs.attention_mask) throw DeviceError("choosing keys: attention masks are not built on a GPU");
  const bool weighted = std::ranges::any_of(rules, &Rule::samples);
  if (counts == nullptr) counts = own.counts.as<std::int32_t>();
  const KeyLists lists{own.indices.as<std::int32_t>(), counts, weighted ? own.extra.as<float>() : nullptr, keys};
  if (rows == 0 || keys == 0) return lists;
  ChooseProblem problem;
  if (std::ranges::any_of(rules, &Rule::scores)) {
    dot_scores(inputs, own.scores.as<float>(), stream);
    problem.scores = own.scores.as<float>();
  }
  problem.heads = static_cast<int>(inputs.heads());
  problem.rows = static_cast<int>(inputs.queries_length());
  problem.key_count = static_cast<int>(keys);
  problem.causal = inputs.causal;
  problem.layer = inputs.layer;
  std::ranges::copy(rules, problem.rules);
  problem.rule_count = static_cast<int>(rules.size());
  problem.p = own.p.as<float>();
  problem.indices = own.indices.as<std::int32_t>();
  problem.counts = counts;
  problem.list_p = weighted ? own.extra.as<float>() : nullptr;
  problem.scratch = own.extra.as<std::int32_t>();
  check(cudaFuncSetAttribute(choose_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(ChooseShared)),
        "choosing keys");
  choose_kernel<<<static_cast<unsigned>(rows), kTopKThreads, sizeof(ChooseShared), static_cast<cudaStream_t>(stream)>>>(
      problem);
  check_launch("choosing keys");
  return lists;
}

}  // namespace reticle::cuda
