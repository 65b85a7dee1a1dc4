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
#include <tuple>
#include <unistd.h>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <reticle/attention/objective.hpp>
#include <reticle/core/config/field_names.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/apply.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/ops/hash_codes.hpp>
#include <reticle/core/ops/statistics.hpp>
#include <reticle/core/registry.hpp>

#include "verify_case.hpp"

namespace reticle::tools {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct TemporaryFile {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("reticle-verify-" + std::to_string(getpid()) + ".json");
  TemporaryFile() = default;
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
};

class Case {
 public:
  explicit Case(const CaseFile& file) : file_(file), json_(file.json()) {}

  Report run() {
    const std::string kind = json_.value("kind", json_.value("op", std::string("?")));
    using Run = void (Case::*)();
    static const std::map<std::string, Run> kinds{{"masked_attention", &Case::masked_attention},
                                                  {"decode_steps", &Case::decode_steps},
                                                  {"weighted_attention", &Case::weighted_attention},
                                                  {"mask_merge", &Case::mask_merge},
                                                  {"mask_apply", &Case::mask_apply},
                                                  {"mask_row_wise", &Case::mask_row_wise},
                                                  {"mask_full_empty", &Case::mask_full_empty},
                                                  {"config_errors", &Case::config_errors},
                                                  {"effective_size", &Case::effective_size},
                                                  {"normal_quantile", &Case::quantile},
                                                  {"objective", &Case::objective}};
    const auto found = kinds.find(kind);
    if (found == kinds.end()) return unknown("\"" + kind + "\" is not supported");
    for (const Json& masker : json_.value("maskers", Json::array())) {
      const std::string type = masker.at("type").get<std::string>();
      if (!Registry::global().contains(type)) return unknown("masker \"" + type + "\" is not supported");
    }
    (this->*found->second)();
    return report_;
  }

 private:
  static Report unknown(const std::string& why) { return {Outcome::unknown, 0, why}; }

  bool has(std::string_view name) const { return file_.has(name); }
  const TensorView& tensor(std::string_view name) const { return file_.tensor(name); }
  template <class T>
  std::span<const T> values(std::string_view name) const {
    return file_.values<T>(name);
  }
  double tolerance(const char* name, double otherwise) const { return file_.tolerance(name, otherwise); }
  Mask mask_of(std::string_view name) const { return file_.mask_of(name); }

  AttentionInputs inputs() {
    AttentionInputs inputs;
    inputs.queries = tensor("queries");
    inputs.keys = tensor("keys");
    inputs.values = tensor("values");
    if (has("attention_mask")) inputs.attention_mask = tensor("attention_mask");
    inputs.scaling = json_.at("scaling").get<float>();
    inputs.layer = json_.value("layer_idx", 0);
    give_recorded(inputs, "recorded.");
    inputs.validate();
    return inputs;
  }

  /// Hands "<prefix><name>" to the maskers as the extra tensor <name>.
  void give_recorded(AttentionInputs& inputs, const std::string& prefix) {
    recorded_.clear();
    for (const auto& [name, view] : file_.tensors().tensors()) {
      if (name.starts_with(prefix)) recorded_.push_back({name.substr(prefix.size()), view});
    }
    inputs.extras = recorded_;
  }

  /// The case's maskers [begin, end) as a pipeline, in the reference's modes.
  SparseAttention pipeline(std::size_t begin, std::size_t end) const {
    Json config;
    config["maskers"] = Json::array();
    for (std::size_t i = begin; i < end; ++i) {
      Json masker = json_.at("maskers")[i];
      // Weights of a learned hash lie in the case's own file, under the names that the masker looks for.
      if (masker.contains("channel_selection")) masker["sorted_channel_file"] = write_channels(masker).string();
      if (masker.contains("hat_bits"))
        masker["hat_weight_file"] = std::filesystem::absolute(file_.tensors().path()).string();
      if (Json::parse(schema(masker["type"].get<std::string>()))["properties"].contains("replacement"))
        masker["replacement"] = true;
      config["maskers"].push_back(std::move(masker));
    }
    return SparseAttention::from_json(config.dump(), file_.path().parent_path());
  }

