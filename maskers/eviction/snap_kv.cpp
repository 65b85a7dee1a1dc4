// Compresses the prompt once: generation sees the keys that the prompt's last queries attended to most, and all later
// keys. SnapKV (Li et al. 2024); nano-sparse-attention, sparse-frontier, MInference.
#include <optional>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/kept_keys.hpp>
#include <reticle/core/ops/observed_attention.hpp>

namespace reticle::maskers {

struct SnapKvConfig {
  Index token_capacity = 1024;
  Index approximation_window = 64;
  Index kernel_size = 7;
  Pooling pooling = Pooling::avg;
  std::optional<Index> local_window;
  Index prefix_tokens = 0;
  bool pool_window = true;
  bool share_within_group = false;

  static constexpr const char* docs[] = {
      "keys of the prompt that are kept per head",
      "last queries of the prompt whose attention decides; all when there are fewer",
      "keys, an odd number, that importance is pooled over",
      "mean (divided by kernel_size at the edges, too) or largest of the window",
      "last keys of the prompt that are always kept, as part of the budget; absent: approximation_window",
      "first keys of the prompt that are always kept, as part of the budget",
      "whether importance of the approximation window's own keys leaks into their neighbours; MInference: false",
      "sum importance over the query heads of a KV head and keep the same keys for all of them; sparse-frontier: true"};
  void validate() const {
    require_count(approximation_window, "approximation_window");
    require_count(kernel_size, "kernel_size");
    require(kernel_size % 2 == 1, "kernel_size", "must be odd");
    require_count(prefix_tokens, "prefix_tokens", 0);
    if (local_window) require_count(*local_window, "local_window", 0);
    require_count(token_capacity, "token_capacity");
    require(token_capacity >= local_window.value_or(approximation_window) + prefix_tokens, "token_capacity",
            "must be at least local_window + prefix_tokens");
  }
};

class SnapKv final : public Masker {
 public:
  explicit SnapKv(const SnapKvConfig& config) : config_(config) {}

  void observe(const AttentionInputs& prompt, LayerState& state, const Context& context) const override {
    const Index lists = config_.share_within_group ? prompt.kv_heads() : prompt.heads();
    const Index heads = lists == 0 ? 0 : prompt.heads() / lists;
    std::vector<std::vector<std::int32_t>> kept(static_cast<std::size_t>(prompt.batch() * lists));
    context.for_each_chunk(prompt.batch() * lists, 1, [&](Index, Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        std::vector<float> importance = importance_of_keys(prompt, i / lists, i % lists * heads, heads,
                                                           {.window = config_.approximation_window,
                                                            .kernel_size = config_.kernel_size,
                                                            .pooling = config_.pooling,
                                                            .pool_window = config_.pool_window});
        kept[static_cast<std::size_t>(i)] =
            keep_highest(std::move(importance), config_.token_capacity, config_.prefix_tokens,
                         config_.local_window.value_or(config_.approximation_window));
      }
    });
    state.get<KeptKeys>(*this).keep(prompt, lists, std::move(kept));
  }

  Index observed_queries() const override { return config_.approximation_window; }

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState& state, const Context& context) const override {
    return state.get<KeptKeys>(*this).mask("snap_kv", inputs, context);
  }

  bool forgets() const override { return true; }

  Mask lasting(const AttentionInputs& inputs, Index, LayerState& state, const Context& context) const override {
    return state.get<KeptKeys>(*this).lasting(inputs, context);
  }

 private:
  SnapKvConfig config_;
};

RETICLE_REGISTER_MASKER(
    "snap_kv", SnapKv, SnapKvConfig,
    {.summary = "Keeps the prompt's keys that its last queries attended to most, and all later keys.",
     .source = "SnapKV (Li et al. 2024); nano-sparse-attention, sparse-frontier, MInference",
     .rule = "prefill: everything. Generation: of the prompt, its first prefix_tokens, its last local_window and the "
             "keys of highest pooled attention of the last approximation_window queries, token_capacity in all",
     .cost = "O(approximation_window * prompt * head_dim) time per head at prefill; a decode step O(token_capacity)"});

}  // namespace reticle::maskers
