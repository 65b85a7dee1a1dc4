// Keeps the keys of the highest scores over a few channels of each head, which matter most by offline measurement and
// are stored in few bits. Double Sparsity (Yang et al. 2024); sparse-attention-hub's DoubleSparsityTopK, but with
// separate channels for every layer.
#include <cmath>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/channel_table.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/quantise.hpp>
#include <reticle/core/ops/scores.hpp>

namespace reticle::maskers {

enum class ChannelSelection : std::uint8_t { qk_proj, q_proj, k_proj };

struct DoubleSparsityTopKConfig {
  Size heavy_size = 0.1;
  std::filesystem::path sorted_channel_file;
  Index group_factor = 16;
  Index label_bits = 4;
  ChannelSelection channel_selection = ChannelSelection::qk_proj;

  static constexpr const char* docs[] = {
      "keys added per query, beyond those already chosen",
      "JSON: model.layers.<i>.self_attn.<channel_selection> -> lists of channels, best first, per head or one for all",
      "head_dim / group_factor channels are used", "bits, 1 to 16, of each channel value; 16 keeps them exact",
      "tensors that the channels were measured on"};
  static constexpr std::string_view required[] = {"sorted_channel_file"};
  void validate() const {
    require(heavy_size.positive(), "heavy_size", "must be > 0");
    require(group_factor > 0, "group_factor", "must be > 0");
    require(label_bits > 0 && label_bits <= 16, "label_bits", "must be in [1, 16]");
    require(std::filesystem::is_regular_file(sorted_channel_file), "sorted_channel_file", "must be a file");
  }
};

/// The label cache: the chosen channels of the keys seen, per (batch, query head): (keys, channels).
struct DoubleSparsityState {
  std::vector<std::vector<float>> labels;
  SeenKeys seen;

  void truncate(Index keys) { seen.truncate(keys); }
  void select(std::span<const Index> rows) {
    select_rows(labels, rows, seen.batch());
    seen.select(rows);
  }
};

class DoubleSparsityTopK final : public Masker {
 public:
  explicit DoubleSparsityTopK(const DoubleSparsityTopKConfig& config)
      : config_(config),
        channels_(config.sorted_channel_file,
                  enumerator_names<ChannelSelection>[static_cast<std::size_t>(config.channel_selection)]) {}

  Mask select(const AttentionInputs& inputs, const Mask& previous, LayerState& layer_state,
              const Context& context) const override {
    DoubleSparsityState& state = layer_state.get<DoubleSparsityState>(*this);
    const Index count = channel_count(inputs);
    update(inputs, count, state);
    const Index k = config_.heavy_size.resolve(inputs.keys_length());
    return select_by_score(
        inputs, previous,
        [&](std::span<const RowId> rows, float* scores) {
          std::vector<float> query(static_cast<std::size_t>(inputs.head_dim())), label(static_cast<std::size_t>(count));
          for (const RowId row : rows) {
            const std::vector<float>& labels =
                state.labels[static_cast<std::size_t>(row.batch * inputs.heads() + row.head)];
            const TensorView keys =
                TensorView(labels.data(), DType::f32, {state.seen.count(), count}).slice(0, 0, inputs.keys_length());
            load_row(head_matrix(inputs.queries, row.batch, row.head), row.query, 1, query);
            make_label(inputs, row.head, query, label);
            for (float& x : label) x /= std::sqrt(static_cast<float>(count));
            dot(label.data(), 1, keys, scores, inputs.keys_length());
            add_attention_mask(inputs, row, scores);
            scores += inputs.keys_length();
          }
        },
        [&](std::span<const float> scores, Selection& selection) { top_k(scores, k, selection.indices); }, context);
  }

 private:
  /// The number of channels used. Also checks that the layer's table fits the heads.
  Index channel_count(const AttentionInputs& inputs) const {
    const Index count = inputs.head_dim() / config_.group_factor;
    const auto reject = [&](const std::string& what) {
      throw ShapeError("double_sparsity_top_k, layer " + std::to_string(inputs.layer) + ": " + what);
    };
    if (count < 1)
      reject("group_factor " + std::to_string(config_.group_factor) + " leaves no channel of head_dim " +
             std::to_string(inputs.head_dim()));
    const auto& table = channels_.layer(inputs.layer);
    if (static_cast<Index>(table.size()) != inputs.heads() && table.size() != 1)
      reject("the channel file has lists for " + std::to_string(table.size()) + " heads; expected " +
             std::to_string(inputs.heads()) + ", or one list for all heads");
    for (const std::vector<Index>& head : table) {
      if (static_cast<Index>(head.size()) < count)
        reject("the channel file has " + std::to_string(head.size()) + " channels of a head; expected " +
               std::to_string(count));
      for (Index i = 0; i < count; ++i) {
        if (head[static_cast<std::size_t>(i)] >= inputs.head_dim())
          reject("there is no channel " + std::to_string(head[static_cast<std::size_t>(i)]) + " in head_dim " +
                 std::to_string(inputs.head_dim()));
      }
    }
    return count;
  }

  /// The vector's chosen channels, quantised together.
  void make_label(const AttentionInputs& inputs, Index head, std::span<const float> vector,
                  std::span<float> label) const {
    const auto& table = channels_.layer(inputs.layer);
    const std::vector<Index>& channels = table.size() == 1 ? table.front() : table[static_cast<std::size_t>(head)];
    for (std::size_t i = 0; i < label.size(); ++i) label[i] = vector[static_cast<std::size_t>(channels[i])];
    if (config_.label_bits < 16) fake_quantise(label, config_.label_bits);
  }

  /// Labels the keys beyond those seen.
  void update(const AttentionInputs& inputs, Index count, DoubleSparsityState& state) const {
    const Index heads = inputs.batch() * inputs.heads();
    state.seen.continue_with(inputs);
    if (state.labels.empty()) state.labels.resize(static_cast<std::size_t>(heads));
    std::vector<float> key(static_cast<std::size_t>(inputs.head_dim()));
    for (Index i = 0; i < heads; ++i) {
      const Index head = i % inputs.heads();
      const TensorView keys = head_matrix(inputs.keys, i / inputs.heads(), inputs.kv_head(head));
      std::vector<float>& labels = state.labels[static_cast<std::size_t>(i)];
      labels.resize(static_cast<std::size_t>(inputs.keys_length() * count));
      for (Index k = state.seen.count(); k < inputs.keys_length(); ++k) {
        load_row(keys, k, 1, key);
        make_label(inputs, head, key, {labels.data() + k * count, static_cast<std::size_t>(count)});
      }
    }
    state.seen.finish(inputs);
  }

  DoubleSparsityTopKConfig config_;
  ChannelTable channels_;
};

RETICLE_REGISTER_MASKER(
    "double_sparsity_top_k", DoubleSparsityTopK, DoubleSparsityTopKConfig,
    {.summary = "Keeps the keys of the highest scores over the few channels that matter most.",
     .source = "Double Sparsity (Yang et al. 2024); sparse-attention-hub (DoubleSparsityTopK)",
     .rule = "the heavy_size keys of largest q.k / sqrt(channels) over head_dim / group_factor channels, in "
             "label_bits, + attention_mask, among those not chosen yet",
     .cost = "O(queries * keys * head_dim / group_factor) time; a decode step labels new keys only"});

}  // namespace reticle::maskers
