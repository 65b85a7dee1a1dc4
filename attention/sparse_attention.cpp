#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>
#include <limits>
#include <span>
#include <sstream>

#include <nlohmann/json.hpp>

#include <reticle/attention/cuda/sequence.hpp>
#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/base/input_file.hpp>
#include <reticle/core/base/stopwatch.hpp>
#include <reticle/core/config/config.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/reshape.hpp>
#include <reticle/core/registry.hpp>

namespace reticle {

using Json = nlohmann::ordered_json;

namespace attention_config {

/// What a config says besides its maskers.
struct PipelineOptions {
  bool causal = false;
  std::uint64_t seed = 0;
  MergeRule merge = MergeRule::add;
  std::vector<std::filesystem::path> plugins;
  std::string description;

  static constexpr const char* docs[] = {
      "forbid keys after each query's own position, to every masker and in the result",
      "random seed; the same seed gives the same mask",
      "how p of positions chosen twice combine: min(1, a + b), max(a, b), or 1 - (1-a)(1-b)",
      "shared objects to load first: absolute, relative to the config, or in RETICLE_PLUGIN_PATH",
      "what this config is, for people"};
};

}  // namespace attention_config

namespace {

constexpr std::string_view kStages[] = {"prefill", "generation"};
/// Keys of a masker's entry that say where it serves; no config may have fields of these names.
constexpr std::string_view kSubsets[] = {"layers", "heads"};

/// Which layers or heads a masker serves: [0, "4-7", "16-"]; all when absent.
class Subset {
 public:
  bool all() const { return ranges_.empty(); }
  bool contains(Index i) const {
    return all() || std::any_of(ranges_.begin(), ranges_.end(),
                                [i](const Range& range) { return range.first <= i && i <= range.last; });
  }

  bool meets(const Subset& other) const {
    if (all() || other.all()) return true;
    return std::any_of(ranges_.begin(), ranges_.end(), [&](const Range& own) {
      return std::any_of(other.ranges_.begin(), other.ranges_.end(),
                         [&](const Range& theirs) { return own.first <= theirs.last && theirs.first <= own.last; });
    });
  }

  static Subset from_json(const Json& list, const JsonPlace& place) {
    Subset subset;
    if (!list.is_array() || list.empty()) place.fail("expected a list of numbers and ranges, as [0, \"4-7\", \"16-\"]");
    for (std::size_t i = 0; i < list.size(); ++i) {
      const std::optional<Range> range = range_of(list[i]);
      if (!range) (place / i).fail(list[i].dump() + R"(: expected a number or a range, as 0, "4-7" or "16-")");
      subset.ranges_.push_back(*range);
    }
    return subset;
  }

  Json to_json() const {
    Json list = Json::array();
    for (const Range& range : ranges_) {
      if (range.first == range.last) {
        list.push_back(range.first);
      } else {
        list.push_back(std::to_string(range.first) + "-" + (range.last == kOpen ? "" : std::to_string(range.last)));
      }
    }
    return list;
  }

  static Json schema(const char* description) {
    Json number = {{"type", "integer"}, {"minimum", 0}}, range = {{"type", "string"}, {"pattern", "^[0-9]+-[0-9]*$"}};
    Json items = {{"anyOf", Json::array({std::move(number), std::move(range)})}};
    return {{"description", description}, {"type", "array"}, {"minItems", 1}, {"items", std::move(items)}};
  }

 private:
  static constexpr Index kOpen = std::numeric_limits<Index>::max();
  struct Range {
    Index first, last;
  };

