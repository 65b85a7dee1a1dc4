// Cases of nano-sparse-attention, sparse-frontier, MInference and MagicPIG: each pattern as a pipeline of ours, run at
// the stages that the case recorded.
#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <reticle/attention/llama/loss.hpp>
#include <reticle/attention/llama/self_attention.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>
#include <reticle/core/ops/lsh.hpp>

#include "golden/patterns_table.hpp"

namespace reticle::golden {
namespace {

/// The inputs of one sequence. If there are more keys than queries, both end together.
AttentionInputs sequence(const TensorView& queries, const TensorView& keys, const TensorView& values, Index layer = 0) {
  AttentionInputs all{queries, keys, values};
  all.scaling = 1 / std::sqrt(static_cast<float>(queries.size(3)));
  all.causal = true;
  all.layer = static_cast<int>(layer);
  return all;
}

/// Queries [from, to) of a sequence and the keys up to the last of them.
AttentionInputs part(const AttentionInputs& all, Index from, Index to, Stage stage) {
  AttentionInputs rows = all.rows(from, to);
  rows.stage = stage;
  return rows;
}
AttentionInputs prompt_of(const AttentionInputs& all, Index length) { return part(all, 0, length, Stage::prefill); }
AttentionInputs rest_of(const AttentionInputs& all, Index from) {
  return part(all, from, all.queries_length(), Stage::generation);
}

class PatternCase : public Case {
 public:
  explicit PatternCase(const Case& file) : Case(file) {}

  Report run() {
    struct Kind {
      void (PatternCase::*replay)();
      std::map<std::string, double> tolerances = {};
    };
    static const std::map<std::string, Kind> kinds{
        {"Attention static utilities", {&PatternCase::sparsity_ratios, {{"sparsity_atol", 1e-6}}}},
        {"LSH batch_retrieve", {&PatternCase::retrieval}},
        {"sampling probability", {&PatternCase::probabilities}},
        {"InferenceHandler", {&PatternCase::handler, {{"sparsity_atol", 1e-6}, {"output_atol", 2e-5}}}},
        {"llama_attention_forward", {&PatternCase::llama_layer}},
        {"model_forward loss", {&PatternCase::loss}},
        {"offline pattern search", {&PatternCase::search}},
    };
    const auto pattern = json().at("pattern").get<std::string>();
    const auto kind = kinds.find(pattern);
    if (kind != kinds.end()) set_default_tolerances(kind->second.tolerances);
    set_default_tolerances({{"output_atol", 3e-5},
                            {"output_rtol", 3e-5},
                            {"sparsity_atol", 1e-5},
                            {"weight_atol", 1e-5},
                            {"loss_atol", 1e-5},
                            {"score_atol", 2e-5},
                            {"prob_atol", 1e-9}});
    usual_ = {tolerance("output_atol"), tolerance("output_rtol")};
    if (kind != kinds.end()) {
      (this->*kind->second.replay)();
      return report_;
    }
    pattern_ = json().at("family").get<std::string>() + "/" + pattern;
    // A compression's name ends with its pooling or its layer.
    if (pattern.starts_with("KV compression")) pattern_.resize(std::min(pattern_.size(), pattern_.rfind('_')));
    if (!has_pattern(pattern_)) return {Outcome::unknown, 0, "\"" + pattern + "\" is not supported"};
    one_pattern();
    return report_;
  }

 private:
  // --- pipelines -----------------------------------------------------------------------------------------------------

  static SparseAttention pipeline(Json maskers) {
    return SparseAttention::from_json(Json{{"maskers", std::move(maskers)}, {"causal", true}}.dump());
  }
  Json maskers(Index keys) const { return maskers_of_pattern(pattern_, parameters(), keys, *this); }

