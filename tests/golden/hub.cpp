// Cases of sparse-attention-hub: masks and outputs of its maskers, masks merged and applied, config errors.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <unistd.h>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <reticle/attention/layers/heads.hpp>
#include <reticle/core/config/field_names.hpp>
#include <reticle/core/mask/apply.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>
#include <reticle/core/ops/hash_codes.hpp>
#include <reticle/core/ops/statistics.hpp>
#include <reticle/core/registry.hpp>

#include "golden/case.hpp"

namespace reticle::golden {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class HubCase : public Case {
 public:
  explicit HubCase(const Case& file) : Case(file) {}
  HubCase(const HubCase&) = delete;
  HubCase& operator=(const HubCase&) = delete;
  ~HubCase() {
    std::error_code ignored;
    if (!channel_file_.empty()) std::filesystem::remove(channel_file_, ignored);
  }

  Report run() {
    struct Kind {
      void (HubCase::*replay)();
      std::map<std::string, double> tolerances = {};
    };
    static const std::map<std::string, Kind> kinds{
        {"masked_attention", {&HubCase::masked_attention}},
        {"decode_steps", {&HubCase::decode_steps, {{"mask", 2e-5}, {"output_abs", 1e-4}}}},
        {"weighted_attention", {&HubCase::weighted_attention}},
        {"mask_merge", {&HubCase::mask_merge, {{"abs", 1e-6}}}},
        {"mask_apply", {&HubCase::mask_apply, {{"abs", 1e-5}, {"inverse_relative_without_eps", 1e-4}}}},
        {"mask_row_wise", {&HubCase::mask_row_wise, {{"abs", 0}}}},
        {"mask_full_empty", {&HubCase::mask_full_empty, {{"abs", 0}}}},
        {"config_errors", {&HubCase::config_errors}},
        {"effective_size", {&HubCase::effective_size}},
        {"normal_quantile", {&HubCase::quantile, {{"abs", 1e-8}}}},
        {"objective", {&HubCase::objective, {{"abs", 1e-12}}}},
    };
    const std::string name = json().value("kind", json().value("op", std::string("?")));
    const auto kind = kinds.find(name);
    if (kind == kinds.end()) return unknown("\"" + name + "\" is not supported");
    for (const Json& masker : json().value("maskers", Json::array())) {
      const std::string type = masker.at("type").get<std::string>();
      if (!Registry::global().contains(type)) return unknown("masker \"" + type + "\" is not supported");
    }
    set_default_tolerances(kind->second.tolerances);
    set_default_tolerances(
        {{"mask", 1e-6}, {"output_abs", 2e-5}, {"weights_abs", 1e-5}, {"numerator_denominator_relative", 1e-4}});
    (this->*kind->second.replay)();
    return report_;
  }

 private:
  static Report unknown(const std::string& why) { return {Outcome::unknown, 0, why}; }

  /// Reports a documented deviation, by its number in docs/deviations.md.
  void deviate(int number) {
    static const std::map<int, const char*> deviations{
        {1, "the reference turns short sequences into dense attention"},
        {2, "the reference runs an empty mask as dense attention, ours attends to nothing"},
        {3, "the reference's local window erases what lies after the query"},
        {4, "with too few candidates, the reference spills over active positions"},
        {10, "the reference's causal masker does nothing"},
        {12, "the reference's adaptive sampling takes an empty mask for a full one"},
        {14, "the reference hashes by the largest norm of the batch, ours of each sequence"},
        {19, "the reference's fractions of short contexts keep no key, ours one"}};
    report_.deviate(fmt::format("{} (deviation {})", deviations.at(number), number));
  }

  /// The tensors of a case, or those of a step, which sees the first `length` keys. What the reference drew at random,
  /// "<recorded><name>", is handed to the maskers as the extra tensor <name>.
  AttentionInputs inputs(const std::string& step = "", std::optional<Index> length = {},
                         const std::string& recorded = "recorded.") {
    AttentionInputs inputs{tensor(step + "queries"), tensor("keys"), tensor("values")};
    if (length) {
      inputs.keys = inputs.keys.slice(2, 0, *length);
      inputs.values = inputs.values.slice(2, 0, *length);
      inputs.stage = Stage::generation;
    } else {
      inputs.attention_mask = find_tensor("attention_mask");
    }
    inputs.scaling = json().at("scaling").get<float>();
    inputs.layer = json().value("layer_idx", 0);
    recorded_.clear();
    for (const auto& [name, view] : tensors().tensors()) {
      if (name.starts_with(recorded)) recorded_.push_back({name.substr(recorded.size()), view});
    }
    inputs.extras = recorded_;
    inputs.validate();
    return inputs;
  }

