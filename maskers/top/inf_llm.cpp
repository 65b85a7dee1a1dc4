// Keeps the first keys, a sliding window, and a few of the blocks between them. Blocks are found by representative
// keys, those that received most attention while they were in the window. InfLLM (Xiao et al. 2024), as MInference
// ships it.
#include <algorithm>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/observed_attention.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::maskers {

struct InfLlmConfig {
  Index block_size = 128;
  Index n_init = 128;
  Index n_local = 4096;
  Index top_k = 16;
  Index repr_top_k = 4;
  Index exc_block_size = 512;

  static constexpr const char* docs[] = {
      "keys per block of the memory",
      "first keys, always kept",
      "keys up to and including the query's own, always kept",
      "blocks kept per chunk of queries",
      "keys whose mean represents a block: those that gathered most attention while they were in the window",
      "queries that choose their blocks together at prefill"};
  void validate() const {
    require_count(block_size, "block_size");
    require_count(n_init, "n_init", 0);
    require_count(n_local, "n_local");
    require_count(top_k, "top_k", 0);
    require_count(repr_top_k, "repr_top_k");
    require_count(exc_block_size, "exc_block_size");
  }
};

/// The state of one KV head.
struct InfLlmHead {
  std::vector<float> local_score;      // per key: attention received inside the window
  std::vector<float> representatives;  // (blocks that left the window, d)
  Index scored = 0;                    // queries before this position are counted in local_score
};

struct InfLlmState {
  SeenKeys seen;
  std::vector<InfLlmHead> heads;  // per (batch, KV head)

  void truncate(Index keys) {
    for (const InfLlmHead& head : heads) {
      if (head.scored > keys)
        throw CannotFollow("queries from position " + std::to_string(keys) +
                           " on have given keys their attention, which is not taken back");
    }
    seen.truncate(keys);
  }
  void select(std::span<const Index> rows) {
    select_rows(heads, rows, seen.batch());
    seen.select(rows);
  }
};