  /// What the case's masker i makes of the mask before it; nothing when recorded draws do not fit budgets that are
  /// meant to differ.
  std::optional<Mask> step(std::size_t i, const AttentionInputs& in, const Mask& before) {
    SequenceState state;
    try {
      return pipeline(i, i + 1).mask(in, state, {}, before);
    } catch (const ShapeError&) {
      if (json_.at("maskers")[i]["type"] != "adaptive_sampling" || before.nnz() > 0) throw;
      report_.deviate("the reference's adaptive sampling takes an empty mask for a full one (deviation 12)");
      return std::nullopt;
    }
  }

  /// The recorded channels as a file of the kind that the masker reads; gone with the case.
  std::filesystem::path write_channels(const Json& masker) const {
    const TensorView& channels = tensor("recorded.sorted_channels");
    Json table = Json::array();
    for (Index head = 0; head < channels.size(0); ++head) {
      table.push_back(Json::array());
      for (Index i = 0; i < channels.size(1); ++i) table.back().push_back(*channels.at<Index>(head, i));
    }
    Json file;
    file["model.layers." + std::to_string(json_.value("layer_idx", 0)) + ".self_attn." +
         masker["channel_selection"].get<std::string>()] = std::move(table);
    std::ofstream(channel_file_.path) << file.dump();
    return channel_file_.path;
  }

  // --- kinds -----------------------------------------------------------------------------------------------------

  void masked_attention() {
    const AttentionInputs in = inputs();
    const MaskShape shape = in.shape();
    const Json& expected = json_.at("expected");
    const Mask start = has("previous_mask_dense") ? mask_of("previous_mask_dense") : Mask::empty(shape);
    const Json& maskers = json_.at("maskers");
    // The reference runs an empty mask as dense attention.
    const bool runs_dense = expected.at("is_full").get<bool>() || expected.at("is_empty").get<bool>();
    // Each masker from the reference's mask before it, so that a deviation of one does not hide what the next does.
    Mask before = start;
    for (std::size_t i = 0; i < maskers.size(); ++i) {
      const std::string stage = "stage" + std::to_string(i);
      const Mask theirs = i + 1 < maskers.size()
                              ? from_flat_csr(shape, values<Index>(stage + ".ptr"), values<Index>(stage + ".indices"),
                                              values<float>(stage + ".data"))
                          : runs_dense ? Mask::full(shape)
                                       : mask_of("mask_dense");
      compare_step(maskers[i], step(i, in, before), theirs, before, in);
      before = theirs;
    }
    const bool ties = json_.value("compare_mask", "") == "scores_at_boundary";
    if (report_.outcome == Outcome::pass && !maskers.empty() && !ties) {
      SequenceState state;
      report_.difference(
          "the mask of the whole pipeline",
          largest_difference(allowed(pipeline(0, maskers.size()).mask(in, state, {}, start), in), allowed(before, in)),
          tolerance("mask", 1e-6));
    }
    compare_attention(in, runs_dense ? Mask::full(shape) : before, {});
    compare_true_output(in);
    if (maskers.empty()) {
      SequenceState state;
      if (pipeline(0, 0).mask(in, state).kind() != MaskKind::full) report_.fail("no maskers are not dense attention");
    } else if (!runs_dense) {
      report_.difference("density", std::abs(before.density() - expected.at("density").get<double>()), 1e-6);
    }
  }