  static std::optional<Range> range_of(const Json& value) {
    if (value.is_number_unsigned() && value.get<std::uint64_t>() < static_cast<std::uint64_t>(kOpen))
      return Range{value.get<Index>(), value.get<Index>()};
    if (!value.is_string()) return std::nullopt;
    const auto& text = value.get_ref<const std::string&>();
    Range range{0, kOpen};
    const char* const end = text.data() + text.size();
    const auto first = std::from_chars(text.data(), end, range.first);
    if (first.ec != std::errc() || first.ptr == end || *first.ptr != '-') return std::nullopt;
    if (first.ptr + 1 == end) return range;
    const auto last = std::from_chars(first.ptr + 1, end, range.last);
    if (last.ec != std::errc() || last.ptr != end || range.first < 0 || range.last < range.first) return std::nullopt;
    return range;
  }

  std::vector<Range> ranges_;
};

struct MaskerEntry {
  const MaskerType* type;
  std::shared_ptr<const void> config;
  std::shared_ptr<const Masker> masker;
  Subset layers, heads;
};

std::vector<std::uint8_t> served_heads(const MaskerEntry& entry, const AttentionInputs& inputs) {
  std::vector<std::uint8_t> served(static_cast<std::size_t>(inputs.heads()));
  for (std::size_t head = 0; head < served.size(); ++head)
    served[head] = entry.heads.contains(static_cast<Index>(head)) ? 1 : 0;
  return served;
}

/// Heads that no masker serves attend to everything.
std::vector<std::uint8_t> unserved_heads(std::span<const MaskerEntry> entries, const AttentionInputs& inputs) {
  std::vector<std::uint8_t> unserved(static_cast<std::size_t>(inputs.heads()), 1);
  for (const MaskerEntry& entry : entries) {
    if (!entry.layers.contains(inputs.layer)) continue;
    const std::vector<std::uint8_t> served = served_heads(entry, inputs);
    for (std::size_t head = 0; head < served.size(); ++head) {
      if (served[head] != 0) unserved[head] = 0;
    }
  }
  return unserved;
}

/// Every position of the heads of a subset.
Mask rows_of_heads(std::span<const std::uint8_t> wanted, MaskShape shape) {
  shape.shared_batch = shape.shared_queries = true;
  return Mask::intervals(shape, [&](RowId row) {
    return Interval{0, wanted[static_cast<std::size_t>(row.head)] != 0 ? static_cast<std::int32_t>(shape.keys) : 0};
  });
}

std::vector<MaskerEntry> maskers_from(const Json& list, const JsonPlace& place) {
  if (!list.is_array()) place.fail(std::string("expected a list of maskers, got ") + list.type_name());
  std::vector<MaskerEntry> entries;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const JsonPlace here = place / i;
    if (!list[i].is_object()) here.fail(std::string("expected an object with a \"type\", got ") + list[i].type_name());
    const auto type = list[i].find("type");
    if (type == list[i].end() || !type->is_string()) here.fail("expected a \"type\" that names a masker");
    const MaskerType* found = nullptr;
    try {
      found = &Registry::global().at(type->get_ref<const std::string&>());
    } catch (const ConfigError& error) {
      (here / "type").fail(error.what());
    }
    Json parameters = list[i];
    parameters.erase("type");
    Subset subsets[2];
    for (std::size_t s = 0; s < 2; ++s) {
      const std::string key(kSubsets[s]);
      if (parameters.contains(key)) subsets[s] = Subset::from_json(parameters[key], here / key);
      parameters.erase(key);
    }
    const std::shared_ptr<void> config = found->factory.default_config();
    reticle::from_json(*found->factory.config_type, config.get(), parameters, here);
    entries.push_back({found, config, found->make(config.get()), subsets[0], subsets[1]});
    if (!entries.back().masker->samples()) continue;
    for (std::size_t j = 0; j < i; ++j) {
      const MaskerEntry& other = entries[j];
      if (other.masker->samples() && other.layers.meets(subsets[0]) && other.heads.meets(subsets[1]))
        here.fail("\"" + found->name + "\" samples keys that \"" + other.type->name + "\", at " + std::to_string(j) +
                  ", has sampled already, so that their p would hold for neither; expected one sampler for a head");
    }
  }
  return entries;
}

Json maskers_to(const std::vector<MaskerEntry>& entries) {
  Json list = Json::array();
  for (const MaskerEntry& entry : entries) {
    Json masker = {{"type", entry.type->name}};
    masker.update(reticle::to_json(*entry.type->factory.config_type, entry.config.get()));
    if (!entry.layers.all()) masker[std::string(kSubsets[0])] = entry.layers.to_json();
    if (!entry.heads.all()) masker[std::string(kSubsets[1])] = entry.heads.to_json();
    list.push_back(std::move(masker));
  }
  return list;
}

double norm(std::span<const double> squares) {
  double sum = 0;
  for (const double square : squares) sum += square;
  return std::sqrt(sum);
}

/// Error and recovered mass of a sparse result against dense attention over the same inputs.
Comparison compare_with_dense(const AttentionInputs& inputs, const Mask& mask, const AttentionResult& sparse,
                              const AttentionOptions& options, const Context& context) {
  Comparison comparison;
  AttentionOptions plain = options;
  plain.weights = false;
  const Stopwatch watch;
  const AttentionResult dense = attention(inputs, Mask::full(inputs.shape()), plain, context);
  comparison.dense_seconds = watch.seconds();

  const auto heads = static_cast<std::size_t>(inputs.batch() * inputs.heads());
  const auto rows = static_cast<std::size_t>(inputs.queries_length());
  const auto per_head = rows * static_cast<std::size_t>(inputs.values.size(3));
  std::vector<double> error(heads, 0), size(heads, 0);
  dispatch_float(inputs.queries.dtype, "output", [&]<class T>() {
    const auto* ours = static_cast<const T*>(sparse.output.view().data);
    const auto* truth = static_cast<const T*>(dense.output.view().data);
    for (std::size_t i = 0; i < heads * per_head; ++i) {
      const double difference = static_cast<double>(to_float(truth[i])) - static_cast<double>(to_float(ours[i]));
      error[i / per_head] += difference * difference;
      size[i / per_head] += static_cast<double>(to_float(truth[i])) * static_cast<double>(to_float(truth[i]));
    }
  });
  const auto ratio = [](double numerator, double denominator) {
    return denominator > 0 ? numerator / denominator : numerator;
  };
  comparison.relative_error = ratio(norm(error), norm(size));
  for (std::size_t head = 0; head < heads; ++head)
    comparison.head_relative_error.push_back(ratio(std::sqrt(error[head]), std::sqrt(size[head])));

  // The mass that a set of keys holds is exp(LSE of the set - LSE of all); sampling weights and sinks are left out of
  // both.
  plain.sink_logits = {};
  const bool reusable = options.sink_logits.empty();
  const AttentionResult covered =
      reusable && !mask.weighted() ? AttentionResult() : attention(inputs, support(mask, context), plain, context);
  const AttentionResult all =
      reusable ? AttentionResult() : attention(inputs, Mask::full(inputs.shape()), plain, context);
  const auto lse_covered = (reusable && !mask.weighted() ? sparse : covered).lse.span<float>();
  const auto lse_all = (reusable ? dense : all).lse.span<float>();
  comparison.least_mass = 1;
  for (std::size_t head = 0; head < heads; ++head) {
    double sum = 0;
    for (std::size_t row = head * rows; row < (head + 1) * rows; ++row) {
      const bool nothing_to_cover = lse_all[row] == -std::numeric_limits<float>::infinity();
      const double mass = nothing_to_cover ? 1.0 : std::exp(static_cast<double>(lse_covered[row]) - lse_all[row]);
      comparison.least_mass = std::min(comparison.least_mass, mass);
      sum += mass;
    }
    comparison.head_mean_mass.push_back(rows == 0 ? 1 : sum / static_cast<double>(rows));
    comparison.mean_mass += comparison.head_mean_mass.back() / static_cast<double>(heads);
  }
  return comparison;
}

}  // namespace

