// Each query keeps its own block of keys and the blocks whose means have the largest products with it. MoBA (Lu et al.
// 2025).
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/pooled_keys.hpp>
#include <reticle/core/ops/query_blocks.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::maskers {

struct MobaConfig {
  Index block_size = 512;
  Index top_k = 3;

  static constexpr const char* docs[] = {"keys per block", "blocks kept per query, its own included"};
  void validate() const {
    require_count(block_size, "block_size");
    require_count(top_k, "top_k");
  }
};

class Moba final : public Masker {
 public:
  explicit Moba(const MobaConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState& state, const Context& context) const override {
    PooledKeys& blocks_of_keys = state.get<PooledKeys>(*this);
    blocks_of_keys.update(inputs, config_.block_size, config_.block_size);
    return key_block_mask(
        inputs, config_.block_size, inputs.heads(),
        [&](RowId row, std::vector<std::int32_t>& blocks) {
          const Index query_block = inputs.position(row.query) / config_.block_size;
          std::vector<float> query(static_cast<std::size_t>(inputs.head_dim())),
              scores(static_cast<std::size_t>(query_block));
          load_row(head_matrix(inputs.queries, row.batch, row.head), row.query, 1, query);
          blocks_of_keys.score(query, row.batch, inputs.kv_head(row.head), query_block, scores);
          top_k(scores, config_.top_k - 1, blocks);
          blocks.push_back(static_cast<std::int32_t>(query_block));
        },
        context);
  }

 private:
  MobaConfig config_;
};

RETICLE_REGISTER_MASKER("moba", Moba, MobaConfig,
                        {.summary = "Keeps, per query, its own block of keys and those of the highest mean products.",
                         .source = "MoBA (Lu et al. 2025)",
                         .rule = "the own block and the top_k - 1 blocks before it of largest q . mean(k)",
                         .cost = "O(queries * keys / block_size * head_dim) time per head; a decode step averages new "
                                 "keys only"});

}  // namespace reticle::maskers
