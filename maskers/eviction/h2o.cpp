// Keeps the most recent keys and those that gathered most attention so far. H2O (Zhang et al. 2023), per KV head.
#include <algorithm>
#include <limits>
#include <span>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/kept_keys.hpp>
#include <reticle/core/ops/live_keys.hpp>
#include <reticle/core/ops/observed_attention.hpp>

namespace reticle::maskers {

struct H2OConfig {
  Size heavy_size = 0.1;
  Size recent_size = 0.1;

  static constexpr const char* docs[] = {"keys kept for the attention they gathered; fractions are of the prompt",
                                         "most recent keys kept; fractions are of the prompt"};
  void validate() const {
    require(heavy_size.positive() || recent_size.positive(), "heavy_size", "or recent_size must be > 0");
  }
};

struct H2OState {
  LiveKeys live;
  Index heavy = 0, recent = 0;

  void truncate(Index keys) { live.truncate(keys); }
  void select(std::span<const Index> rows) { live.select(rows); }
};

class H2O final : public Masker {
 public:
  explicit H2O(const H2OConfig& config) : config_(config) {}

  void observe(const AttentionInputs& prompt, LayerState& layer_state, const Context& context) const override {
    H2OState& state = layer_state.get<H2OState>(*this);
    state.heavy = std::min(config_.heavy_size.resolve(prompt.keys_length()), kMaxColumns);
    state.recent = std::min(config_.recent_size.resolve(prompt.keys_length()), kMaxColumns);
    const Index lists = prompt.kv_heads();
    std::vector<LiveKeys::List> live(static_cast<std::size_t>(prompt.batch() * lists));
    context.for_each_chunk(prompt.batch() * lists, 1, [&](Index, Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        LiveKeys::List& list = live[static_cast<std::size_t>(i)];
        const std::vector<float> mass =
            importance_of_keys(prompt, i / lists, i % lists * prompt.group(), prompt.group(),
                               {.window = std::numeric_limits<Index>::max(), .kernel_size = 1});
        list.keys = keep_highest(mass, state.heavy + state.recent, 0, state.recent);
        for (const std::int32_t key : list.keys) list.scores.push_back(mass[static_cast<std::size_t>(key)]);
      }
    });
    state.live.start(prompt, lists, std::move(live));
  }

  Index observed_queries() const override { return std::numeric_limits<Index>::max(); }

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState& layer_state,
              const Context& context) const override {
    H2OState& state = layer_state.get<H2OState>(*this);
    return state.live.generate("h2o", inputs, context,
                               [&](RowId, LiveKeys::List& list, std::span<const double> probabilities) {
                                 list.scores.push_back(0);
                                 for (std::size_t i = 0; i < list.scores.size(); ++i)
                                   list.scores[i] += static_cast<float>(probabilities[i]);
                                 if (static_cast<Index>(list.keys.size()) <= state.heavy + state.recent) return;
                                 const std::size_t heavy = list.keys.size() - static_cast<std::size_t>(state.recent);
                                 std::size_t least = 0;
                                 for (std::size_t i = 1; i < heavy; ++i) {
                                   if (list.scores[i] <= list.scores[least]) least = i;  // ties evict the higher index
                                 }
                                 list.erase(least);
                               });
  }

  bool forgets() const override { return true; }

  Mask lasting(const AttentionInputs& inputs, Index first, LayerState& state, const Context& context) const override {
    return state.get<H2OState>(*this).live.lasting(inputs, first, context);
  }

 private:
  H2OConfig config_;
};

RETICLE_REGISTER_MASKER(
    "h2o", H2O, H2OConfig,
    {.summary = "Keeps the most recent keys and the heavy hitters: those that gathered most attention so far.",
     .source = "H2O (Zhang et al. 2023)",
     .rule = "prefill: everything, and each key gathers the attention of all queries and heads of its KV head. "
             "Generation: the last recent_size keys and the heavy_size others of most attention; each step adds its "
             "own key, attends, gathers, and evicts the lightest key that is not recent; what is evicted is gone",
     .cost = "O(prompt^2 * head_dim) time per head at prefill, O(prompt) memory; a decode step O((heavy_size + "
             "recent_size) * heads * head_dim)"});

}  // namespace reticle::maskers
