// SnapKV with one budget for all KV heads of a layer: heads that need more take it from those that need less. Ada-KV
// (Feng et al. 2024), as implemented by sparse-frontier.
#include <algorithm>
#include <limits>
#include <span>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/kept_keys.hpp>
#include <reticle/core/ops/observed_attention.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::maskers {

struct AdaSnapKvConfig {
  Index token_capacity = 1024;
  Index approximation_window = 256;
  Index kernel_size = 7;
  Index local_window = 128;
  Index prefix_tokens = 4;
  double min_head_capacity_ratio = 0.2;

  static constexpr const char* docs[] = {"keys of the prompt that are kept per KV head, on average",
                                         "last queries of the prompt whose attention decides; all when there are fewer",
                                         "keys, an odd number, that importance is averaged over",
                                         "last keys of the prompt that every head keeps",
                                         "first keys of the prompt that every head keeps",
                                         "share, in [0, 1], of token_capacity that every head keeps at least"};
  void validate() const {
    require_count(approximation_window, "approximation_window");
    require_count(kernel_size, "kernel_size");
    require(kernel_size % 2 == 1, "kernel_size", "must be odd");
    require_count(local_window, "local_window", 0);
    require_count(prefix_tokens, "prefix_tokens", 0);
    require_count(token_capacity, "token_capacity");
    require(token_capacity >= local_window + prefix_tokens, "token_capacity",
            "must be at least local_window + prefix_tokens");
    require(min_head_capacity_ratio >= 0 && min_head_capacity_ratio <= 1, "min_head_capacity_ratio",
            "must be in [0, 1]");
  }
};

class AdaSnapKv final : public Masker {
 public:
  explicit AdaSnapKv(const AdaSnapKvConfig& config) : config_(config) {}

  void observe(const AttentionInputs& prompt, LayerState& state, const Context& context) const override {
    std::vector<std::vector<std::int32_t>> kept(static_cast<std::size_t>(prompt.batch() * prompt.kv_heads()));
    context.for_each_chunk(prompt.batch(), 1, [&](Index, Index begin, Index end) {
      for (Index batch = begin; batch < end; ++batch)
        share_out(prompt, batch,
                  std::span(kept).subspan(static_cast<std::size_t>(batch * prompt.kv_heads()),
                                          static_cast<std::size_t>(prompt.kv_heads())));
    });
    state.get<KeptKeys>(*this).keep(prompt, prompt.kv_heads(), std::move(kept));
  }

  Index observed_queries() const override { return config_.approximation_window; }

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState& state, const Context& context) const override {
    return state.get<KeptKeys>(*this).mask("ada_snap_kv", inputs, context);
  }

  bool forgets() const override { return true; }

  Mask lasting(const AttentionInputs& inputs, Index, LayerState& state, const Context& context) const override {
    return state.get<KeptKeys>(*this).lasting(inputs, context);
  }

 private:
  void share_out(const AttentionInputs& prompt, Index batch, std::span<std::vector<std::int32_t>> kept) const {
    const auto keys = static_cast<std::size_t>(prompt.keys_length());
    const Index capacity = std::min(config_.token_capacity, prompt.keys_length());
    const Index floor = std::min(capacity, std::max(static_cast<Index>(static_cast<double>(config_.token_capacity) *
                                                                       config_.min_head_capacity_ratio),
                                                    config_.local_window + config_.prefix_tokens));
    std::vector<float> rest(kept.size() * keys);  // importance by (head, key); -infinity for keys kept already
    for (std::size_t head = 0; head < kept.size(); ++head) {
      std::vector<float> importance =
          importance_of_keys(prompt, batch, static_cast<Index>(head) * prompt.group(), prompt.group(),
                             {.window = config_.approximation_window,
                              .kernel_size = config_.kernel_size,
                              .reduce = Importance::Reduce::max});
      std::copy(importance.begin(), importance.end(), rest.begin() + static_cast<Index>(head * keys));
      kept[head] = keep_highest(std::move(importance), floor, config_.prefix_tokens, config_.local_window);
      for (const std::int32_t key : kept[head])
        rest[head * keys + static_cast<std::size_t>(key)] = -std::numeric_limits<float>::infinity();
    }
    std::vector<std::int32_t> shared;
    top_k(rest, (capacity - floor) * static_cast<Index>(kept.size()), shared);
    for (const std::int32_t i : shared)
      kept[static_cast<std::size_t>(i) / keys].push_back(static_cast<std::int32_t>(static_cast<std::size_t>(i) % keys));
    for (std::vector<std::int32_t>& list : kept) std::sort(list.begin(), list.end());
  }

  AdaSnapKvConfig config_;
};

RETICLE_REGISTER_MASKER(
    "ada_snap_kv", AdaSnapKv, AdaSnapKvConfig,
    {.summary = "SnapKV with a budget that the KV heads of a layer share.",
     .source = "Ada-KV (Feng et al. 2024); sparse-frontier (AdaSnapKV)",
     .rule = "prefill: everything. Generation: per KV head its max(min_head_capacity_ratio * token_capacity, "
             "local_window + prefix_tokens) most important keys, then the most important of all heads until "
             "token_capacity * KV heads are kept; importance: the largest attention of any query and head, averaged",
     .cost = "O(approximation_window * prompt * head_dim) time per head at prefill; a decode step O(token_capacity)"});

}  // namespace reticle::maskers