  /// A pipeline of two of nano-sparse-attention's patterns: for the prompt, and for what is generated after it.
  SparseAttention by_stage(const std::string& prefill, const std::string& generation) const {
    const auto stage = [&](const char* name, const std::string& pattern) {
      return Json{{"maskers", maskers_of_pattern("nano/" + pattern, parameters().at(name), 0, *this)}};
    };
    const Json config{
        {"prefill", stage("prefill", prefill)}, {"generation", stage("generation", generation)}, {"causal", true}};
    return SparseAttention::from_json(config.dump());
  }

  // --- comparisons ---------------------------------------------------------------------------------------------------

  using Case::compare;

  /// The mask must be the recorded one, and so must the output of attention over it.
  void compare(const AttentionInputs& inputs, const Mask& ours, const std::string& suffix = "") {
    const bool causal = suffix.empty();
    const std::string name = causal ? "mask_dense" : "mask" + suffix;
    compare(name, ours, mask(name), 0);
    const AttentionResult result = attention(inputs, ours);
    compare("output" + suffix, result.output);
    if (!causal) return;
    if (has("lse")) compare("lse", result.lse);
    if (json().contains("expected") && json().at("expected").contains("sparsity_ratio"))
      compare("sparsity_ratio", sparsity(ours), expected("sparsity_ratio"), tolerance("sparsity_atol"));
  }

  /// 1 - kept entries / entries that causality leaves.
  static double sparsity(const Mask& mask) {
    return 1 - static_cast<double>(mask.nnz()) / static_cast<double>(causal_nnz(Mask::full(mask.shape())));
  }

  // --- patterns ------------------------------------------------------------------------------------------------------

  void one_pattern() {
    const auto stage = json().at("stage").get<std::string>();
    if (has("prefill_queries")) {
      const Tensor queries = joined("queries"), keys = joined("keys"), values = joined("values");
      return generated(sequence(queries, keys, values), tensor("prefill_queries").size(2));
    }
    AttentionInputs all = sequence(tensor(has("query") ? "query" : "queries"), tensor("keys"), tensor("values"),
                                   parameters().value("layer_idx", 0));
    if (has("hash_matrix")) return hashed_decode(all);
    if (stage == "prefill-compress") return compression(all);
    if (json().contains("gen_steps")) return generated(all, json().at("prefill_length").get<Index>());
    all.stage = stage == "prefill" ? Stage::prefill : Stage::generation;
    one_stage(all);
  }

  /// The tensors "prefill_<name>" and "gen_<name>", concatenated along the tokens.
  Tensor joined(const std::string& name) const {
    const TensorView &first = tensor("prefill_" + name), &second = tensor("gen_" + name);
    for (const int dim : {0, 1, 3}) {
      if (first.rank != 4 || second.rank != 4 || first.size(dim) != second.size(dim) || first.dtype != DType::f32 ||
          second.dtype != DType::f32)
        throw FormatError(path().string() + ": prefill_" + name + " is " + first.describe() + " and gen_" + name + " " +
                          second.describe() + "; expected F32 tensors (batch, heads, tokens, size) that go together");
    }
    Tensor whole(DType::f32, {first.size(0), first.size(1), first.size(2) + second.size(2), first.size(3)});
    float* to = whole.span<float>().data();
    for (Index matrix = 0; matrix < first.size(0) * first.size(1); ++matrix) {
      for (const TensorView* part : {&first, &second}) {
        const Index count = part->size(2) * part->size(3);
        to = std::copy_n(static_cast<const float*>(part->data) + matrix * count, count, to);
      }
    }
    return whole;
  }

  void one_stage(const AttentionInputs& all) {
    Json config = maskers(all.keys_length());
    SequenceState state, blockwise;
    compare(all, pipeline(config).mask(all, state));
    if (!has("mask_effective_64x64")) return;
    config.at(0)["block_size"] = parameters().at("block");
    compare(all, pipeline(config).mask(all, blockwise), "_effective_64x64");
  }

