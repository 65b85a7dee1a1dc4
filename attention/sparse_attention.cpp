#include <algorithm>
#include <cstring>
#include <span>
#include <string>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/base/input_file.hpp>
#include <reticle/core/base/stopwatch.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/reshape.hpp>

namespace reticle {
namespace {

std::vector<std::uint8_t> served_heads(const MaskerEntry& entry, const AttentionInputs& inputs) {
  std::vector<std::uint8_t> served(static_cast<std::size_t>(inputs.heads()));
  for (std::size_t head = 0; head < served.size(); ++head)
    served[head] = entry.served.heads.contains(static_cast<Index>(head)) ? 1 : 0;
  return served;
}

/// 1 for each head to which no masker applies; these heads attend to everything.
std::vector<std::uint8_t> unserved_heads(std::span<const MaskerEntry> entries, const AttentionInputs& inputs) {
  std::vector<std::uint8_t> unserved(static_cast<std::size_t>(inputs.heads()), 1);
  for (const MaskerEntry& entry : entries) {
    if (!entry.served.layers.contains(inputs.layer)) continue;
    const std::vector<std::uint8_t> served = served_heads(entry, inputs);
    for (std::size_t head = 0; head < served.size(); ++head) {
      if (served[head] != 0) unserved[head] = 0;
    }
  }
  return unserved;
}

/// A mask of every position of the wanted heads, and none of the others.
Mask rows_of_heads(std::span<const std::uint8_t> wanted, MaskShape shape) {
  shape.shared_batch = shape.shared_queries = true;
  return Mask::intervals(shape, [&](RowId row) {
    return Interval{0, wanted[static_cast<std::size_t>(row.head)] != 0 ? static_cast<std::int32_t>(shape.keys) : 0};
  });
}

/// Adds one call to the record of its stage.
void record(const AttentionInputs& inputs, Index entries, const Mask* mask, SequenceState& state,
            const Context& context) {
  const SequenceState::Lease lease(state);
  StageRecord& recorded = state.recorded(inputs.stage);
  const Mask all = Mask::full(inputs.shape());
  const Index visible = inputs.causal ? causal_nnz(all, context) : all.nnz();
  recorded.add(static_cast<double>(entries), static_cast<double>(visible));
  if (state.recording() == Recording::masks) recorded.masks.push_back({inputs.layer, *mask});
}

/// Concatenates the rows of a and b in each (batch, head) of a (b, h, rows, ...) tensor.
Tensor append_rows(const TensorView& a, const TensorView& b) {
  std::vector<Index> shape(a.shape.begin(), a.shape.begin() + a.rank);
  shape[2] += b.size(2);
  Tensor whole(a.dtype, shape);
  const auto bytes_of = [](const TensorView& view) {
    return static_cast<std::size_t>(view.elements() / (view.size(0) * view.size(1)) * size_of(view.dtype));
  };
  auto* to = static_cast<std::byte*>(whole.data());
  for (Index matrix = 0; matrix < a.size(0) * a.size(1); ++matrix) {
    for (const TensorView* part : {&a, &b}) {
      const std::size_t bytes = bytes_of(*part);
      if (bytes > 0)
        std::memcpy(to, static_cast<const std::byte*>(part->data) + static_cast<std::size_t>(matrix) * bytes, bytes);
      to += bytes;
    }
  }
  return whole;
}

}  // namespace

SparseAttention::SparseAttention(PipelineConfig config)
    : config_(std::make_shared<const PipelineConfig>(std::move(config))) {}

SparseAttention SparseAttention::from_json(std::string_view text, const std::filesystem::path& directory,
                                           Plugins plugins) {
  return SparseAttention(PipelineConfig::from_json(text, directory, plugins));
}

SparseAttention SparseAttention::from_file(const std::filesystem::path& path, Plugins plugins) {
  const auto text = read_file<ConfigError>(path);
  try {
    return from_json(text, path.parent_path().empty() ? "." : path.parent_path(), plugins);
  } catch (const ConfigError& error) {
    throw ConfigError(path.string() + ": " + error.what());
  }
}

SparseAttention SparseAttention::by_stage(const SparseAttention& prefill, const SparseAttention& generation) {
  return SparseAttention(PipelineConfig::by_stage_of(*prefill.config_, *generation.config_));
}

std::string SparseAttention::to_json() const { return config_->to_json(); }
const std::string& SparseAttention::description() const { return config_->options.description; }
bool SparseAttention::causal() const { return config_->options.causal; }

std::vector<std::string> SparseAttention::maskers(Stage stage) const {
  std::vector<std::string> types;
  for (const MaskerEntry& entry : config_->stage(stage)) types.push_back(entry.type->name);
  return types;
}

SparseAttention::Ruled SparseAttention::ruled(Stage stage, int layer, Index keys, const Context& context) const {
  const std::vector<MaskerEntry>& entries = config_->stage(stage);
  Ruled found;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i].served.layers.contains(layer)) continue;
    const std::string name = "masker " + std::to_string(i) + ", \"" + entries[i].type->name + '"';
    if (!entries[i].served.heads.all()) return {{}, name + ", serves some heads only: it chooses on the CPU"};
    const std::vector<Rule> masker_rules = entries[i].masker->rules(keys, layer);
    if (masker_rules.empty() || !std::ranges::all_of(masker_rules, &Rule::has_kernel))
      return {{}, name + ", has no rule for a GPU: it chooses on the CPU"};
    for (Rule rule : masker_rules) {
      rule.seed = derive_seed(context.seed, i);
      rule.masker = entries[i].masker->id();
      found.rules.push_back(rule);
    }
  }
  if (found.rules.empty()) found.why = "no masker serves layer " + std::to_string(layer) + ": it is dense";
  return found;
}