  /// The case's maskers [begin, end) as a pipeline, in the reference's modes.
  SparseAttention pipeline(std::size_t begin, std::size_t end) {
    Json maskers = Json::array();
    for (std::size_t i = begin; i < end; ++i) {
      Json masker = json().at("maskers")[i];
      if (masker.contains("channel_selection")) masker["sorted_channel_file"] = write_channels(masker);
      // Weights of a learned hash lie in the case's own file, under the names that the masker looks for.
      if (masker.contains("hat_bits")) masker["hat_weight_file"] = std::filesystem::absolute(tensors().path()).string();
      if (Json::parse(schema(masker["type"].get<std::string>()))["properties"].contains("replacement"))
        masker["replacement"] = true;
      maskers.push_back(std::move(masker));
    }
    return SparseAttention::from_json(Json{{"maskers", std::move(maskers)}}.dump(), path().parent_path());
  }

  /// Writes the recorded channels to a file that the masker can read, and which is removed with the case.
  std::string write_channels(const Json& masker) {
    const TensorView& channels = tensor("recorded.sorted_channels");
    Json file;
    Json& table = file["model.layers." + std::to_string(json().value("layer_idx", 0)) + ".self_attn." +
                       masker["channel_selection"].get<std::string>()] = Json::array();
    for (Index head = 0; head < channels.size(0); ++head) {
      const std::span<const Index> row =
          rows_of(values<Index>("recorded.sorted_channels"), head, head + 1, channels.size(1));
      table.push_back(std::vector<Index>(row.begin(), row.end()));
    }
    channel_file_ = std::filesystem::temp_directory_path() / ("reticle-verify-" + std::to_string(getpid()) + ".json");
    std::ofstream(channel_file_) << file.dump();
    return channel_file_.string();
  }

  // --- kinds ---------------------------------------------------------------------------------------------------------

  void masked_attention() {
    const AttentionInputs in = inputs();
    const MaskShape shape = in.shape();
    const Mask start = has("previous_mask_dense") ? mask("previous_mask_dense") : Mask::empty(shape);
    const bool dense = is("full") || is("empty");  // the reference runs an empty mask as dense attention
    const std::size_t count = json().at("maskers").size();
    // Each masker from the reference's mask before it, so that a deviation of one does not hide what the next does.
    Mask before = start;
    for (std::size_t i = 0; i < count; ++i) {
      const Mask theirs = i + 1 < count ? recorded_csr("stage" + std::to_string(i) + ".", shape)
                          : dense       ? Mask::full(shape)
                                        : mask("mask_dense");
      compare_step(i, theirs, before, in);
      before = theirs;
    }
    SequenceState state;
    if (report_.outcome == Outcome::pass && count > 0 && !compares_scores())
      compare("the mask of the whole pipeline", allowed(pipeline(0, count).mask(in, state, {}, start), in),
              allowed(before, in), tolerance("mask"));
    compare_attention(in, dense ? Mask::full(shape) : before, {});
    if (count == 0 && pipeline(0, 0).mask(in, state).kind() != MaskKind::full)
      fail("no maskers are not dense attention");
    if (count > 0 && !dense) compare("density", before.density(), expected("density"), 1e-6);
  }

  /// One sequence, one state; step i sees the first k_len keys.
  void decode_steps() {
    SequenceState state;
    const SparseAttention maskers = pipeline(0, json().at("maskers").size());
    const bool draws_by_norm =
        std::ranges::any_of(json().at("maskers"), [](const Json& masker) { return masker.at("type") == "magic_pig"; });
    for (std::size_t i = 0; i < json().at("steps").size(); ++i) {
      const std::string step = "step" + std::to_string(i) + ".";
      const AttentionInputs in = inputs(step, json().at("steps")[i].at("k_len").get<Index>(),
                                        (has(step + "recorded.codes") ? step : "step0.") + "recorded.");
      const Mask reference = mask(step + "mask_dense"), ours = maskers.mask(in, state);
      if (draws_by_norm && largest_difference(ours, reference) > tolerance("mask") &&
          longest_sequence_agrees(ours, reference, in)) {
        deviate(14);
      } else {
        compare(step + "mask", ours, reference, tolerance("mask"));
      }
      compare_values(step + "output", attention(in, reference).output.span<float>(), "output_abs");
    }
  }