  /// One sequence, one state; step i sees the first k_len keys.
  void decode_steps() {
    SequenceState state;
    const SparseAttention maskers = pipeline(0, json_.at("maskers").size());
    const bool draws_by_norm =
        std::ranges::any_of(json_.at("maskers"), [](const Json& masker) { return masker.at("type") == "magic_pig"; });
    for (std::size_t i = 0; i < json_.at("steps").size(); ++i) {
      const std::string step = "step" + std::to_string(i) + ".";
      const Index length = json_.at("steps")[i].at("k_len").get<Index>();
      AttentionInputs in;
      in.queries = tensor(step + "queries");
      in.keys = tensor("keys").slice(2, 0, length);
      in.values = tensor("values").slice(2, 0, length);
      in.scaling = json_.at("scaling").get<float>();
      in.layer = json_.value("layer_idx", 0);
      in.stage = Stage::generation;
      give_recorded(in, i == 0 || !has(step + "recorded.codes") ? "step0.recorded." : step + "recorded.");
      in.validate();
      const Mask reference = mask_of(step + "mask_dense"), ours = maskers.mask(in, state);
      const double tolerated = tolerance("mask", 2e-5), difference = largest_difference(ours, reference);
      if (difference > tolerated && draws_by_norm && longest_sequence_agrees(ours, reference, tolerated, in)) {
        report_.deviate(kNormOfTheBatch);
      } else {
        report_.difference(step + "mask", difference, tolerated);
      }
      report_.difference(
          step + "output",
          largest_difference(attention(in, reference).output.span<float>(), values<float>(step + "output")),
          tolerance("output_abs", 1e-4));
    }
  }

  void weighted_attention() {
    const AttentionInputs in = inputs();
    const Json& expected = json_.at("expected");
    const bool empty = expected.at("is_empty").get<bool>();
    const bool dense = empty || expected.at("is_full").get<bool>();
    const Mask mask = dense ? Mask::full(in.shape()) : mask_of("mask_dense");
    AttentionOptions options;
    if (has("sink_logits")) options.sink_logits = values<float>("sink_logits");
    compare_attention(in, mask, options);
    compare_true_output(in);
    if (has("denominator")) compare_sums(in, mask);
    if (!empty) return;
    const AttentionResult nothing = attention(in, Mask::empty(in.shape()));
    for (const float value : nothing.output.span<float>())
      report_.difference("output of an empty mask", std::abs(value), 0);
    report_.deviate("the reference runs an empty mask as dense attention, ours attends to nothing (deviation 2)");
  }

  void mask_merge() {
    for (const auto& [a, b] : {std::pair{"a", "b"}, std::pair{"a", "c"}, std::pair{"b", "c"}}) {
      const std::string name = std::string("merge_") + a + b;
      if (!has(name)) continue;
      const Mask merged = merge(mask_of(a), mask_of(b));
      report_.difference(name, largest_difference(to_dense(merged), values<float>(name)), tolerance("abs", 1e-6));
      const FlatCsr flat = to_flat_csr(merged);
      if (!std::ranges::equal(flat.ptr, values<Index>(name + ".ptr")) ||
          !std::ranges::equal(flat.indices, values<Index>(name + ".indices")))
        report_.fail(name + " has other indices");
      report_.difference(name + ".data", largest_difference(flat.data, values<float>(name + ".data")),
                         tolerance("abs", 1e-6));
      const Mask again = from_flat_csr(merged.shape(), flat.ptr, flat.indices, flat.data);
      if (!(again == merged)) report_.fail(name + " does not survive the flattened form");
    }
  }

  void mask_apply() {
    const Mask mask = mask_of("mask");
    const double relative = tolerance("inverse_relative_without_eps", 1e-4);
    report_.difference("apply_x", largest_difference(apply(mask, values<float>("x")), values<float>("apply_x")),
                       tolerance("abs", 1e-5));
    const auto compare_relative = [&](const char* name, std::span<const float> ours) {
      const std::span<const float> theirs = values<float>(name);
      for (std::size_t i = 0; i < ours.size(); ++i)
        report_.difference(name, std::abs(ours[i] - theirs[i]) / std::max(1.0f, std::abs(theirs[i])), relative);
    };
    compare_relative("apply_inverse_x", apply_inverse(mask, values<float>("x")));
    const Array<float> weighted = apply_inverse(mask, values<float>("y"));
    std::vector<float> sums(static_cast<std::size_t>(mask.shape().rows()), 0.0f);
    for (std::size_t i = 0; i < weighted.size(); ++i)
      sums[i / static_cast<std::size_t>(mask.shape().keys)] += weighted[i];
    compare_relative("apply_inverse_sum_y", sums);
  }

