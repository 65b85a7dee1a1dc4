// SnapKV with a capacity that falls from layer to layer: low layers attend broadly, high ones to few keys. PyramidKV
// (Cai et al. 2024), as MInference ships it.
#include <string>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/kept_keys.hpp>
#include <reticle/core/ops/observed_attention.hpp>

namespace reticle::maskers {

struct PyramidKvConfig {
  Index num_layers = 0;
  Index token_capacity = 4096;
  Index approximation_window = 32;
  Index kernel_size = 5;
  Pooling pooling = Pooling::avg;
  Index beta = 20;

  static constexpr const char* docs[] = {
      "layers of the model",
      "keys of the prompt that are kept per head, on average over the layers",
      "last queries of the prompt whose attention decides, and last keys that are always kept",
      "keys, an odd number, that importance is pooled over",
      "mean (divided by kernel_size at the edges, too) or largest of the window",
      "the last layer keeps (token_capacity - approximation_window) / beta keys besides the window"};
  static constexpr std::string_view required[] = {"num_layers"};
  void validate() const {
    require_count(num_layers, "num_layers");
    require_count(approximation_window, "approximation_window");
    require_count(token_capacity, "token_capacity");
    require(token_capacity > approximation_window, "token_capacity", "must be > approximation_window");
    require_count(kernel_size, "kernel_size");
    require(kernel_size % 2 == 1, "kernel_size", "must be odd");
    require_count(beta, "beta");
  }
};

class PyramidKv final : public Masker {
 public:
  explicit PyramidKv(const PyramidKvConfig& config) : config_(config) {}

  void observe(const AttentionInputs& prompt, LayerState& state, const Context& context) const override {
    if (prompt.layer >= config_.num_layers)
      throw ValueError("pyramid_kv: layer " + std::to_string(prompt.layer) + " of a model with num_layers " +
                       std::to_string(config_.num_layers));
    const Index window = config_.approximation_window, heads = prompt.heads();
    const Index capacity = window + history(prompt.keys_length(), prompt.layer);
    std::vector<std::vector<std::int32_t>> kept(static_cast<std::size_t>(prompt.batch() * heads));
    context.for_each_chunk(prompt.batch() * heads, 1, [&](Index, Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        kept[static_cast<std::size_t>(i)] = keep_highest(importance_of_keys(prompt, i / heads, i % heads, 1,
                                                                            {.window = window,
                                                                             .kernel_size = config_.kernel_size,
                                                                             .pooling = config_.pooling,
                                                                             .pool_window = false}),
                                                         capacity, 0, window);
      }
    });
    state.get<KeptKeys>(*this).keep(prompt, heads, std::move(kept));
  }

  Index observed_queries() const override { return config_.approximation_window; }

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState& state, const Context& context) const override {
    return state.get<KeptKeys>(*this).mask("pyramid_kv", inputs, context);
  }

  bool forgets() const override { return true; }

  Mask lasting(const AttentionInputs& inputs, Index, LayerState& state, const Context& context) const override {
    return state.get<KeptKeys>(*this).lasting(inputs, context);
  }

 private:
  /// The number of a prompt's keys that a layer keeps besides the window: an arithmetic series over the layers.
  Index history(Index keys, Index layer) const {
    if (keys < config_.token_capacity) return keys;
    const Index mean = config_.token_capacity - config_.approximation_window;
    if (keys < 2 * mean) return mean;
    const Index past = keys - config_.approximation_window;
    Index least = mean / config_.beta, most = 2 * mean - least;
    if (most >= past) {
      most = past;
      least = 2 * mean - most;
    }
    const Index step = config_.num_layers == 1 ? 0 : (most - least) / (config_.num_layers - 1);
    return config_.num_layers == 1 ? mean : most - layer * step;
  }

  PyramidKvConfig config_;
};

RETICLE_REGISTER_MASKER(
    "pyramid_kv", PyramidKv, PyramidKvConfig,
    {.summary = "SnapKV with a capacity that falls from layer to layer.",
     .source = "PyramidKV (Cai et al. 2024); MInference (pyramidkv)",
     .rule = "snap_kv with, besides the window, a number of keys that falls linearly with the layer from 2c - c / beta "
             "to c / beta, c = token_capacity - approximation_window; prompts shorter than token_capacity are kept, "
             "those shorter than 2c keep c in every layer",
     .cost = "O(approximation_window * prompt * head_dim) time per head at prefill; a decode step O(keys kept)"});

}  // namespace reticle::maskers