  void weighted_attention() {
    const AttentionInputs in = inputs();
    const Mask ours = is("empty") || is("full") ? Mask::full(in.shape()) : mask("mask_dense");
    AttentionOptions options;
    if (has("sink_logits")) options.sink_logits = values<float>("sink_logits");
    compare_attention(in, ours, options);
    if (has("denominator")) compare_sums(in, ours);
    if (!is("empty")) return;
    const AttentionResult nothing = attention(in, Mask::empty(in.shape()));
    for (const float value : nothing.output.span<float>()) compare("output of an empty mask", value, 0, 0);
    deviate(2);
  }

  void mask_merge() {
    for (const std::string pair : {"ab", "ac", "bc"}) {
      const std::string name = "merge_" + pair;
      if (!has(name)) continue;
      const Mask merged = merge(mask(pair.substr(0, 1)), mask(pair.substr(1)));
      compare_values(name, to_dense(merged), "abs");
      compare_csr(name, merged);
      const FlatCsr flat = to_flat_csr(merged);
      const Mask again = from_flat_csr(merged.shape(), flat.ptr, flat.indices, flat.data);
      if (!(again == merged)) fail(name + " does not survive the flattened form");
    }
  }

  void mask_apply() {
    const Mask ours = mask("mask");
    compare_values("apply_x", apply(ours, values<float>("x")), "abs");
    const auto compare_relative = [&](const char* name, std::span<const float> x) {
      const std::span<const float> theirs = values<float>(name, static_cast<Index>(x.size()));
      for (std::size_t i = 0; i < x.size(); ++i)
        report_.difference(name, std::abs(x[i] - theirs[i]) / std::max(1.0f, std::abs(theirs[i])),
                           tolerance("inverse_relative_without_eps"));
    };
    compare_relative("apply_inverse_x", apply_inverse(ours, values<float>("x")));
    const Array<float> weighted = apply_inverse(ours, values<float>("y"));
    std::vector<float> sums(static_cast<std::size_t>(ours.shape().rows()), 0.0f);
    for (std::size_t i = 0; i < weighted.size(); ++i)
      sums[i / static_cast<std::size_t>(ours.shape().keys)] += weighted[i];
    compare_relative("apply_inverse_sum_y", sums);
  }

  void mask_row_wise() {
    const MaskShape shape = recorded_shape("dense");
    const TensorView& rows = tensor("row_idx");
    for (const std::string suffix : {"", "_padded"}) {
      const Mask ours = Mask::from_row_indices(shape, rows.size(rows.rank - 1), values<Index>("row_idx" + suffix),
                                               values<float>("row_values"));
      compare_values("dense" + suffix, to_dense(ours), "abs");
      if (!(recorded_csr(suffix.empty() ? "" : "padded.", shape) == ours))
        fail("dense" + suffix + " differs from its flattened form");
    }
  }

  void mask_full_empty() {
    const MaskShape shape = recorded_shape("full.dense");
    const Mask full = Mask::full(shape), empty = Mask::empty(shape);
    for (const auto& [name, ours] : {std::pair{"full", &full}, std::pair{"empty", &empty}}) {
      compare(name, *ours, mask(std::string(name) + ".dense"), 0);
      compare_csr(name, *ours);
    }
    if (full.density() != 1 || empty.density() != 0) fail("density");
    if (merge(full, empty).kind() != MaskKind::full || merge(empty, empty).kind() != MaskKind::empty)
      fail("merge of full and empty");
  }

  void config_errors() {
    std::size_t checked = 0;
    for (const Json& entry : json().at("cases")) {
      Json masker = entry.at("params");
      masker["type"] = entry.at("type");
      if (!Registry::global().contains(entry.at("type").get<std::string>())) continue;
      ++checked;
      try {
        SparseAttention::from_json(Json{{"maskers", Json::array({masker})}}.dump());
        fail("accepted " + masker.dump());
      } catch (const ConfigError&) {
        continue;  // as it should
      }
    }
    if (checked == 0) report_ = unknown("none of its maskers is built yet");
  }