  void mask_row_wise() {
    const TensorView& rows = tensor("row_idx");
    MaskShape shape;
    shape.batch = json_.at("shape")[0];
    shape.heads = json_.at("shape")[1];
    shape.queries = json_.at("shape")[2];
    shape.keys = json_.at("shape")[3];
    const Index width = rows.size(rows.rank - 1);
    for (const auto& [columns, dense, prefix] :
         {std::tuple{"row_idx", "dense", ""}, std::tuple{"row_idx_padded", "dense_padded", "padded."}}) {
      const Mask mask = Mask::from_row_indices(shape, width, values<Index>(columns), values<float>("row_values"));
      report_.difference(dense, largest_difference(to_dense(mask), values<float>(dense)), tolerance("abs", 0));
      const std::string p(prefix);
      if (!(from_flat_csr(shape, values<Index>(p + "ptr"), values<Index>(p + "indices"), values<float>(p + "data")) ==
            mask))
        report_.fail(std::string(dense) + " differs from its flattened form");
    }
  }

  void mask_full_empty() {
    MaskShape shape;
    shape.heads = json_.at("shape")[0];
    shape.queries = json_.at("shape")[1];
    shape.keys = json_.at("shape")[2];
    const Mask full = Mask::full(shape), empty = Mask::empty(shape);
    for (const auto& [name, mask] : {std::pair{"full", &full}, std::pair{"empty", &empty}}) {
      const std::string prefix(name);
      if (static_cast<Index>(values<float>(prefix + ".dense").size()) != shape.positions())
        throw FormatError("shape " + shape.describe() + " is not that of \"" + prefix + ".dense\"");
      report_.difference(prefix, largest_difference(to_dense(*mask), values<float>(prefix + ".dense")), 0);
      const FlatCsr flat = to_flat_csr(*mask);
      if (!std::ranges::equal(flat.ptr, values<Index>(prefix + ".ptr")) ||
          !std::ranges::equal(flat.indices, values<Index>(prefix + ".indices")) ||
          !std::ranges::equal(flat.data, values<float>(prefix + ".data")))
        report_.fail(prefix + " has another flattened form");
    }
    if (full.density() != 1 || empty.density() != 0) report_.fail("density");
    if (merge(full, empty).kind() != MaskKind::full || merge(empty, empty).kind() != MaskKind::empty)
      report_.fail("merge of full and empty");
  }

  void config_errors() {
    std::size_t checked = 0;
    for (const Json& entry : json_.at("cases")) {
      Json masker = entry.at("params");
      masker["type"] = entry.at("type");
      if (!Registry::global().contains(entry.at("type").get<std::string>())) continue;
      Json config;
      config["maskers"] = Json::array({masker});
      ++checked;
      try {
        SparseAttention::from_json(config.dump());
        report_.fail("accepted " + masker.dump());
      } catch (const ConfigError&) {
        continue;  // as it should
      }
    }
    if (checked == 0) report_ = unknown("none of its maskers is built yet");
  }

  void effective_size() {
    for (const Json& entry : json_.at("cases")) {
      const Size size =
          entry.at("is_float").get<bool>() ? Size(entry.at("size").get<double>()) : Size(entry.at("size").get<Index>());
      const Index ours = size.resolve(entry.at("k_len").get<Index>()), recorded = entry.at("effective").get<Index>();
      if (size.is_fraction() && size.positive() && recorded == 0 && ours == 1) {
        report_.deviate("the reference's fractions of short contexts keep no key, ours one (deviation 19)");
        continue;
      }
      if (ours != recorded) report_.fail(fmt::format("{} resolves to {}", entry.dump(), ours));
    }
  }

  void quantile() {
    for (const Json& entry : json_.at("cases")) {
      const double ours = normal_quantile(1 - entry.at("delta").get<double>());
      report_.difference("quantile", std::abs(ours - entry.at("ppf_of_1_minus_delta").get<double>()),
                         tolerance("abs", 1e-8));
    }
  }