struct SparseAttention::Config {
  attention_config::PipelineOptions options;
  bool by_stage = false;
  std::vector<MaskerEntry> stages[2];  // the same twice when not by stage
};

SparseAttention::SparseAttention(std::shared_ptr<const Config> config) : config_(std::move(config)) {}

SparseAttention SparseAttention::from_json(std::string_view text, const std::filesystem::path& directory,
                                           Plugins plugins) {
  const JsonPlace place{"", directory};
  const Json document = parse_json(text);
  const FieldType& options_type = *type_of<attention_config::PipelineOptions>();
  std::vector<std::string_view> known{"maskers", kStages[0], kStages[1], "$schema"};
  for (const Field& field : options_type.fields()) known.push_back(field.name);
  if (document.is_array()) place.fail(R"(is a list; expected an object, with the maskers as {"maskers": [...]})");
  require_keys(document, place, known);

  auto config = std::make_shared<Config>();
  Json options = document;
  for (const std::string_view key : {std::string_view("maskers"), kStages[0], kStages[1], std::string_view("$schema")})
    options.erase(std::string(key));
  // Plugins keep the paths as written: they are looked for in more places than beside the config.
  reticle::from_json(options_type, &config->options, options, {place.pointer, ""});
  if (plugins == Plugins::refuse && !config->options.plugins.empty())
    (place / "plugins")
        .fail("names " + config->options.plugins.front().string() +
              ", whose code would run; plugins are refused here (reticle check --plugins and, in Python, "
              "plugins=True load them)");
  for (const std::filesystem::path& plugin : config->options.plugins)
    Registry::global().load_plugin(find_plugin(plugin, directory));

  if (document.contains("maskers")) {
    for (const std::string_view stage : kStages) {
      if (document.contains(stage)) (place / stage).fail("a config has either \"maskers\" or stages, not both");
    }
    config->stages[0] = config->stages[1] = maskers_from(document["maskers"], place / "maskers");
  } else {
    config->by_stage = true;
    for (std::size_t stage = 0; stage < 2; ++stage) {
      const std::string name(kStages[stage]);
      if (const std::string other(kStages[1 - stage]); !document.contains(name) && document.contains(other))
        place.fail("\"" + name + "\" is missing beside \"" + other + R"("; dense attention is {"maskers": []})");
      if (!document.contains(name))
        place.fail(R"("maskers" is missing (or both "prefill" and "generation", each {"maskers": [...]}))");
      const std::string_view only[] = {"maskers"};
      require_keys(document[name], place / name, only);
      if (!document[name].contains("maskers")) (place / name).fail("\"maskers\" is missing");
      config->stages[stage] = maskers_from(document[name]["maskers"], place / name / "maskers");
    }
  }
  return SparseAttention(std::move(config));
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
  const attention_config::PipelineOptions &first = prefill.config_->options, &second = generation.config_->options;
  if (first.seed != second.seed || first.merge != second.merge)
    throw ConfigError("a prefill and a generation config that go together need the same \"seed\" and \"merge\"");
  auto config = std::make_shared<Config>(*prefill.config_);
  config->by_stage = true;
  config->options.causal = first.causal || second.causal;
  for (const std::filesystem::path& plugin : second.plugins) {
    if (std::find(first.plugins.begin(), first.plugins.end(), plugin) == first.plugins.end())
      config->options.plugins.push_back(plugin);
  }
  config->stages[1] = generation.config_->stages[1];
  return SparseAttention(std::move(config));
}