  /// Generates the rows from `prompt` on, in one call and one by one. Both must give the same mask, which is returned.
  Mask generate(const SparseAttention& sparse, const AttentionInputs& all, Index prompt, SequenceState& state) {
    SequenceState stepwise;
    sparse.mask(prompt_of(all, prompt), state);
    sparse.mask(prompt_of(all, prompt), stepwise);
    Mask at_once = sparse.mask(rest_of(all, prompt), state), steps;
    for (Index query = prompt; query < all.queries_length(); ++query) {
      const Mask step = sparse.mask(part(all, query, query + 1, Stage::generation), stepwise);
      const Mask row = append_keys(step, all.keys_length() - step.shape().keys);
      steps = query == prompt ? row : append_queries(steps, row);
    }
    if (all.queries_length() > prompt) compare("step by step", at_once, steps, 0);
    return at_once;
  }

  void generated(const AttentionInputs& all, Index prompt) {
    SequenceState state;
    compare(rest_of(all, prompt), generate(pipeline(maskers(prompt)), all, prompt, state));
  }

  /// Compares which keys of a prompt its last query still sees.
  void compression(const AttentionInputs& all) {
    SequenceState state;
    const SparseAttention sparse = pipeline(maskers(all.queries_length()));
    sparse.mask(prompt_of(all, all.queries_length()), state);
    const Mask kept = sparse.mask(rest_of(all, all.queries_length() - 1), state);
    compare("state_kept_prefill", kept, mask("state_kept_prefill"), 0);
  }

  /// MagicPIG's decoding: sinks, the end of the prompt and later tokens are always attended to.
  void hashed_decode(AttentionInputs inputs) {
    const Json& p = parameters();
    inputs.stage = Stage::generation;
    const NamedTensor projection{"projection", tensor("hash_matrix")};
    inputs.extras = {&projection, 1};
    const auto sink = p.at("sink").get<std::int32_t>();
    const auto window = p.at("prefill_length").get<std::int32_t>() - p.at("window").get<std::int32_t>();
    const Mask always =
        Mask::from_runs(inputs.shape().one_head(), [&](RowId row, FunctionRef<void(reticle::Run)> emit) {
          emit({0, sink, 1});
          emit({window, static_cast<std::int32_t>(inputs.position(row.query) + 1), 1});
        });
    SequenceState state;
    const Mask ours = pipeline(maskers(inputs.keys_length())).mask(inputs, state, {}, always);
    compare("mask_dense", support(ours), mask("mask_dense"), 0);
    const Mask theirs = mask("sampling_probability");
    compare("sampling_probability", ours, theirs, tolerance("weight_atol"));
    // The reference divides by p + log_eps where it samples.
    Array<float> p_used = to_dense(theirs);
    for (float& value : p_used)
      value = value > 0 && value < 1 ? std::min(1.0f, value + p.at("log_eps").get<float>()) : value;
    compare("output", attention(inputs, Mask::dense(inputs.shape(), p_used)).output);
  }

  // --- several layers and models -------------------------------------------------------------------------------------

  void handler() {
    const auto pattern = [&](const char* stage) { return parameters().at(stage).at("name").get<std::string>(); };
    const SparseAttention sparse = by_stage(pattern("prefill"), pattern("generation"));
    usual_ = {2 * tolerance("output_atol"), 0};
    SequenceState teacher_forced(Recording::figures), state;
    const Index length = tensor("queries").size(3), prompt = length - number("output_length");
    for (Index layer = 0; layer < number("num_layer_calls"); ++layer) {
      const auto of_layer = [&](const char* name) { return entry(tensor(name), layer); };
      const AttentionInputs all = sequence(of_layer("queries"), of_layer("keys"), of_layer("values"), layer);
      const Mask generated = generate(sparse, all, prompt, state);
      SequenceState fresh;
      const Mask prefilled = sparse.mask(prompt_of(all, prompt), fresh);
      compare("mask_dense", append_queries(append_keys(prefilled, length - prompt), generated),
              mask("mask_dense", of_layer("mask_dense")), 0);
      const Tensor output = sparse.forward(all, length - prompt, teacher_forced).output;
      compare_part("output", output.span<float>(), layer * output.view().elements());
      compare_recorded_sparsity("prefill_sparsity_list", layer, prefilled);
      compare_recorded_sparsity("generation_sparsity_list", layer, generated);
    }
    for (const auto& [stage, name] :
         {std::pair{Stage::prefill, "prefill_sparsity_avg"}, std::pair{Stage::generation, "generation_sparsity_avg"}})
      compare(name, teacher_forced.recorded(stage).mean_sparsity(), expected(name), tolerance("sparsity_atol"));
  }

