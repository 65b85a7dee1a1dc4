// Keeps the blocks of keys that a file lists for each block of queries, in the form of FlexAttention's BlockMask.
#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/query_blocks.hpp>

namespace reticle::maskers {

struct BlockListConfig {
  std::filesystem::path file;
  Index block_q = 128;
  Index block_k = 128;

  static constexpr const char* docs[] = {
      "kv_num_blocks (1|b, 1|h, query blocks) and kv_indices (..., blocks), or layers.<i>.kv_..., I32 or I64",
      "queries per block", "keys per block"};
  static constexpr std::string_view required[] = {"file"};
  void validate() const {
    require_count(block_q, "block_q");
    require_count(block_k, "block_k");
    require(std::filesystem::is_regular_file(file), "file", "must be a file");
  }
};

class BlockList final : public Masker {
 public:
  explicit BlockList(const BlockListConfig& config) : config_(config), tensors_(config.file) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    const TensorView counts = tensor(inputs, "kv_num_blocks", 3), indices = tensor(inputs, "kv_indices", 4);
    check(inputs, counts, indices);
    MaskShape shape = inputs.shape();
    shape.shared_batch = counts.size(0) == 1;
    shape.shared_heads = counts.size(1) == 1;
    return Mask::from_runs(
        shape,
        [&](RowId row, FunctionRef<void(Run)> emit) {
          const Index position = inputs.position(row.query);
          if (position < 0) return;
          const Index b = shape.shared_batch ? 0 : row.batch, h = shape.shared_heads ? 0 : row.head;
          const Index block = position / config_.block_q, count = read(counts, {b, h, block});
          std::vector<std::int32_t> blocks;
          for (Index i = 0; i < count; ++i)
            blocks.push_back(static_cast<std::int32_t>(read(indices, {b, h, block, i})));
          std::sort(blocks.begin(), blocks.end());
          blocks.erase(std::unique(blocks.begin(), blocks.end()), blocks.end());
          std::vector<Run> runs;
          append_blocks(blocks, config_.block_k, runs);
          for (const Run& run : runs) emit(run);
        },
        context);
  }

 private:
  TensorView tensor(const AttentionInputs& inputs, const std::string& name, int rank) const {
    std::optional<TensorView> found = tensors_.find("layers." + std::to_string(inputs.layer) + "." + name);
    if (!found) found = tensors_.find(name);
    if (!found) throw FormatError(config_.file.string() + ": has no tensor \"" + name + "\"");
    require_rank(*found, rank, name);
    if (found->dtype != DType::i32 && found->dtype != DType::i64)
      throw FormatError(config_.file.string() + ": " + name + " is " + found->describe() + "; expected I32 or I64");
    return *found;
  }

  static Index read(const TensorView& tensor, std::initializer_list<Index> at) {
    Index offset = 0;
    int dim = 0;
    for (const Index i : at) offset += i * tensor.stride(dim++);
    return tensor.dtype == DType::i64 ? static_cast<const Index*>(tensor.data)[offset]
                                      : static_cast<const std::int32_t*>(tensor.data)[offset];
  }

  /// Checks every number in the lists before a row is built.
  void check(const AttentionInputs& inputs, const TensorView& counts, const TensorView& indices) const {
    const Index query_blocks = (inputs.keys_length() + config_.block_q - 1) / config_.block_q;
    const Index key_blocks = (inputs.keys_length() + config_.block_k - 1) / config_.block_k;
    const auto broadcasts = [](Index extent, Index wanted) { return extent == 1 || extent == wanted; };
    if (!broadcasts(counts.size(0), inputs.batch()) || !broadcasts(counts.size(1), inputs.heads()) ||
        counts.size(2) < query_blocks || indices.size(0) != counts.size(0) || indices.size(1) != counts.size(1) ||
        indices.size(2) != counts.size(2))
      throw ShapeError(config_.file.string() + ": kv_num_blocks " + counts.describe() + " and kv_indices " +
                       indices.describe() + " do not list blocks for " + std::to_string(query_blocks) +
                       " blocks of queries, " + std::to_string(inputs.heads()) + " heads");
    for (Index b = 0; b < counts.size(0); ++b) {
      for (Index h = 0; h < counts.size(1); ++h) {
        for (Index q = 0; q < query_blocks; ++q) {
          const Index count = read(counts, {b, h, q});
          bool usable = count >= 0 && count <= indices.size(3);
          for (Index i = 0; usable && i < count; ++i) {
            const Index block = read(indices, {b, h, q, i});
            usable = block >= 0 && block < key_blocks;
          }
          if (!usable)
            throw ShapeError(config_.file.string() + ": the list of (" + std::to_string(b) + ", " + std::to_string(h) +
                             ", " + std::to_string(q) + ") is not one of blocks in [0, " + std::to_string(key_blocks) +
                             ")");
        }
      }
    }
  }

  BlockListConfig config_;
  SafeTensors tensors_;
};

RETICLE_REGISTER_MASKER("block_list", BlockList, BlockListConfig,
                        {.summary = "Keeps the blocks that a file lists for each block of queries.",
                         .source = "FlexAttention's BlockMask (kv_num_blocks, kv_indices)",
                         .rule = "keys of block kv_indices[b, h, position / block_q, i], i < kv_num_blocks[b, h, "
                                 "position / block_q]",
                         .cost = "O(queries + blocks listed) time and memory"});

}  // namespace reticle::maskers