  void effective_size() {
    for (const Json& entry : json().at("cases")) {
      const Size size =
          entry.at("is_float").get<bool>() ? Size(entry.at("size").get<double>()) : Size(entry.at("size").get<Index>());
      const Index ours = size.resolve(entry.at("k_len").get<Index>()), recorded = entry.at("effective").get<Index>();
      if (size.is_fraction() && size.positive() && recorded == 0 && ours == 1) {
        deviate(19);
      } else if (ours != recorded) {
        fail(fmt::format("{} resolves to {}", entry.dump(), ours));
      }
    }
  }

  void quantile() {
    for (const Json& entry : json().at("cases"))
      compare("quantile", normal_quantile(1 - entry.at("delta").get<double>()),
              entry.at("ppf_of_1_minus_delta").get<double>(), tolerance("abs"));
  }

  /// The formulas that the Python package's search (reticle/search.py) minimises, checked against the recorded scores.
  void objective() {
    for (const Json& entry : json().at("cases")) {
      const auto percent = entry.at("objective").get<double>();
      const auto error = entry.at("error").get<double>(), density = entry.at("density").get<double>();
      const double ours = percent < 0 ? error + 0.1 * density + (density > 0.5 ? 5.0 : 0.0)
                                      : 0.99 * error + 0.01 * density + 10 * std::max(0.0, density - percent / 100);
      compare("score", ours, entry.at("score").get<double>(), tolerance("abs"));
    }
  }

  // --- comparisons ---------------------------------------------------------------------------------------------------

  /// Compares with the tensor `name`, by the manifest's tolerance `tolerance_name`.
  void compare_values(const std::string& name, std::span<const float> ours, const char* tolerance_name) {
    compare(name, ours, values<float>(name), {tolerance(tolerance_name)});
  }

  /// The shape of a mask's tensor; FormatError when the manifest has another.
  MaskShape recorded_shape(const char* name) const {
    const TensorView& view = tensor(name);
    if (!std::ranges::equal(json().at("shape").get<std::vector<Index>>(),
                            std::span(view.shape).first(static_cast<std::size_t>(view.rank))))
      throw FormatError(path().string() + ": shape: is not that of \"" + name + "\", " + view.describe());
    return mask(name).shape();
  }

  Mask recorded_csr(const std::string& prefix, const MaskShape& shape) const {
    return from_flat_csr(shape, values<Index>(prefix + "ptr"), values<Index>(prefix + "indices"),
                         values<float>(prefix + "data"));
  }

  /// Compares a mask's flattened form with the tensors <name>.ptr, .indices and .data.
  void compare_csr(const std::string& name, const Mask& ours) {
    const FlatCsr flat = to_flat_csr(ours);
    if (!std::ranges::equal(flat.ptr, values<Index>(name + ".ptr")) ||
        !std::ranges::equal(flat.indices, values<Index>(name + ".indices")))
      fail(name + " has other indices");
    compare_values(name + ".data", flat.data, "abs");
  }

  bool is(const std::string& kind) const { return json().at("expected").at("is_" + kind).get<bool>(); }
  /// Whether the selected scores are compared in place of the masks, because ties may be broken differently.
  bool compares_scores() const { return json().value("compare_mask", "") == "scores_at_boundary"; }

  static Index resolve(const Json& size, Index keys) {
    return size.is_number_float() ? Size(size.get<double>()).resolve(keys) : size.get<Index>();
  }

  /// Whether the reference returns its full mask here because the sequence is short.
  static bool early_out(const Json& masker, const MaskShape& shape) {
    const auto at_least_keys = [&](const char* size, Index more) {
      return masker.contains(size) && shape.keys <= resolve(masker[size], shape.keys) + more;
    };
    if (masker.contains("pq_bits"))  // product quantisation needs more keys than it clusters and keeps
      return at_least_keys("heavy_size", masker["init_offset"].get<Index>() + shape.queries +
                                             (Index{1} << masker["pq_bits"].get<Index>()));
    return at_least_keys("window_size", shape.queries) || at_least_keys("sink_size", 0) ||
           at_least_keys("heavy_size", masker.contains("group_factor") ? shape.queries : 0) ||
           (masker.contains("top_p") && masker["top_p"].get<double>() >= 1) ||
           (masker.contains("local_offset") &&
            shape.keys - resolve(masker["init_offset"], shape.keys) - resolve(masker["local_offset"], shape.keys) < 2);
  }

