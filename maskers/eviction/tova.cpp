// Evicts, once the cache is full, the key that the newest query attended to least, averaged over the heads. TOVA (Oren
// et al. 2024); nano-sparse-attention.
#include <span>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/kept_keys.hpp>
#include <reticle/core/ops/live_keys.hpp>
#include <reticle/core/ops/observed_attention.hpp>

namespace reticle::maskers {

struct TovaConfig {
  Index token_capacity = 1024;

  static constexpr const char* docs[] = {
      "keys that are left after each step, of prompt and generation; one set for all "
      "heads of a layer"};
  void validate() const { require_count(token_capacity, "token_capacity"); }
};

class Tova final : public Masker {
 public:
  explicit Tova(const TovaConfig& config) : capacity_(config.token_capacity) {}

  void observe(const AttentionInputs& prompt, LayerState& state, const Context& context) const override {
    std::vector<LiveKeys::List> lists(static_cast<std::size_t>(prompt.batch()));
    context.for_each_chunk(prompt.batch(), 1, [&](Index, Index begin, Index end) {
      for (Index batch = begin; batch < end; ++batch)
        lists[static_cast<std::size_t>(batch)].keys = keep_highest(
            importance_of_keys(prompt, batch, 0, prompt.heads(), {.window = 1, .kernel_size = 1}), capacity_, 0, 0);
    });
    state.get<LiveKeys>(*this).start(prompt, 1, std::move(lists));
  }

  Index observed_queries() const override { return 1; }

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState& state, const Context& context) const override {
    return state.get<LiveKeys>(*this).generate("tova", inputs, context,
                                               [&](RowId, LiveKeys::List& list, std::span<const double> probabilities) {
                                                 if (static_cast<Index>(list.keys.size()) <= capacity_) return;
                                                 std::size_t least = 0;
                                                 for (std::size_t i = 1; i < probabilities.size(); ++i) {
                                                   if (probabilities[i] <= probabilities[least])
                                                     least = i;  // ties evict the higher index
                                                 }
                                                 list.erase(least);
                                               });
  }

  bool forgets() const override { return true; }

  Mask lasting(const AttentionInputs& inputs, Index first, LayerState& state, const Context& context) const override {
    return state.get<LiveKeys>(*this).lasting(inputs, first, context);
  }

 private:
  Index capacity_;
};

RETICLE_REGISTER_MASKER(
    "tova", Tova, TovaConfig,
    {.summary = "Evicts, once the cache is full, the key that the newest query attended to least.",
     .source = "TOVA (Oren et al. 2024); nano-sparse-attention",
     .rule = "prefill: everything. Generation: of the prompt, the token_capacity keys of highest mean attention of its "
             "last query; each step adds its own key, attends, and then, above token_capacity, evicts the key of least "
             "mean attention over the heads",
     .cost = "O(prompt * heads * head_dim) time at prefill; a decode step O(token_capacity * heads * head_dim)"});

}  // namespace reticle::maskers