  void compare_recorded_sparsity(const char* name, Index layer, const Mask& mask) {
    const Json& list = json().at("expected").at(name);  // empty for dense attention, which records none
    if (list.empty()) return compare(name, sparsity(mask), 0, 0);
    compare(name, sparsity(mask), list.at(static_cast<std::size_t>(layer)).get<double>(), tolerance("sparsity_atol"));
  }

  /// Runs one layer of Llama: the prompt, then the output, through its cache.
  void llama_layer() {
    const auto handler = parameters().at("handler").get<std::string>();
    const std::size_t to = handler.find("_to_");
    const SparseAttention sparse = by_stage(handler.substr(0, to), handler.substr(to + 4));
    const Index d = number("head_dim");
    const SelfAttention layer(d, Rope(d, parameters().at("rope_theta").get<double>(), std::nullopt),
                              {tensor("wq"), tensor("wk"), tensor("wv"), tensor("wo")});
    const TensorView& x = tensor("hidden_states");
    const Index length = x.size(1), prompt = length - number("output_length");
    KvCache cache({1, number("num_kv_heads"), d, d, length, DType::f32});
    SequenceState state(Recording::masks);
    std::vector<float> ours;
    const auto extend = [&](Index from, Index until, Stage stage) {
      cache.extend(std::vector<std::int32_t>(static_cast<std::size_t>(until - from)));
      const AttendedSequence sequence{&cache, 0, stage, &state};
      const Index cu_seqlens[] = {0, until - from};
      const Tensor y = layer.extend(entry(x, 0).slice(0, from, until), cu_seqlens, {&sequence, 1}, &sparse);
      ours.insert(ours.end(), y.span<float>().begin(), y.span<float>().end());
    };
    extend(0, prompt, Stage::prefill);
    extend(prompt, length, Stage::generation);
    compare("output", ours);
    for (const auto& [stage, name] :
         {std::pair{Stage::prefill, std::string("prefill")}, std::pair{Stage::generation, std::string("generation")}}) {
      const StageRecord& record = state.recorded(stage);
      compare(name, record.mean_sparsity(), expected(name + "_sparsity"), 1e-6);
      const std::string mask_name = name + "_mask_b0h0";
      compare(mask_name, slice(record.masks.at(0).mask, Dim::heads, 0, 1), mask(mask_name), 0);
    }
  }

  void loss() {
    const Json& recorded = json().at("expected").at("per_example_loss");
    double sum = 0;
    std::size_t count = 0;
    for (const Json& example : parameters().at("examples")) {
      const std::string number = std::to_string(count);
      const double ours = loss_of_last(entry(tensor("logits_" + number), 0),
                                       integers<std::int32_t>("input_ids_" + number), example.at("output_length"));
      compare("per_example_loss", ours, recorded.at(count).get<double>(), tolerance("loss_atol"));
      sum += ours;
      ++count;
    }
    compare("loss", sum / static_cast<double>(count), expected("loss"), tolerance("loss_atol"));
  }

  void sparsity_ratios() {
    for (const auto& [name, ratio] : json().at("expected").at("sparsity").items())
      compare(name, sparsity(mask(name)), ratio.get<double>(), tolerance("sparsity_atol"));
  }