std::string SparseAttention::to_json() const {
  Json document = reticle::to_json(*type_of<attention_config::PipelineOptions>(), &config_->options);
  if (!config_->by_stage) {
    document["maskers"] = maskers_to(config_->stages[0]);
  } else {
    for (std::size_t stage = 0; stage < 2; ++stage)
      document[std::string(kStages[stage])] = {{"maskers", maskers_to(config_->stages[stage])}};
  }
  return document.dump(2);
}

const std::string& SparseAttention::description() const { return config_->options.description; }
bool SparseAttention::causal() const { return config_->options.causal; }

std::vector<std::string> SparseAttention::maskers(Stage stage) const {
  std::vector<std::string> types;
  for (const MaskerEntry& entry : config_->stages[static_cast<std::size_t>(stage)]) types.push_back(entry.type->name);
  return types;
}

SparseAttention::Ruled SparseAttention::ruled(Stage stage, int layer, Index keys, const Context& context) const {
  const std::vector<MaskerEntry>& entries = config_->stages[static_cast<std::size_t>(stage)];
  Ruled found;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i].layers.contains(layer)) continue;
    const std::string name = "masker " + std::to_string(i) + ", \"" + entries[i].type->name + '"';
    if (!entries[i].heads.all()) return {{}, name + ", serves some heads only: it chooses on the CPU"};
    const std::vector<Rule> of_masker = entries[i].masker->rules(keys, layer);
    if (of_masker.empty() || !std::ranges::all_of(of_masker, &Rule::has_kernel))
      return {{}, name + ", has no rule for a GPU: it chooses on the CPU"};
    for (Rule rule : of_masker) {
      rule.seed = derive_seed(context.seed, i);
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
  return std::ranges::any_of(config_->stages[static_cast<std::size_t>(stage)],
                             [&](const MaskerEntry& entry) { return entry.layers.contains(layer); });
}

