// Keeps the keys of the highest products over the first principal components of the keys. Loki (Singhania et al. 2024).
#include <algorithm>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/scores.hpp>

namespace reticle::maskers {

struct LokiTopKConfig {
  std::filesystem::path pca_file;
  Size heavy_size = 0.25;
  Size rank = 0.25;

  static constexpr const char* docs[] = {
      "layers.<i>.pca (hkv, head_dim, head_dim) F32: components as rows, largest first; tools/calibrate.py",
      "keys added per query, beyond those already chosen", "components that score; a fraction is of head_dim"};
  static constexpr std::string_view required[] = {"pca_file"};
  void validate() const {
    require(std::filesystem::is_regular_file(pca_file), "pca_file", "must be a file");
    require(heavy_size.positive(), "heavy_size", "must be > 0");
    require(rank.positive(), "rank", "must be > 0");
  }
};

/// The first components of the keys seen, per (batch, KV head): (keys, rank).
struct LokiState {
  SeenKeys seen;
  std::vector<std::vector<float>> reduced;

  void truncate(Index keys) { seen.truncate(keys); }
  void select(std::span<const Index> rows) {
    select_rows(reduced, rows, seen.batch());
    seen.select(rows);
  }
};

class LokiTopK final : public Masker {
 public:
  explicit LokiTopK(const LokiTopKConfig& config) : config_(config), file_(config.pca_file) {}

  Mask select(const AttentionInputs& inputs, const Mask& previous, LayerState& layer_state,
              const Context& context) const override {
    LokiState& state = layer_state.get<LokiState>(*this);
    const TensorView components = components_of(inputs);
    const Index rank = std::clamp<Index>(config_.rank.resolve(inputs.head_dim()), 1, inputs.head_dim());
    update(inputs, components, rank, state);
    const Index k = config_.heavy_size.resolve(inputs.keys_length());
    return select_by_score(
        inputs, previous,
        [&](std::span<const RowId> rows, float* scores) {
          const Index kv_head = inputs.kv_head(rows[0].head), keys = inputs.keys_length();
          const TensorView reduced(
              state.reduced[static_cast<std::size_t>(rows[0].batch * inputs.kv_heads() + kv_head)].data(), DType::f32,
              {keys, rank});
          std::vector<float> query(static_cast<std::size_t>(inputs.head_dim())), few(static_cast<std::size_t>(rank));
          for (const RowId row : rows) {
            load_row(head_matrix(inputs.queries, row.batch, row.head), row.query, inputs.scaling, query);
            dot(query.data(), 1, basis(components, kv_head, rank), few.data(), rank);
            dot(few.data(), 1, reduced, scores, keys);
            add_attention_mask(inputs, row, scores);
            scores += keys;
          }
        },
        [&](std::span<const float> scores, Selection& selection) { top_k(scores, k, selection.indices); }, context);
  }

 private:
  TensorView components_of(const AttentionInputs& inputs) const {
    const std::string name = "layers." + std::to_string(inputs.layer) + ".pca";
    const std::optional<TensorView> found = file_.find(name);
    if (!found) throw FormatError(config_.pca_file.string() + ": has no tensor \"" + name + "\"");
    const Index d = inputs.head_dim();
    if (found->rank != 3 || found->dtype != DType::f32 || found->size(0) != inputs.kv_heads() || found->size(1) != d ||
        found->size(2) != d)
      throw ShapeError(config_.pca_file.string() + ": " + name + " is " + found->describe() + "; expected F32 (" +
                       std::to_string(inputs.kv_heads()) + ", " + std::to_string(d) + ", " + std::to_string(d) + ")");
    return *found;
  }

  static TensorView basis(const TensorView& components, Index kv_head, Index rank) {
    return {components.at<float>(kv_head, 0, 0), DType::f32, {rank, components.size(2)}};
  }

  static void update(const AttentionInputs& inputs, const TensorView& components, Index rank, LokiState& state) {
    state.seen.continue_with(inputs);
    state.reduced.resize(static_cast<std::size_t>(inputs.batch() * inputs.kv_heads()));
    std::vector<float> key(static_cast<std::size_t>(inputs.head_dim()));
    for (std::size_t i = 0; i < state.reduced.size(); ++i) {
      const auto head = static_cast<Index>(i);
      const TensorView keys = head_matrix(inputs.keys, head / inputs.kv_heads(), head % inputs.kv_heads());
      state.reduced[i].resize(static_cast<std::size_t>(inputs.keys_length() * rank));
      for (Index k = state.seen.count(); k < inputs.keys_length(); ++k) {
        load_row(keys, k, 1, key);
        dot(key.data(), 1, basis(components, head % inputs.kv_heads(), rank), state.reduced[i].data() + k * rank, rank);
      }
    }
    state.seen.finish(inputs);
  }

  LokiTopKConfig config_;
  SafeTensors file_;
};

RETICLE_REGISTER_MASKER(
    "loki_top_k", LokiTopK, LokiTopKConfig,
    {.summary = "Keeps the keys of the highest products over the keys' first principal components.",
     .source = "Loki (Singhania et al. 2024)",
     .rule = "the heavy_size keys of largest scaling * q.k over the first rank components, + attention_mask, among "
             "those not chosen yet",
     .cost = "O(queries * keys * rank) time; a decode step rotates new keys only; rank floats per key of state"});

}  // namespace reticle::maskers