  /// MInference's search: the candidate wins that covers the most attention of the later rows.
  void search() {
    const AttentionInputs inputs = sequence(tensor("queries"), tensor("keys"), tensor("keys"));
    const Index from = number("eval_rows_from"), block = number("search_block");
    const AttentionResult dense = attention(inputs, Mask::full(inputs.shape()));
    double best = -1;
    for (const Json& recorded : json().at("expected").at("all_scores")) {
      const auto name = recorded.at(0).get<std::string>();
      Json p = parameters();
      p["first"] = recorded.at(1);
      p["second"] = recorded.at(2);
      if (name == "block_sparse") {
        const auto part = recorded.at(1).get<Index>();
        if (block < 1 || part < 1) throw FormatError("search_block and all_scores: expected positive sizes");
        p["top_chunks"] = std::max<Index>(1, (inputs.keys_length() + block - 1) / block / part);
      }
      SequenceState state;
      const Json maskers = maskers_of_pattern("minference/search " + name, p, inputs.keys_length(), *this);
      const AttentionResult sparse = attention(inputs, pipeline(maskers).mask(inputs, state));
      double mass = 0;
      for (Index row = from; row < inputs.queries_length(); ++row)
        mass += std::exp(static_cast<double>(*sparse.lse.view().at<float>(0, 0, row)) -
                         static_cast<double>(*dense.lse.view().at<float>(0, 0, row)));
      mass /= static_cast<double>(inputs.queries_length() - from);
      compare(name, mass, recorded.at(3).get<double>(), tolerance("score_atol"));
      best = std::max(best, mass);
    }
    compare("best", best, json().at("expected").at("best").at(3).get<double>(), tolerance("score_atol"));
  }

  // --- hashing -------------------------------------------------------------------------------------------------------

  /// MagicPIG's retrieval: a key is found if it shares the query's code in at least two tables.
  void retrieval() {
    const Index heads = number("num_heads"), kv_heads = number("num_kv_heads"), tables = number("L");
    const Index keys = number("seq_len");
    const auto key_codes = integers<std::int32_t>("key_codes"), query_codes = integers<std::int32_t>("query_codes");
    const auto recorded = values<std::uint8_t>("retrieved_mask", heads * keys);
    require_elements("query_codes", heads * tables);
    const LshRecipe recipe{.tables = tables, .bits = 32, .min_collisions = 2};
    const auto bytes = [](const std::int32_t* codes) { return reinterpret_cast<const std::uint8_t*>(codes); };
    for (Index head = 0; head < heads; ++head) {
      const Index kv_head = head * kv_heads / heads;
      std::vector<std::int32_t> codes, found;  // the codes of a key are apart in the recorded (kv_heads, tables, keys)
      for (Index i = 0; i < keys * tables; ++i)
        codes.push_back(key_codes.at(static_cast<std::size_t>((kv_head * tables + i % tables) * keys + i / tables)));
      collisions(bytes(query_codes.data() + head * tables), bytes(codes.data()), keys, recipe, found);
      for (std::int32_t key = 0; key < keys; ++key) {
        if (std::ranges::binary_search(found, key) != (recorded[static_cast<std::size_t>(head * keys + key)] != 0))
          return fail(fmt::format("head {}, key {} is retrieved by one only", head, key));
      }
    }
  }

  void probabilities() {
    const auto cosines = values<double>("cosine");
    const auto expected =
        values<double>("probability", static_cast<Index>(cosines.size() * parameters().at("K_L_rows").size()));
    std::size_t at = 0;
    for (const Json& row : parameters().at("K_L_rows")) {
      for (const double cosine : cosines)
        compare("probability", collision_probability(cosine, row.at(0), row.at(1), 2), expected[at++],
                tolerance("prob_atol"));
    }
  }

  std::string pattern_;  // "family/name", its key in the table
};

}  // namespace

Report replay_pattern(const Case& file) { return PatternCase(file).run(); }

}  // namespace reticle::golden