Index SparseAttention::observed_queries() const {
  Index most = 0;
  for (const MaskerEntry& entry : config_->stages[static_cast<std::size_t>(Stage::generation)])
    most = std::max(most, entry.masker->observed_queries());
  return most;
}

std::vector<std::string> SparseAttention::maskers_of_whole_prompts(Stage stage) const {
  std::vector<std::string> types;
  for (const MaskerEntry& entry : config_->stages[static_cast<std::size_t>(stage)]) {
    if (!entry.masker->selects_by_query()) types.push_back(entry.type->name);
  }
  return types;
}

SequenceState::Lease::Lease(const SequenceState& state) : leased_(state.leased_.value) {
  if (leased_.exchange(true))
    throw ValueError(
        "this state is in use by another call: a masker must not touch the state that it is called with, "
        "and every thread needs a state of its own");
}

SequenceState::Lease::~Lease() { leased_ = false; }

cuda::DeviceSequence& SequenceState::on_gpu() {
  if (on_gpu_ == nullptr) on_gpu_ = std::make_shared<cuda::DeviceSequence>();
  return *on_gpu_;
}

void SequenceState::reset() {
  const Lease lease(*this);
  layers_.clear();
  if (on_gpu_ != nullptr) on_gpu_->reset();
}

void SequenceState::truncate(Index keys) {
  const Lease lease(*this);
  if (keys < 0) throw ValueError("truncate: " + std::to_string(keys) + " keys; expected 0 or more");
  for (auto& [index, layer] : layers_) layer.truncate(keys);
  if (on_gpu_ != nullptr) on_gpu_->truncate(keys);
}

void SequenceState::select(std::span<const Index> rows) {
  const Lease lease(*this);
  for (const Index row : rows) {
    if (row < 0) throw ValueError("select: row " + std::to_string(row) + "; expected rows of the batch, from 0");
  }
  for (auto& [index, layer] : layers_) layer.select(rows);
  if (on_gpu_ != nullptr) on_gpu_->select();
}

SequenceState SequenceState::fork() const {
  const Lease lease(*this);
  SequenceState copy;
  for (const auto& [index, layer] : layers_) copy.layers_[index] = layer.fork();
  return copy;
}

AttentionInputs SparseAttention::configured(const AttentionInputs& inputs) const {
  AttentionInputs own = inputs;
  own.causal |= config_->options.causal;
  own.validate();
  return own;
}

Context SparseAttention::configured(const Context& context) const {
  Context own = context;
  own.seed = derive_seed(config_->options.seed, context.seed);
  return own;
}

