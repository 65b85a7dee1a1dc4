#include <algorithm>
#include <string>

#include <reticle/core/cuda/choose.hpp>
#include <reticle/core/cuda/choose_block.hpp>
#include <reticle/core/cuda/hash.hpp>
#include <reticle/core/cuda/kept_keys.cuh>
#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/lsh.hpp>
#include <reticle/core/cuda/page_block.hpp>
#include <reticle/core/cuda/quantiser.hpp>
#include <reticle/core/cuda/reachable_block.hpp>
#include <reticle/core/cuda/scores.hpp>
#include <reticle/core/cuda/tensors.cuh>

namespace reticle::cuda {
namespace {

struct ChooseRow {
  static constexpr int kThreads = kTopKThreads, kBlocks = 1;
  using Shared = ChooseShared;
  ChooseProblem problem;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index row) const {
    choose_row(block, shared, problem, static_cast<int>(row));
  }
};

struct MarkReachable {
  static constexpr int kThreads = kReachableThreads;
  ReachableProblem problem;
  int parts;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Index number) const {
    const auto i = static_cast<int>(number);
    cuda::mark_reachable(block, problem, i / parts, i % parts);
  }
};

template <class T>
struct BoundPages {
  static constexpr int kThreads = kPageThreads;
  PageBoundsProblem problem;
  int first_page, new_pages;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Index number) const {
    const int matrix = static_cast<int>(number) / new_pages, page = static_cast<int>(number) % new_pages;
    bound_page<T>(block, problem, matrix / problem.kv_heads, matrix % problem.kv_heads, first_page + page);
  }
};

template <class T>
struct ScorePages {
  static constexpr int kThreads = kPageThreads;
  using Shared = float[kMaxHeadDim];
  PageScoreProblem problem;
  int parts;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& query, Index number) const {
    const auto i = static_cast<int>(number);
    cuda::score_pages<T>(block, query, problem, i / parts, i % parts);
  }
};

/// Bounds of one layer's pages, with space for all pages.
struct LayerPages : KeptKeys {
  Buffer bounds;
};

}  // namespace

struct KeyChooser::State {
  Index rows, most_keys;
  Buffer scores, p, indices, counts;
  Buffer extra;  // used by sampling; then holds the lists' p
  Buffer page_scores{}, reachable{};
  KeptByLayer<LayerPages> pages{};
  HashScorer hashes{};
  QuantisedScorer quantised{};
  CollisionScorer collisions{};

  /// Bounds the pages of new keys, scores all pages, and returns their number.
  Index score_pages(const AttentionInputs& inputs, const Rule& rule, const std::uint8_t* reachable_keys, Stream stream);
  /// Marks which keys are reachable, (b * hkv, keys); null without an attention mask.
  const std::uint8_t* mark_reachable(const AttentionInputs& inputs, Stream stream);
};

const std::uint8_t* KeyChooser::State::mark_reachable(const AttentionInputs& inputs, Stream stream) {
  if (!inputs.attention_mask) return nullptr;
  const Index keys = inputs.keys_length(), matrices = inputs.batch() * inputs.kv_heads();
  const Index parts = (keys + kReachableThreads - 1) / kReachableThreads;
  if (reachable.bytes() < static_cast<std::size_t>(matrices * keys))
    reachable = Buffer(static_cast<std::size_t>(matrices * most_keys), stream);
  launch(MarkReachable{ReachableProblem::of(inputs, reachable.as<std::uint8_t>()), static_cast<int>(parts)},
         matrices * parts, stream, "reading the attention mask");
  return reachable.as<std::uint8_t>();
}

Index KeyChooser::State::score_pages(const AttentionInputs& inputs, const Rule& rule,
                                     const std::uint8_t* reachable_keys, Stream stream) {
  require_aligned(inputs.queries, "queries");
  require_aligned(inputs.keys, "keys");
  if (inputs.head_dim() > kMaxHeadDim || inputs.keys.dtype != inputs.queries.dtype)
    throw DeviceError("choosing pages: queries " + inputs.queries.describe() + " and keys " + inputs.keys.describe() +
                      "; expected one dtype and a head_dim of at most " + std::to_string(kMaxHeadDim));
  const Index page_size = rule.page_size, keys = inputs.keys_length(),
              capacity = (most_keys + page_size - 1) / page_size;
  const Index matrices = inputs.batch() * inputs.kv_heads(), count = (keys + page_size - 1) / page_size;
  const auto room = [](Index floats) { return static_cast<std::size_t>(floats) * sizeof(float); };
  LayerPages& layer = pages.follow(inputs, rule.masker);
  if (layer.seen == 0) layer.bounds = Buffer(room(matrices * capacity * 2 * inputs.head_dim()), stream);
  if (page_scores.bytes() < room(rows * capacity)) page_scores = Buffer(room(rows * capacity), stream);
  PageScoreProblem problem;
  problem.pages.keys = inputs.keys.data;
  problem.pages.key_strides = strides_of(inputs.keys);
  problem.pages.kv_heads = static_cast<int>(inputs.kv_heads());
  problem.pages.key_count = static_cast<int>(keys);
  problem.pages.head_dim = static_cast<int>(inputs.head_dim());
  problem.pages.page_size = static_cast<int>(page_size);
  problem.pages.capacity = static_cast<int>(capacity);
  problem.pages.bounds = layer.bounds.as<float>();
  problem.pages.reachable = reachable_keys;
  problem.queries = inputs.queries.data;
  problem.query_strides = strides_of(inputs.queries);
  problem.heads = static_cast<int>(inputs.heads());
  problem.rows = static_cast<int>(inputs.queries_length());
  problem.page_count = static_cast<int>(count);
  problem.scores = page_scores.as<float>();
  const Index parts = (count + kPagesPerBlock - 1) / kPagesPerBlock;
  const Index scored_rows = inputs.batch() * inputs.heads() * inputs.queries_length();
  // The page that contains the last keys seen is bounded again, since keys may have been added to it.
  const Index first = layer.seen / page_size;
  dispatch_float(inputs.queries.dtype, "queries", [&]<class T>() {
    if (first < count)
      launch(BoundPages<T>{problem.pages, static_cast<int>(first), static_cast<int>(count - first)},
             (count - first) * matrices, stream, "bounding pages");
    launch(ScorePages<T>{problem, static_cast<int>(parts)}, parts * scored_rows, stream, "scoring pages");
  });
  layer.seen = keys;
  return count;
}