  /// The mask without the positions that the attention mask forbids. Their weight is 0 whether a mask holds them or
  /// not.
  static Mask allowed(const Mask& mask, const AttentionInputs& in) {
    if (!in.attention_mask) return mask;
    const Mask not_forbidden = Mask::from_selections(in.shape(), [&](RowId row, Selection& selection) {
      const AttentionMaskRow bias(*in.attention_mask, row);
      for (std::int32_t key = 0; key < in.keys_length(); ++key) {
        if (bias(key) > -kInfinity) selection.indices.push_back(key);
      }
    });
    return intersect(mask, not_forbidden);
  }

  /// Compares one masker's result with the reference's, from the same mask before it. Recognises the documented
  /// deviations.
  void compare_step(std::size_t i, const Mask& theirs, const Mask& before, const AttentionInputs& in) {
    const Json& masker = json().at("maskers")[i];
    const std::string type = masker.at("type");
    Mask ours;
    try {
      SequenceState state;
      ours = pipeline(i, i + 1).mask(in, state, {}, before);
    } catch (const ShapeError&) {  // the recorded draws do not fit another budget
      if (type != "adaptive_sampling" || before.nnz() > 0) throw;
      return deviate(12);
    }
    const auto same = [&](const Mask& x, const Mask& y) { return largest_difference(x, y) <= tolerance("mask"); };
    const Mask a = allowed(ours, in), b = allowed(theirs, in);
    if (same(a, b)) return compare("mask", a, b, tolerance("mask"));
    if (compares_scores() && type == "hash_attention_top_k") return compare_hash_scores(masker, a, b, in);
    const Mask full = Mask::full(in.shape());
    if (theirs == full && early_out(masker, in.shape())) return deviate(1);
    if (type == "local" && same(restrict_causal(a), restrict_causal(b))) return deviate(3);
    if ((type == "oracle_top_k" || type == "oracle_top_p") &&
        same(without_short_rows(masker, a, before, in), without_short_rows(masker, b, before, in)) &&
        same(support(a), support(b)))
      return deviate(4);
    if (type == "causal" && (same(theirs, before) || theirs.kind() == MaskKind::full) &&
        same(ours, merge(before, restrict_causal(full))))
      return deviate(10);
    if (type == "magic_pig" && longest_sequence_agrees(a, b, in)) return deviate(14);
    compare(type + "'s mask", a, b, tolerance("mask"));
  }

  /// Whether the masks agree in the sequence whose key, after its head's mean is subtracted, is the longest of the
  /// batch. The reference hashes all sequences by that key's norm.
  bool longest_sequence_agrees(const Mask& ours, const Mask& theirs, const AttentionInputs& in) const {
    if (in.batch() < 2 || !ours.shape().same_logical(theirs.shape())) return false;
    const Tensor keys = Tensor::copy(in.keys, DType::f32);
    std::vector<double> lengths;  // of each sequence's longest key, squared
    for (Index batch = 0; batch < in.batch(); ++batch) {
      lengths.push_back(0);
      for (Index head = 0; head < in.kv_heads(); ++head) {
        std::vector<double> squares(static_cast<std::size_t>(in.keys_length()), 0);
        for (Index i = 0; i < in.head_dim(); ++i) {
          double mean = 0;
          for (Index key = 0; key < in.keys_length(); ++key) mean += *keys.view().at<float>(batch, head, key, i);
          mean /= static_cast<double>(in.keys_length());
          for (Index key = 0; key < in.keys_length(); ++key)
            squares[static_cast<std::size_t>(key)] += std::pow(*keys.view().at<float>(batch, head, key, i) - mean, 2);
        }
        lengths.back() = std::max(lengths.back(), std::ranges::max(squares));
      }
    }
    const Index longest = std::ranges::max_element(lengths) - lengths.begin();
    const auto sequence = [&](const Mask& mask) { return slice(mask, Dim::batch, longest, longest + 1); };
    return largest_difference(sequence(ours), sequence(theirs)) <= tolerance("mask");
  }