std::vector<Rule> SparseAttention::rules(Stage stage, int layer, Index keys, const Context& context) const {
  Ruled found = ruled(stage, layer, keys, configured(context));
  if (found.rules.empty()) throw DeviceError(found.why);
  return std::move(found.rules);
}

bool SparseAttention::serves(Stage stage, int layer) const {
  return std::ranges::any_of(config_->stage(stage),
                             [&](const MaskerEntry& entry) { return entry.served.layers.contains(layer); });
}

Index SparseAttention::observed_queries() const {
  Index max_queries = 0;
  for (const MaskerEntry& entry : config_->stage(Stage::generation))
    max_queries = std::max(max_queries, entry.masker->observed_queries());
  return max_queries;
}

std::vector<std::string> SparseAttention::maskers_of_whole_prompts(Stage stage) const {
  std::vector<std::string> types;
  for (const MaskerEntry& entry : config_->stage(stage)) {
    if (!entry.masker->selects_by_query()) types.push_back(entry.type->name);
  }
  return types;
}

AttentionInputs SparseAttention::configured(const AttentionInputs& inputs) const {
  AttentionInputs configured_inputs = inputs;
  configured_inputs.causal |= config_->options.causal;
  configured_inputs.validate();
  return configured_inputs;
}

Context SparseAttention::configured(const Context& context) const {
  Context configured_context = context;
  configured_context.seed = derive_seed(config_->options.seed, context.seed);
  return configured_context;
}

void SparseAttention::require_forgetful() const {
  std::string names;
  for (const MaskerEntry& entry : config_->stage(Stage::generation)) {
    if (!entry.masker->forgets()) names += (names.empty() ? "" : ", ") + entry.type->name;
  }
  if (!names.empty())
    throw ValueError("eviction: " + names +
                     " may come back to any key, so none can be dropped; expected maskers that leave keys for good, as "
                     "snap_kv, tova, h2o, and sink and local of a fixed size do");
}

