// Keeps, for each chunk of queries, the chunks of keys whose means have the largest products with its mean. The
// variants of nano-sparse-attention, sparse-frontier and MInference differ in which chunks are always kept.
#include <algorithm>
#include <limits>
#include <span>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/query_blocks.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::maskers {

struct BlockSparseConfig {
  Index chunk_size = 64;
  Index top_chunks = 16;
  Index sink_chunks = 1;
  Index recent_chunks = 0;

  static constexpr const char* docs[] = {
      "queries and keys per chunk", "chunks of keys kept per chunk of queries",
      "first chunks that are always kept, as part of the budget",
      "chunks up to and including the queries' own that are always kept, as part of the budget"};
  void validate() const {
    require_count(chunk_size, "chunk_size");
    require_count(sink_chunks, "sink_chunks", 0);
    require_count(recent_chunks, "recent_chunks", 0);
    require_count(top_chunks, "top_chunks");
    require(top_chunks >= sink_chunks + recent_chunks, "top_chunks", "must be at least sink_chunks + recent_chunks");
  }
};

class BlockSparse final : public Masker {
 public:
  explicit BlockSparse(const BlockSparseConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    return query_block_mask(
        inputs, config_.chunk_size,
        [&](Index batch, Index head, std::span<std::vector<Run>> runs) {
          const BlockMeans queries = query_block_means(inputs, batch, head, config_.chunk_size);
          const BlockMeans keys = key_block_means(inputs, batch, head, config_.chunk_size, BlockMeans::Divisor::size);
          std::vector<float> scores(static_cast<std::size_t>(keys.blocks));
          std::vector<std::int32_t> chunks;
          for (std::size_t i = 0; i < runs.size(); ++i) {
            const Index query_chunk = queries.first + static_cast<Index>(i);
            keys.score(queries.of(query_chunk), scores);
            const std::span<float> past = std::span(scores).first(static_cast<std::size_t>(query_chunk + 1));
            constexpr float kFirst = std::numeric_limits<float>::infinity();
            std::fill_n(past.begin(), std::min(config_.sink_chunks, query_chunk + 1), kFirst);
            std::fill_n(past.rbegin(), std::min(config_.recent_chunks, query_chunk + 1), kFirst);
            chunks.clear();
            top_k(past, config_.top_chunks, chunks);
            append_blocks(chunks, config_.chunk_size, runs[i]);
          }
        },
        context);
  }

 private:
  BlockSparseConfig config_;
};

RETICLE_REGISTER_MASKER(
    "block_sparse", BlockSparse, BlockSparseConfig,
    {.summary = "Keeps, per chunk of queries, the chunks of keys of the largest mean-by-mean products.",
     .source = "nano-sparse-attention (add local for its window), sparse-frontier (recent_chunks 2), MInference "
               "(sink_chunks 0)",
     .rule =
         "the top_chunks chunks c <= own of largest mean(q) . mean(k), a short last chunk is divided by chunk_size, "
         "too; no key after the query",
     .cost = "O((queries + keys) * head_dim + (queries * keys / chunk_size^2) * head_dim) time per head"});

}  // namespace reticle::maskers