  void objective() {
    for (const Json& entry : json_.at("cases")) {
      const auto percent = entry.at("objective").get<double>();
      const auto error = entry.at("error").get<double>(), density = entry.at("density").get<double>();
      const double ours =
          percent < 0 ? balanced_objective(error, density) : objective_at_density(error, density, percent);
      report_.difference("score", std::abs(ours - entry.at("score").get<double>()), tolerance("abs", 1e-12));
    }
  }

  // --- comparisons -----------------------------------------------------------------------------------------------

  static Index resolve(const Json& size, Index keys) {
    return size.is_number_float() ? Size(size.get<double>()).resolve(keys) : size.get<Index>();
  }

  /// Whether the reference returns its full mask here because the sequence is short.
  static bool early_out(const Json& masker, const MaskShape& shape) {
    const auto at_least_keys = [&](const char* size, Index more) {
      return masker.contains(size) && shape.keys <= resolve(masker[size], shape.keys) + more;
    };
    if (masker.contains("pq_bits"))  // it wants more keys than it clusters and keeps
      return at_least_keys("heavy_size", masker["init_offset"].get<Index>() + shape.queries +
                                             (Index{1} << masker["pq_bits"].get<Index>()));
    return at_least_keys("window_size", shape.queries) || at_least_keys("sink_size", 0) ||
           at_least_keys("heavy_size", masker.contains("group_factor") ? shape.queries : 0) ||
           (masker.contains("top_p") && masker["top_p"].get<double>() >= 1) ||
           (masker.contains("local_offset") &&
            shape.keys - resolve(masker["init_offset"], shape.keys) - resolve(masker["local_offset"], shape.keys) < 2);
  }

  /// Without the positions that the attention mask forbids: their weight is 0 whether a mask holds them or not.
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

  /// One masker's result against the reference's, from the same mask before it; knows the documented deviations.
  void compare_step(const Json& masker, const std::optional<Mask>& made, const Mask& theirs, const Mask& before,
                    const AttentionInputs& in) {
    if (!made) return;
    const Mask& ours = *made;
    const double tolerated = tolerance("mask", 1e-6);
    const auto same = [&](const Mask& x, const Mask& y) { return largest_difference(x, y) <= tolerated; };
    const Mask a = allowed(ours, in), b = allowed(theirs, in);
    if (same(a, b)) return report_.difference("mask", largest_difference(a, b), tolerated);
    if (json_.value("compare_mask", "") == "scores_at_boundary" && masker["type"] == "hash_attention_top_k")
      return compare_hash_scores(masker, a, b, in);
    const MaskShape shape = in.shape();
    if (theirs == Mask::full(shape) && early_out(masker, shape))
      return report_.deviate("the reference turns short sequences into dense attention (deviation 1)");
    if (masker["type"] == "local" && same(restrict_causal(a), restrict_causal(b)))
      return report_.deviate("the reference's local window erases what lies after the query (deviation 3)");
    if ((masker["type"] == "oracle_top_k" || masker["type"] == "oracle_top_p") &&
        same(without_short_rows(masker, a, before, in), without_short_rows(masker, b, before, in)) &&
        same(support(a), support(b)))
      return report_.deviate("with too few candidates, the reference spills over active positions (deviation 4)");
    if (masker["type"] == "causal" && (same(theirs, before) || theirs.kind() == MaskKind::full) &&
        same(ours, merge(before, restrict_causal(Mask::full(shape)))))
      return report_.deviate("the reference's causal masker does nothing (deviation 10)");
    if (masker["type"] == "magic_pig" && longest_sequence_agrees(a, b, tolerated, in))
      return report_.deviate(kNormOfTheBatch);
    report_.difference(masker["type"].get<std::string>() + "'s mask", largest_difference(a, b), tolerated);
  }

  static constexpr const char* kNormOfTheBatch =
      "the reference hashes by the largest norm of the batch, ours of each sequence (deviation 14)";