Mask SparseAttention::lasting(const AttentionInputs& given, Index first, SequenceState& state,
                              const Context& context) const {
  const SequenceState::Lease lease(state);
  AttentionInputs inputs = given;
  require_forgetful();
  inputs.stage = Stage::generation;
  inputs = configured(inputs);
  require_on(inputs.queries, Device::Kind::cpu, "lasting keys: queries");
  if (inputs.queries_length() == 0 || first < 0 || first > inputs.keys_length())
    throw ShapeError("lasting keys: queries from position " + std::to_string(first) + " of " +
                     std::to_string(inputs.keys_length()) + " keys, " + std::to_string(inputs.queries_length()) +
                     " queries; expected some query, and a position up to the number of keys");
  const std::vector<MaskerEntry>& entries = config_->stage(Stage::generation);
  Mask mask = rows_of_heads(unserved_heads(entries, inputs), inputs.one_query());
  for (const MaskerEntry& entry : entries) {
    if (!entry.served.layers.contains(inputs.layer)) continue;
    Mask kept = entry.masker->lasting(inputs, first, state.layer(inputs.layer), context);
    if (!entry.served.heads.all())
      kept = intersect(kept, rows_of_heads(served_heads(entry, inputs), inputs.one_query()), context);
    mask = merge(mask, kept, MergeRule::max, context);
  }
  return mask;
}

Mask SparseAttention::build(const AttentionInputs& inputs, const std::optional<Mask>& previous, SequenceState& state,
                            const Context& context, Metrics& metrics, std::vector<Contribution>* contributions) const {
  const Stopwatch watch;
  const SequenceState::Lease lease(state);
  LayerState& layer_state = state.layer(inputs.layer);
  if (inputs.stage == Stage::prefill) {
    for (const MaskerEntry& entry : config_->stage(Stage::generation)) {
      if (entry.served.layers.contains(inputs.layer)) entry.masker->observe(inputs, layer_state, context);
    }
  }
  const std::vector<MaskerEntry>& entries = config_->stage(inputs.stage);
  const auto visible = [&](const Mask& m) { return inputs.causal ? restrict_causal(m, context) : m; };
  Mask mask = visible(rows_of_heads(unserved_heads(entries, inputs), inputs.shape()));
  if (contributions != nullptr && (mask.nnz() > 0 || entries.empty())) contributions->push_back({"dense", mask});
  if (previous) {
    const Mask given = visible(broadcast_to(*previous, inputs.shape()));
    mask = entries.empty() ? given : merge(mask, given, MergeRule::add, context);
  }
  Context masker_context = context;
  AttentionInputs masker_inputs = inputs;
  if (inputs.stored) require_forgetful();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i].served.layers.contains(inputs.layer)) {
      metrics.maskers.push_back({entries[i].type->name});
      if (contributions != nullptr) contributions->push_back({entries[i].type->name, Mask::empty(inputs.shape())});
      continue;
    }
    const Stopwatch masker_watch;
    masker_context.seed = derive_seed(context.seed, i);
    const Index before = mask.nnz();
    const std::vector<std::uint8_t> wanted = served_heads(entries[i], inputs);
    masker_inputs.wanted_heads = wanted;
    Mask added = entries[i].masker->select(masker_inputs, mask, layer_state, masker_context);
    if (!added.shape().same_logical(inputs.shape()))
      throw ShapeError("masker \"" + entries[i].type->name + "\" returned a mask of shape " + added.shape().describe() +
                       "; expected " + inputs.shape().describe());
    if (!entries[i].served.heads.all()) added = intersect(added, rows_of_heads(wanted, inputs.shape()), context);
    added = visible(added);
    if (contributions != nullptr)
      contributions->push_back({entries[i].type->name, broadcast_to(subtract(added, mask, context), inputs.shape())});
    mask = merge(mask, added, config_->options.merge, context);
    metrics.maskers.push_back({entries[i].type->name, mask.nnz() - before, masker_watch.seconds()});
  }
  metrics.mask_seconds = watch.seconds();
  return mask;
}

Mask SparseAttention::mask(const AttentionInputs& given, SequenceState& state, const Context& context,
                           const std::optional<Mask>& previous) const {
  const AttentionInputs inputs = configured(given);
  const bool on_gpu = inputs.queries.device.kind == Device::Kind::cuda;
  if (on_gpu && previous)
    throw DeviceError("a mask to start from: expected tensors on the CPU; the queries lie on a GPU");
  Metrics metrics;
  Mask mask = on_gpu ? mask_on_gpu(inputs, state, configured(context))
                     : build(inputs, previous, state, configured(context), metrics);
  if (state.recording() != Recording::none) record(inputs, mask.nnz(context), &mask, state, context);
  return mask;
}