void SparseAttention::require_forgetful() const {
  std::string names;
  for (const MaskerEntry& entry : config_->stages[static_cast<std::size_t>(Stage::generation)]) {
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
  const std::vector<MaskerEntry>& entries = config_->stages[static_cast<std::size_t>(Stage::generation)];
  Mask mask = rows_of_heads(unserved_heads(entries, inputs), inputs.one_query());
  for (const MaskerEntry& entry : entries) {
    if (!entry.layers.contains(inputs.layer)) continue;
    Mask kept = entry.masker->lasting(inputs, first, state.layer(inputs.layer), context);
    if (!entry.heads.all())
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
    for (const MaskerEntry& entry : config_->stages[static_cast<std::size_t>(Stage::generation)]) {
      if (entry.layers.contains(inputs.layer)) entry.masker->observe(inputs, layer_state, context);
    }
  }
  const std::vector<MaskerEntry>& entries = config_->stages[static_cast<std::size_t>(inputs.stage)];
  const auto visible = [&](const Mask& m) { return inputs.causal ? restrict_causal(m, context) : m; };
  Mask mask = visible(rows_of_heads(unserved_heads(entries, inputs), inputs.shape()));
  if (contributions != nullptr && (mask.nnz() > 0 || entries.empty())) contributions->push_back({"dense", mask});
  if (previous) {
    const Mask given = visible(broadcast_to(*previous, inputs.shape()));
    mask = entries.empty() ? given : merge(mask, given, MergeRule::add, context);
  }
  Context own = context;
  AttentionInputs own_inputs = inputs;
  if (inputs.stored) require_forgetful();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i].layers.contains(inputs.layer)) {
      metrics.maskers.push_back({entries[i].type->name});
      if (contributions != nullptr) contributions->push_back({entries[i].type->name, Mask::empty(inputs.shape())});
      continue;
    }
    const Stopwatch masker_watch;
    own.seed = derive_seed(context.seed, i);
    const Index before = mask.nnz();
    const std::vector<std::uint8_t> wanted = served_heads(entries[i], inputs);
    own_inputs.wanted_heads = wanted;
    Mask added = entries[i].masker->select(own_inputs, mask, layer_state, own);
    if (!added.shape().same_logical(inputs.shape()))
      throw ShapeError("masker \"" + entries[i].type->name + "\" returned a mask of shape " + added.shape().describe() +
                       "; expected " + inputs.shape().describe());
    if (!entries[i].heads.all()) added = intersect(added, rows_of_heads(wanted, inputs.shape()), context);
    added = visible(added);
    if (contributions != nullptr)
      contributions->push_back({entries[i].type->name, broadcast_to(subtract(added, mask, context), inputs.shape())});
    mask = merge(mask, added, config_->options.merge, context);
    metrics.maskers.push_back({entries[i].type->name, mask.nnz() - before, masker_watch.seconds()});
  }
  metrics.mask_seconds = watch.seconds();
  return mask;
}

Mask SparseAttention::mask(const AttentionInputs& inputs, SequenceState& state, const Context& context,
                           const std::optional<Mask>& previous) const {
  const AttentionInputs own = configured(inputs);
  if (own.queries.device.kind == Device::Kind::cuda) {
    if (previous) throw DeviceError("a mask to start from: expected tensors on the CPU; the queries lie on a GPU");
    return mask_on_gpu(own, state, configured(context));
  }
  Metrics metrics;
  return build(own, previous, state, configured(context), metrics);
}