  /// Compares the scores that each row selects, because the masks may break ties differently.
  void compare_hash_scores(const Json& masker, const Mask& ours, const Mask& theirs, const AttentionInputs& in) {
    const std::string prefix = "hat." + std::to_string(in.layer);
    const auto lookup = [&](const std::string& name) { return tensors().find(name); };
    const auto known =
        std::ranges::find(enumerator_names<HashActivation>, masker["hat_mlp_activation"].get<std::string>());
    const auto which = static_cast<HashActivation>(known - enumerator_names<HashActivation>.begin());
    HashCodes codes;
    codes.set_weights(HashMlp(lookup, prefix + ".query", which, in.heads(), in.head_dim()),
                      HashMlp(lookup, prefix + ".key", which, in.heads(), in.head_dim()));
    codes.update(in, {});
    std::vector<float> scores(static_cast<std::size_t>(in.keys_length()));
    for (Index i = 0; i < in.shape().rows(); ++i) {
      const RowId row = in.shape().row_of_logical(i);
      codes.score(in, row, scores.data());
      const auto selected = [&](const Mask& mask) {
        std::vector<Run> runs;
        std::vector<float> of_row;
        mask.row(row, runs);
        for (const Run& run : runs) of_row.insert(of_row.end(), scores.begin() + run.begin, scores.begin() + run.end);
        std::sort(of_row.begin(), of_row.end());
        return of_row;
      };
      if (selected(ours) != selected(theirs)) return fail("row " + std::to_string(i) + " selects other scores");
    }
  }

  /// The mask without the rows that have too few candidates: fewer than k for a top-k, none for a top-p.
  static Mask without_short_rows(const Json& masker, const Mask& mask, const Mask& before, const AttentionInputs& in) {
    const Index k = masker.contains("heavy_size") ? resolve(masker["heavy_size"], in.keys_length()) : 1;
    const std::vector<Index> candidates = row_counts(allowed(complement(support(before)), in));
    return intersect(mask, Mask::intervals(in.shape(), [&](RowId row) {
                       const bool enough = candidates[static_cast<std::size_t>(in.shape().stored_row(row))] >= k;
                       return Interval{0, enough ? static_cast<std::int32_t>(in.keys_length()) : 0};
                     }));
  }

  void compare_attention(const AttentionInputs& in, const Mask& mask, AttentionOptions options) {
    options.weights = true;
    const AttentionResult result = attention(in, mask, options);
    compare_values("output", result.output.span<float>(), "output_abs");
    if (has("attention_weights")) {
      const AttentionWeights& weights = *result.weights;
      std::vector<float> dense(static_cast<std::size_t>(mask.shape().positions()), 0.0f);
      for (Index row = 0; row < mask.shape().rows(); ++row) {
        for (Index i = weights.row_ptr[row]; i < weights.row_ptr[row + 1]; ++i)
          dense[static_cast<std::size_t>(row * mask.shape().keys + weights.indices[i])] =
              weights.values[static_cast<std::size_t>(i)];
      }
      compare_values("attention_weights", dense, "weights_abs");
    }
    if (has("true_output"))
      compare("true_output", attention(in, Mask::full(in.shape())).output.span<float>(), values<float>("true_output"),
              {2e-5});
  }

  /// Compares numerator and denominator in the reference's scale, exp(score - largest score over all keys).
  void compare_sums(const AttentionInputs& in, const Mask& mask) {
    const AttentionResult result = attention(in, mask);
    const std::span<const float> output = result.output.span<float>(), lse = result.lse.span<float>();
    const std::span<const float> numerator = values<float>("numerator", static_cast<Index>(output.size())),
                                 denominator = values<float>("denominator", static_cast<Index>(lse.size()));
    const double relative = tolerance("numerator_denominator_relative");
    const auto dv = static_cast<std::size_t>(in.values.size(3));
    for (std::size_t row = 0; row < lse.size(); ++row) {
      const RowId id = in.shape().row_of_logical(static_cast<Index>(row));
      double max = -kInfinity;
      for (Index key = 0; key < in.keys_length(); ++key) {
        double score = 0;
        for (Index i = 0; i < in.head_dim(); ++i)
          score += static_cast<double>(*in.queries.at<float>(id.batch, id.head, id.query, i)) *
                   static_cast<double>(*in.keys.at<float>(id.batch, in.kv_head(id.head), key, i));
        score *= in.scaling;
        if (in.attention_mask) score += AttentionMaskRow(*in.attention_mask, id)(key);
        max = std::max(max, score);
      }
      const double ours = std::exp(lse[row] - max);
      report_.difference("denominator", std::abs(ours - denominator[row]) / denominator[row], relative);
      for (std::size_t i = row * dv; i < (row + 1) * dv; ++i)
        report_.difference(
            "numerator", std::abs(output[i] * ours - numerator[i]) / std::max(1.0f, std::abs(numerator[i])), relative);
    }
  }

  std::vector<NamedTensor> recorded_;
  std::filesystem::path channel_file_;
};

}  // namespace

Report replay_hub(const Case& file) { return HubCase(file).run(); }

}  // namespace reticle::golden