Attended SparseAttention::attend(const AttentionInputs& given, SequenceState& state, const AttentionOptions& options,
                                 Wanted wanted, const Context& context) const {
  const AttentionInputs inputs = configured(given);
  const bool on_gpu = inputs.queries.device.kind == Device::Kind::cuda;
  if (!on_gpu && (wanted.output != nullptr || wanted.lse != nullptr))
    throw DeviceError("attend into memory of the caller's: expected tensors on a GPU; the queries lie on the CPU");
  wanted.entries |= state.recording() != Recording::none;
  wanted.mask |= state.recording() == Recording::masks;
  Attended attended;
  if (on_gpu) {
    attended = attend_on_gpu(inputs, state, options, wanted, configured(context));
  } else {
    Metrics metrics;
    attended.mask = build(inputs, std::nullopt, state, configured(context), metrics);
    attended.attention = attention(inputs, *attended.mask, options, context);
    attended.entries = attended.mask->nnz();
  }
  if (state.recording() != Recording::none)
    record(inputs, *attended.entries, attended.mask ? &*attended.mask : nullptr, state, context);
  return attended;
}

AttentionResult SparseAttention::forward(const AttentionInputs& sequence, Index output_length, SequenceState& state,
                                         const AttentionOptions& options, const Context& context) const {
  sequence.validate_on(Device::Kind::cpu);
  const Index length = sequence.queries_length();
  if (output_length < 0 || output_length >= std::max<Index>(1, length) || sequence.keys_length() != length)
    throw ShapeError("forward: an output of " + std::to_string(output_length) + " of " + std::to_string(length) +
                     " queries and " + std::to_string(sequence.keys_length()) +
                     " keys; expected as many keys as queries, and at least one of them for the prompt");
  AttentionInputs part = sequence.rows(0, length - output_length);
  part.causal = true;
  part.stage = Stage::prefill;
  AttentionResult prompt = attend(part, state, options, {}, context).attention;
  if (output_length == 0) return prompt;
  part = sequence.rows(length - output_length, length);
  part.causal = true;
  part.stage = Stage::generation;
  const AttentionResult generated = attend(part, state, options, {}, context).attention;
  return {append_rows(prompt.output, generated.output), append_rows(prompt.lse, generated.lse), std::nullopt};
}

std::vector<Contribution> SparseAttention::contributions(const AttentionInputs& inputs, SequenceState& state,
                                                         const Context& context) const {
  Metrics metrics;
  std::vector<Contribution> found;
  require_on(inputs.queries, Device::Kind::cpu, "contributions: queries");
  build(configured(inputs), std::nullopt, state, configured(context), metrics, &found);
  return found;
}

SparseAttentionResult SparseAttention::run(const AttentionInputs& given, SequenceState& state, bool compare,
                                           const AttentionOptions& options, const Context& context) const {
  const AttentionInputs inputs = configured(given);
  require_on(inputs.queries, Device::Kind::cpu, "figures of a pipeline: queries");
  SparseAttentionResult result;
  Metrics& metrics = result.metrics;
  result.mask = build(inputs, std::nullopt, state, configured(context), metrics);
  const Stopwatch watch;
  result.attention = attention(inputs, result.mask, options, context);
  metrics.attention_seconds = watch.seconds();

  const auto share = [](Index part, Index whole) {
    return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
  };
  const MaskShape& shape = result.mask.shape();
  metrics.entries = result.mask.nnz();
  metrics.density = result.mask.density();
  const Mask all = Mask::full(shape);
  metrics.visible_density = share(metrics.entries, inputs.causal ? causal_nnz(all, context) : all.nnz());
  for (const Index entries : head_counts(result.mask, context))
    metrics.head_density.push_back(share(entries, shape.queries * shape.keys));
  metrics.mask_bytes = result.mask.bytes();
  if (state.recording() != Recording::none) record(inputs, metrics.entries, &result.mask, state, context);
  if (compare) metrics.comparison = compare_with_dense(inputs, result.mask, result.attention, options, context);
  return result;
}

}  // namespace reticle
