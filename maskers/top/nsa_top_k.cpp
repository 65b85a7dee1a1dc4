// Keeps whole blocks of keys by the attention that compressed keys receive, the same for all query heads of a KV head.
// Native Sparse Attention (Yuan et al. 2025), its selection branch; native-sparse-attention-triton.
#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/observed_attention.hpp>
#include <reticle/core/ops/pooled_keys.hpp>
#include <reticle/core/ops/query_blocks.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::maskers {

struct NsaTopKConfig {
  Index kernel_size = 32;
  Index kernel_stride = 16;
  Index block_size = 64;
  Index top_k = 16;
  Index init_blocks = 1;
  Index local_blocks = 2;

  static constexpr const char* docs[] = {"keys per compressed key; a multiple of kernel_stride",
                                         "keys between compressed keys",
                                         "keys per block; a multiple of kernel_stride",
                                         "blocks kept per query and KV head, init and local blocks among them",
                                         "first blocks that are always kept",
                                         "blocks up to and including the query's own that are always kept"};
  void validate() const {
    require_count(kernel_stride, "kernel_stride");
    require_count(kernel_size, "kernel_size");
    require(kernel_size % kernel_stride == 0, "kernel_size", "must be a multiple of kernel_stride");
    require_count(block_size, "block_size");
    require(block_size % kernel_stride == 0, "block_size", "must be a multiple of kernel_stride");
    require_count(init_blocks, "init_blocks", 0);
    require_count(local_blocks, "local_blocks", 0);
    require_count(top_k, "top_k");
    require(top_k >= init_blocks + local_blocks, "top_k", "must be at least init_blocks + local_blocks");
  }
};

class NsaTopK final : public Masker {
 public:
  explicit NsaTopK(const NsaTopKConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState& state, const Context& context) const override {
    PooledKeys& pooled = state.get<PooledKeys>(*this);
    const std::optional<TensorView> given = inputs.extra("compressed_keys");
    if (given) {
      check(*given, inputs);
    } else {
      pooled.update(inputs, config_.kernel_size, config_.kernel_stride);
    }
    return key_block_mask(
        inputs, config_.block_size, inputs.kv_heads(),
        [&](RowId row, std::vector<std::int32_t>& blocks) {
          const Index position = inputs.position(row.query), visible = compressed_before(position);
          const auto score_keys = [&](std::span<const float> query, std::span<float> scores) {
            if (given) {
              dot(query.data(), 1, head_matrix(*given, row.batch, row.head).slice(0, 0, visible), scores.data(),
                  visible);
            } else {
              pooled.score(query, row.batch, row.head, visible, scores);
            }
          };
          std::vector<float> scores(static_cast<std::size_t>(position / config_.block_size + 1), 0.0f);
          add_overlaps(attention_mass(inputs, row, visible, score_keys), scores);
          const auto blocks_before = static_cast<Index>(scores.size());
          constexpr float kFirst = std::numeric_limits<float>::infinity();
          std::fill_n(scores.begin(), std::min(config_.init_blocks, blocks_before), kFirst);
          std::fill_n(scores.rbegin(), std::min(config_.local_blocks, blocks_before), kFirst);
          top_k(scores, config_.top_k, blocks);
        },
        context);
  }

 private:
  /// The number of compressed keys whose windows end at or before the position.
  Index compressed_before(Index position) const {
    return position + 1 < config_.kernel_size ? 0 : (position + 1 - config_.kernel_size) / config_.kernel_stride + 1;
  }

  void check(const TensorView& given, const AttentionInputs& inputs) const {
    require_rank(given, 4, "compressed_keys");
    dispatch_float(given.dtype, "compressed_keys", []<class T>() {});
    if (given.size(0) != inputs.batch() || given.size(1) != inputs.kv_heads() ||
        given.size(2) < compressed_before(inputs.keys_length() - 1) || given.size(3) != inputs.head_dim())
      throw ShapeError("compressed_keys: " + given.describe() + "; expected (" + std::to_string(inputs.batch()) + ", " +
                       std::to_string(inputs.kv_heads()) + ", at least " +
                       std::to_string(compressed_before(inputs.keys_length() - 1)) + ", " +
                       std::to_string(inputs.head_dim()) + ")");
  }

  /// Softmax over the compressed keys, summed over the query heads of the KV head row.head.
  static std::vector<double> attention_mass(
      const AttentionInputs& inputs, RowId row, Index keys,
      FunctionRef<void(std::span<const float> query, std::span<float> scores)> score_keys) {
    std::vector<double> mass(static_cast<std::size_t>(keys), 0);
    std::vector<float> query(static_cast<std::size_t>(inputs.head_dim())), scores(mass.size());
    for (Index head = row.head * inputs.group(); head < (row.head + 1) * inputs.group(); ++head) {
      load_row(head_matrix(inputs.queries, row.batch, head), row.query, inputs.scaling, query);
      score_keys(query, scores);
      softmax(scores);
      for (std::size_t i = 0; i < mass.size(); ++i) mass[i] += static_cast<double>(scores[i]);
    }
    return mass;
  }

  /// A compressed key counts for a block once per stride of keys that both cover (equation 9 of the paper).
  void add_overlaps(const std::vector<double>& mass, std::vector<float>& scores) const {
    const Index key_strides = config_.kernel_size / config_.kernel_stride;
    const Index block_strides = config_.block_size / config_.kernel_stride;
    for (Index block = 0; block < static_cast<Index>(scores.size()); ++block) {
      const Index begin = block * block_strides, end = begin + block_strides;
      double sum = 0;
      for (Index i = std::max<Index>(0, begin - key_strides + 1); i < std::min(end, static_cast<Index>(mass.size()));
           ++i)
        sum += mass[static_cast<std::size_t>(i)] *
               static_cast<double>(std::min(end, i + key_strides) - std::max(begin, i));
      scores[static_cast<std::size_t>(block)] = static_cast<float>(sum);
    }
  }

  NsaTopKConfig config_;
};

RETICLE_REGISTER_MASKER(
    "nsa_top_k", NsaTopK, NsaTopKConfig,
    {.summary = "Keeps whole blocks of keys by the attention that compressed keys receive (NSA's selection).",
     .source = "Native Sparse Attention (Yuan et al. 2025); native-sparse-attention-triton",
     .rule = "per query and KV head, the first init_blocks, the last local_blocks up to the own and the blocks of "
             "largest attention to the compressed keys that overlap them, summed over the query heads, top_k in all; "
             "compressed keys are means of kernel_size keys, or the extra tensor compressed_keys (b, hkv, n, d)",
     .cost = "O(queries * keys / kernel_stride * head_dim) time per head; a decode step compresses new keys only"});

}  // namespace reticle::maskers