class InfLlm final : public Masker {
 public:
  explicit InfLlm(const InfLlmConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState& layer_state,
              const Context& context) const override {
    InfLlmState& state = layer_state.get<InfLlmState>(*this);
    state.seen.continue_with(inputs);
    const Index kv_heads = inputs.kv_heads(), count = inputs.batch() * kv_heads;
    state.heads.resize(static_cast<std::size_t>(count));
    const std::vector<Chunk> chunks = chunks_of(inputs);
    std::vector<std::vector<Run>> memory(static_cast<std::size_t>(count) * chunks.size());
    context.for_each_chunk(count, 1, [&](Index, Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        InfLlmHead& head = state.heads[static_cast<std::size_t>(i)];
        head.local_score.resize(static_cast<std::size_t>(inputs.keys_length()), 0.0f);
        for (std::size_t c = 0; c < chunks.size(); ++c) {
          memory[static_cast<std::size_t>(i) * chunks.size() + c] =
              chunk_runs(inputs, {i / kv_heads, i % kv_heads, 0}, chunks[c], head);
          add_attention(inputs, {i / kv_heads, i % kv_heads, 0}, chunks[c], head);
        }
      }
    });
    state.seen.finish(inputs);
    return Mask::from_runs(
        inputs.shape(),
        [&](RowId row, FunctionRef<void(Run)> emit) {
          const Index position = inputs.position(row.query);
          if (position < 0) return;
          const auto chunk = static_cast<std::size_t>(position / config_.exc_block_size -
                                                      inputs.position(chunks.front().first) / config_.exc_block_size);
          for (Run run :
               memory[static_cast<std::size_t>(row.batch * kv_heads + inputs.kv_head(row.head)) * chunks.size() +
                      chunk]) {
            run.end = std::min(run.end, static_cast<std::int32_t>(position + 1));
            if (run.begin < run.end) emit(run);
          }
        },
        context);
  }

 private:
  struct Chunk {
    Index first, end;  // queries
  };

  std::vector<Chunk> chunks_of(const AttentionInputs& inputs) const {
    std::vector<Chunk> chunks;
    for (Index query = std::max<Index>(0, -inputs.position(0)); query < inputs.queries_length();) {
      const Index position = inputs.position(query);
      const Index left = config_.exc_block_size - position % config_.exc_block_size;
      chunks.push_back({query, std::min(inputs.queries_length(), query + left)});
      query = chunks.back().end;
    }
    return chunks;
  }

  /// The number of blocks whose keys have all left the window of a query at this position.
  Index blocks_behind(Index position) const {
    return std::max<Index>(0, position + 1 - config_.n_local - config_.n_init) / config_.block_size;
  }
  Index start_of(Index block) const { return config_.n_init + block * config_.block_size; }

  /// The first keys, the chosen blocks, and all keys after the blocks that left the window of the chunk's first query.
  std::vector<Run> chunk_runs(const AttentionInputs& inputs, RowId row, const Chunk& chunk, InfLlmHead& head) const {
    const Index behind = blocks_behind(inputs.position(chunk.first));
    represent(inputs, row, behind, head);
    std::vector<std::int32_t> blocks;
    if (behind > 0) {
      std::vector<float> mean(static_cast<std::size_t>(inputs.head_dim()), 0.0f), query(mean.size());
      for (Index h = row.head * inputs.group(); h < (row.head + 1) * inputs.group(); ++h) {
        for (Index q = chunk.first; q < chunk.end; ++q) {
          load_row(head_matrix(inputs.queries, row.batch, h), q, 1 / static_cast<float>(chunk.end - chunk.first),
                   query);
          for (std::size_t c = 0; c < mean.size(); ++c) mean[c] += query[c];
        }
      }
      std::vector<float> scores(static_cast<std::size_t>(behind));
      dot(mean.data(), 1, TensorView(head.representatives.data(), DType::f32, {behind, inputs.head_dim()}),
          scores.data(), behind);
      top_k(scores, config_.top_k, blocks);
    }
    std::vector<Run> runs{{0, static_cast<std::int32_t>(std::min(config_.n_init, kMaxColumns)), 1}};
    const auto append = [&](Index begin, Index end) {
      if (runs.back().end == begin) {
        runs.back().end = static_cast<std::int32_t>(end);
      } else {
        runs.push_back({static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end), 1});
      }
    };
    for (const std::int32_t block : blocks) append(start_of(block), start_of(block + 1));
    if (start_of(behind) < kMaxColumns) append(start_of(behind), kMaxColumns);
    return runs;
  }

  /// Computes the representatives of blocks that have left the window: the mean of the keys that received most
  /// attention.
  void represent(const AttentionInputs& inputs, RowId row, Index behind, InfLlmHead& head) const {
    const auto d = static_cast<std::size_t>(inputs.head_dim());
    const TensorView keys = head_matrix(inputs.keys, row.batch, row.head);
    const ReachableKeys reachable(inputs, row.batch, row.head);
    std::vector<float> key(d), score;
    std::vector<std::int32_t> best;
    for (auto block = static_cast<Index>(head.representatives.size() / d); block < behind; ++block) {
      best.clear();
      score.resize(static_cast<std::size_t>(config_.block_size));
      for (std::size_t i = 0; i < score.size(); ++i) {
        const Index position = start_of(block) + static_cast<Index>(i);
        score[i] = reachable(position) ? head.local_score[static_cast<std::size_t>(position)]
                                       : -std::numeric_limits<float>::infinity();
      }
      top_k(score, config_.repr_top_k, best);
      std::vector<float> mean(d, 0.0f);
      for (const std::int32_t i : best) {
        load_row(keys, start_of(block) + i, 1 / static_cast<float>(best.size()), key);
        for (std::size_t c = 0; c < d; ++c) mean[c] += key[c];
      }
      head.representatives.insert(head.representatives.end(), mean.begin(), mean.end());
    }
  }

  /// Adds the attention of the chunk's queries within the window to the scores of the keys there, once per query.
  void add_attention(const AttentionInputs& inputs, RowId row, const Chunk& chunk, InfLlmHead& head) const {
    std::vector<std::int32_t> window;
    std::vector<float> probabilities;
    for (row.query = chunk.first; row.query < chunk.end; ++row.query) {
      const Index position = inputs.position(row.query);
      if (position < head.scored) continue;
      window.clear();
      for (Index key = std::max<Index>(0, position + 1 - config_.n_local); key <= position; ++key)
        window.push_back(static_cast<std::int32_t>(key));
      for (Index h = row.head * inputs.group(); h < (row.head + 1) * inputs.group(); ++h) {
        attend_to(inputs, {row.batch, h, row.query}, window, probabilities);
        for (std::size_t i = 0; i < window.size(); ++i)
          head.local_score[static_cast<std::size_t>(window[i])] += probabilities[i];
      }
      head.scored = position + 1;
    }
  }

  InfLlmConfig config_;
};

RETICLE_REGISTER_MASKER(
    "inf_llm", InfLlm, InfLlmConfig,
    {.summary = "Keeps the first keys, a sliding window, and the blocks between whose representatives score highest.",
     .source = "InfLLM (Xiao et al. 2024); MInference (inf_llm)",
     .rule = "keys [0, n_init), all keys not yet in a block that left the window of n_local, and the top_k blocks of "
             "largest mean(q) . representative, mean over a chunk of exc_block_size queries and the heads of a KV "
             "head; a representative is the mean of the repr_top_k keys of most attention received in the window",
     .cost = "O(queries * n_local * head_dim) time per head; a decode step O(n_local + keys / block_size) * head_dim"});

}  // namespace reticle::maskers