Attended SparseAttention::attend(const AttentionInputs& given, SequenceState& state, const AttentionOptions& options,
                                 Wanted wanted, const Context& context) const {
  const AttentionInputs inputs = configured(given);
  if (inputs.queries.device.kind == Device::Kind::cuda)
    return attend_on_gpu(inputs, state, options, wanted, configured(context));
  if (wanted.output != nullptr || wanted.lse != nullptr)
    throw DeviceError("attend into memory of the caller's: expected tensors on a GPU; the queries lie on the CPU");
  Metrics metrics;
  Mask mask = build(inputs, std::nullopt, state, configured(context), metrics);
  AttentionResult result = attention(inputs, mask, options, context);
  const Index entries = mask.nnz();
  return {std::move(result), std::move(mask), entries};
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
  if (compare) metrics.comparison = compare_with_dense(inputs, result.mask, result.attention, options, context);
  return result;
}

std::string schema(std::string_view type) {
  const auto masker_schema = [](const MaskerType& masker) {
    const std::shared_ptr<void> defaults = masker.factory.default_config();
    Json schema = schema_of(*masker.factory.config_type, defaults.get());
    Json name = {{"const", masker.name}};
    schema["properties"]["type"] = std::move(name);
    schema["properties"][std::string(kSubsets[0])] = Subset::schema("layers that it serves; all when absent");
    schema["properties"][std::string(kSubsets[1])] = Subset::schema("query heads that it serves; all when absent");
    Json required = Json::array({"type"});
    if (schema.contains("required"))
      required.insert(required.end(), schema["required"].begin(), schema["required"].end());
    schema["required"] = std::move(required);
    schema["title"] = masker.name;
    schema["description"] = std::string(masker.docs.summary);
    return schema;
  };
  Json document = {{"$schema", "https://json-schema.org/draft/2020-12/schema"}};
  if (!type.empty()) {
    document.update(masker_schema(Registry::global().at(type)));
    return document.dump(2);
  }
  const attention_config::PipelineOptions defaults;
  document.update(schema_of(*type_of<attention_config::PipelineOptions>(), &defaults));
  document["title"] = "reticle config";
  Json any = Json::array();
  for (const MaskerType* masker : Registry::global().list()) any.push_back(masker_schema(*masker));
  Json items = {{"anyOf", std::move(any)}};
  Json list = {{"type", "array"}, {"items", std::move(items)}};
  document["$defs"]["maskers"] = std::move(list);
  const Json reference = {{"$ref", "#/$defs/maskers"}};
  Json stage = {{"type", "object"}, {"required", Json::array({"maskers"})}, {"additionalProperties", false}};
  stage["properties"]["maskers"] = reference;
  document["properties"]["maskers"] = reference;
  for (const std::string_view name : kStages) document["properties"][std::string(name)] = stage;
  document["properties"]["$schema"]["type"] = "string";
  Json flat, staged;
  flat["required"] = Json::array({"maskers"});
  staged["required"] = Json::array({"prefill", "generation"});
  document["oneOf"] = Json::array({std::move(flat), std::move(staged)});
  return document.dump(2);
}

std::string describe_masker(std::string_view type) {
  const MaskerType& masker = Registry::global().at(type);
  std::ostringstream text;
  text << "## " << masker.name << "\n\n"
       << masker.docs.summary << "\n\n- Source: " << masker.docs.source << "\n- Selects: " << masker.docs.rule
       << "\n- Cost: " << masker.docs.cost;
  if (!masker.docs.extras.empty()) text << "\n- Needs: " << masker.docs.extras;
  text << "\n- Origin: " << masker.origin << "\n";
  const std::span<const Field> fields = masker.factory.config_type->fields();
  if (fields.empty()) {
    text << "\nNo parameters.\n";
    return text.str();
  }
  text << "\n| parameter | type | default | meaning |\n|---|---|---|---|\n";
  const std::shared_ptr<void> defaults = masker.factory.default_config();
  for (const Field& field : fields) {
    text << "| `" << field.name << "` | " << type_name(*field.type) << " | "
         << (field.required ? "required" : "`" + reticle::to_json(*field.type, field.in(defaults.get())).dump() + "`")
         << " | " << field.doc << " |\n";
  }
  return text.str();
}

}  // namespace reticle
