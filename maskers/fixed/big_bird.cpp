// Keeps the first blocks of keys, a window of blocks and a few random blocks; the first queries see everything. BigBird
// (Zaheer et al. 2020).
#include <algorithm>
#include <span>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/query_blocks.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::maskers {

struct BigBirdConfig {
  Index block_size = 64;
  Index global_blocks = 2;
  Index window_blocks = 3;
  Index random_blocks = 3;
  std::uint64_t seed = 0;

  static constexpr const char* docs[] = {"queries and keys per block",
                                         "first blocks, seen by all queries and seeing all keys",
                                         "blocks around the queries' own; causal inputs keep the half up to the own",
                                         "further blocks drawn for each block of queries, per head",
                                         "random seed of the blocks, varied by layer and head"};
  void validate() const {
    require_count(block_size, "block_size");
    require_count(global_blocks, "global_blocks", 0);
    require_count(window_blocks, "window_blocks", 0);
    require_count(random_blocks, "random_blocks", 0);
  }
};

class BigBird final : public Masker {
 public:
  explicit BigBird(const BigBirdConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    const Index size = config_.block_size, keys = inputs.keys_length();
    const QueryBlocks blocks(inputs, size);
    MaskShape shape = inputs.shape();
    shape.shared_batch = true;
    shape.shared_heads = config_.random_blocks == 0;
    std::vector<std::vector<Run>> chosen(
        static_cast<std::size_t>((shape.shared_heads ? 1 : shape.heads) * blocks.count));
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      const auto n = static_cast<Index>(i);
      const std::vector<std::int32_t> kept = choose(blocks.first + n % blocks.count, n / blocks.count, inputs.layer,
                                                    inputs.causal, (keys + size - 1) / size);
      append_blocks(kept, size, chosen[i]);
    }
    return Mask::from_runs(
        shape,
        [&](RowId row, FunctionRef<void(Run)> emit) {
          const Index position = inputs.position(row.query);
          if (position < 0) return;
          const Index head_offset = shape.shared_heads ? 0 : row.head * blocks.count;
          for (const Run& run : chosen[static_cast<std::size_t>(head_offset + position / size - blocks.first)])
            emit(run);
        },
        context);
  }

 private:
  /// The ascending blocks of keys for one block of queries.
  std::vector<std::int32_t> choose(Index query_block, Index head, int layer, bool causal, Index blocks) const {
    std::vector<Run> fixed;
    const Index end = causal ? query_block + 1 : blocks, half = config_.window_blocks / 2;
    const auto to_int32 = [](Index i) { return static_cast<std::int32_t>(i); };
    const Run global{0, to_int32(query_block < config_.global_blocks ? end : std::min(config_.global_blocks, end)), 1};
    const bool no_window = config_.window_blocks == 0;
    const Run window{
        to_int32(no_window ? 0 : std::max<Index>(0, query_block - half)),
        to_int32(no_window ? 0 : std::min(end, query_block + std::max<Index>(1, config_.window_blocks - half))), 1};
    const auto keep = [&](Run run) { fixed.push_back(run); };
    const auto row = [](const Run& run) { return std::span(&run, run.begin < run.end ? 1 : 0); };
    combine_rows<row_op::Max>(row(global), row(window), keep);

    const Gaps others(fixed, end);
    std::vector<std::int32_t> kept;
    Philox random(config_.seed, static_cast<std::uint32_t>(layer), 0, static_cast<std::uint32_t>(head),
                  static_cast<std::uint32_t>(query_block));
    sample_without_replacement(others.size(), config_.random_blocks, random, kept);
    others.to_positions(kept);
    for (const Run& run : fixed) {
      for (std::int32_t block = run.begin; block < run.end; ++block) kept.push_back(block);
    }
    std::sort(kept.begin(), kept.end());
    return kept;
  }

  BigBirdConfig config_;
};

RETICLE_REGISTER_MASKER("big_bird", BigBird, BigBirdConfig,
                        {.summary = "Keeps the first blocks, a window of blocks and a few random ones.",
                         .source = "BigBird (Zaheer et al. 2020)",
                         .rule = "per block of queries: global_blocks first blocks, window_blocks around the own, "
                                 "random_blocks others; everything for the first global_blocks of queries",
                         .cost = "O(queries / block_size * (global + window + random)) per head"});

}  // namespace reticle::maskers