KeyChooser::KeyChooser(Index rows, Index most_keys, Stream stream) {
  constexpr Index kMaxCount = 2147483647;
  if (rows < 1 || most_keys < 1 || rows > kMaxCount || most_keys > kMaxCount)
    throw ValueError("choosing keys: for " + std::to_string(rows) + " rows of " + std::to_string(most_keys) +
                     " keys; expected at least one of each, and fewer than 2^31");
  const std::size_t bytes = static_cast<std::size_t>(rows) * static_cast<std::size_t>(most_keys) * sizeof(float);
  state_ = std::make_shared<State>(
      State{rows, most_keys, Buffer(bytes, stream), Buffer(bytes, stream), Buffer(bytes, stream),
            Buffer(static_cast<std::size_t>(rows) * sizeof(std::int32_t), stream), Buffer(bytes, stream)});
}

KeyLists KeyChooser::choose(const AttentionInputs& inputs, std::span<const Rule> rules, Stream stream,
                            std::int32_t* counts, const AttentionInputs* fitted) const {
  validate_on_current_gpu(inputs);
  const AttentionInputs& scored = fitted == nullptr ? inputs : *fitted;
  State& state = *state_;
  const Index rows = inputs.batch() * inputs.heads() * inputs.queries_length(), keys = inputs.keys_length();
  if (rows > state.rows || keys > state.most_keys)
    throw ShapeError("choosing keys: queries " + inputs.queries.describe() + " and keys " + inputs.keys.describe() +
                     "; expected at most " + std::to_string(state.rows) + " rows of " +
                     std::to_string(state.most_keys) + " keys");
  if (rules.empty() || rules.size() > static_cast<std::size_t>(kMaxRules))
    throw ValueError("choosing keys: " + std::to_string(rules.size()) + " rules; expected 1 to " +
                     std::to_string(kMaxRules));
  if (inputs.attention_mask && inputs.attention_mask->dtype != DType::f32)
    throw DeviceError("attention_mask: " + inputs.attention_mask->describe() + "; on a GPU it is F32");
  const bool weighted = std::ranges::any_of(rules, &Rule::weighs);
  if (counts == nullptr) counts = state.counts.as<std::int32_t>();
  const KeyLists lists{state.indices.as<std::int32_t>(), counts, weighted ? state.extra.as<float>() : nullptr, keys};
  if (rows == 0 || keys == 0) return lists;
  ChooseProblem problem;
  if (std::ranges::any_of(rules, &Rule::scores)) {
    dot_scores(scored, state.scores.as<float>(), stream);
    problem.scores = state.scores.as<float>();
  }
  const bool summarises = std::ranges::any_of(rules, &Rule::summarises);
  const std::uint8_t* const reachable_keys = summarises ? state.mark_reachable(inputs, stream) : nullptr;
  std::ranges::copy(rules, problem.rules);
  problem.rule_count = static_cast<int>(rules.size());
  for (Rule& rule : problem.rules) {
    if (rule.codes()) {
      if (problem.code_scores != nullptr)
        throw ValueError("choosing keys: two rules go by codes; expected at most one");
      if (rule.kind == Rule::Kind::hashed)
        problem.code_scores = state.hashes.score(inputs, rule, state.rows, state.most_keys, stream);
      else if (rule.kind == Rule::Kind::quantised)
        problem.code_scores = state.quantised.score(inputs, rule, state.rows, state.most_keys, reachable_keys, stream);
      else
        problem.code_scores = state.collisions.score(inputs, rule, state.rows, state.most_keys, reachable_keys, stream);
    }
    if (rule.kind != Rule::Kind::pages) continue;
    if (problem.page_count > 0) throw ValueError("choosing keys: two rules keep pages; expected at most one");
    rule.page_size = std::clamp<Index>(rule.page_size, 1, state.most_keys);
    problem.page_count = static_cast<int>(state.score_pages(scored, rule, reachable_keys, stream));
    problem.page_scores = state.page_scores.as<float>();
  }
  problem.heads = static_cast<int>(inputs.heads());
  problem.rows = static_cast<int>(inputs.queries_length());
  problem.key_count = static_cast<int>(keys);
  problem.causal = inputs.causal;
  problem.bias = BiasView::of(inputs.attention_mask);
  problem.layer = inputs.layer;
  problem.p = state.p.as<float>();
  problem.indices = state.indices.as<std::int32_t>();
  problem.counts = counts;
  problem.list_p = weighted ? state.extra.as<float>() : nullptr;
  problem.scratch = state.extra.as<std::int32_t>();
  launch(ChooseRow{problem}, rows, stream, "choosing keys");
  return lists;
}

void KeyChooser::reset() const {
  state_->pages.reset();
  state_->hashes.reset();
  state_->quantised.reset();
  state_->collisions.reset();
}

}  // namespace reticle::cuda