  /// Whether of a batch the sequence of the longest key, less the mean of its head, has the same mask: by that key's
  /// norm the reference hashes them all.
  static bool longest_sequence_agrees(const Mask& a, const Mask& b, double tolerated, const AttentionInputs& in) {
    const Array<float> ours = to_dense(a), theirs = to_dense(b);
    if (in.batch() < 2 || ours.size() != theirs.size()) return false;
    double largest = -1;
    Index longest = 0;
    std::vector<float> key(static_cast<std::size_t>(in.head_dim()));
    for (Index head = 0; head < in.batch() * in.kv_heads(); ++head) {
      const TensorView keys = head_matrix(in.keys, head / in.kv_heads(), head % in.kv_heads());
      std::vector<double> mean(key.size(), 0);
      for (Index k = 0; k < in.keys_length(); ++k) {
        load_row(keys, k, 1, key);
        for (std::size_t i = 0; i < key.size(); ++i)
          mean[i] += static_cast<double>(key[i]) / static_cast<double>(in.keys_length());
      }
      for (Index k = 0; k < in.keys_length(); ++k) {
        load_row(keys, k, 1, key);
        double squares = 0;
        for (std::size_t i = 0; i < key.size(); ++i) squares += std::pow(static_cast<double>(key[i]) - mean[i], 2);
        if (squares <= largest) continue;
        largest = squares;
        longest = head / in.kv_heads();
      }
    }
    const std::size_t size = ours.size() / static_cast<std::size_t>(in.batch());
    const std::size_t first = static_cast<std::size_t>(longest) * size;
    return largest_difference({ours.data() + first, size}, {theirs.data() + first, size}) <= tolerated;
  }

  /// Of masks that may differ in how ties are broken: the scores of what each row selects.
  void compare_hash_scores(const Json& masker, const Mask& ours, const Mask& theirs, const AttentionInputs& in) {
    const std::string prefix = "hat." + std::to_string(in.layer);
    const auto lookup = [&](const std::string& name) { return file_.tensors().find(name); };
    const std::string activation = masker["hat_mlp_activation"];
    const auto known =
        std::find(enumerator_names<HashActivation>.begin(), enumerator_names<HashActivation>.end(), activation);
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
      if (selected(ours) != selected(theirs)) return report_.fail("row " + std::to_string(i) + " selects other scores");
    }
  }

  /// Without the rows that have fewer candidates than a top-k is to choose, or none for a top-p.
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
    report_.difference("output", largest_difference(result.output.span<float>(), values<float>("output")),
                       tolerance("output_abs", 2e-5));
    if (!has("attention_weights")) return;
    const Csr csr = to_csr(mask);
    std::vector<float> dense(static_cast<std::size_t>(mask.shape().positions()), 0.0f);
    for (Index row = 0; row < mask.shape().rows(); ++row) {
      for (Index i = csr.row_ptr[row]; i < csr.row_ptr[row + 1]; ++i)
        dense[static_cast<std::size_t>(row * mask.shape().keys + csr.indices[i])] =
            result.weights->values[static_cast<std::size_t>(i)];
    }
    report_.difference("attention_weights", largest_difference(dense, values<float>("attention_weights")),
                       tolerance("weights_abs", 1e-5));
  }

  void compare_true_output(const AttentionInputs& in) {
    if (!has("true_output")) return;
    const AttentionResult dense = attention(in, Mask::full(in.shape()));
    report_.difference("true_output", largest_difference(dense.output.span<float>(), values<float>("true_output")),
                       2e-5);
  }

  /// Numerator and denominator, in the reference's scale: relative to the largest score over all keys.
  void compare_sums(const AttentionInputs& in, const Mask& mask) {
    const AttentionResult result = attention(in, mask);
    const std::span<const float> output = result.output.span<float>(), lse = result.lse.span<float>();
    const std::span<const float> numerator = values<float>("numerator"), denominator = values<float>("denominator");
    const double relative = tolerance("numerator_denominator_relative", 1e-4);
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

  const CaseFile& file_;
  const Json& json_;
  std::vector<NamedTensor> recorded_;
  TemporaryFile channel_file_;
  Report report_;
};

}  // namespace

Report replay_hub(const CaseFile& file) { return Case(file).run(); }

}  // namespace reticle::tools
