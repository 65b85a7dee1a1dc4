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

#include "verify_case.hpp"

namespace reticle::tools {
namespace {

Json masker(const char* type, Json parameters) {
  parameters["type"] = type;
  return parameters;
}

/// The maskers of a pattern, from its own parameters and the length of the prompt.
using MakeMaskers = Json (*)(const Json& parameters, Index keys);

Json local_and_sinks(const Json& p, Index) {
  Json maskers = Json::array({masker("local", {{"window_size", p.at("window_size")}})});
  if (p.at("attention_sinks") != 0) maskers.push_back(masker("sink", {{"sink_size", p.at("attention_sinks")}}));
  return maskers;
}

Json vertical_slash(const Json& verticals, const Json& slashes, const Json& window, const Json& sinks,
                    const Json& recent) {
  return Json::array({masker("vertical_slash", {{"vertical_size", verticals},
                                                {"slash_size", slashes},
                                                {"approximation_window", window},
                                                {"attention_sinks", sinks},
                                                {"window_size", recent}})});
}

Json shape_of_a(const Json& p, Index) {
  return Json::array(
      {masker("tri_shape", {{"n_init", p.at("n_init")}, {"n_local", p.at("n_local")}, {"n_last", p.at("n_last")}})});
}

Json minference_snap_kv(const Json& p, Index) {
  return Json::array({masker("snap_kv", {{"token_capacity", p.at("max_capacity_prompt")},
                                         {"approximation_window", p.at("window_size")},
                                         {"kernel_size", p.at("kernel_size")},
                                         {"pooling", p.at("pooling") == "maxpool" ? "max" : "avg"},
                                         {"pool_window", false}})});
}

/// By "family/pattern".
const std::map<std::string, MakeMaskers>& patterns() {
  static const std::map<std::string, MakeMaskers> patterns{
      {"nano/DenseAttention", [](const Json&, Index) { return Json::array(); }},
      {"nano/LocalAndSinksAttention", local_and_sinks},
      {"nano/VerticalAndSlashAttention",
       [](const Json& p, Index) {
         return vertical_slash(p.at("top_tokens"), p.at("top_slashes"), p.at("approximation_window"),
                               p.at("attention_sinks"), p.at("window_size"));
       }},
      {"nano/BlockSparseAttention",
       [](const Json& p, Index) {
         return Json::array(
             {masker("local", {{"window_size", p.at("chunk_size")}}),
              masker("block_sparse", {{"chunk_size", p.at("chunk_size")}, {"top_chunks", p.at("top_chunks")}})});
       }},
      {"nano/SnapKVAttention",
       [](const Json& p, Index) {
         return Json::array({masker("snap_kv", {{"token_capacity", p.at("token_capacity")},
                                                {"approximation_window", p.at("approximation_window")},
                                                {"kernel_size", p.at("kernel_size")}})});
       }},
      {"nano/TOVAAttention",
       [](const Json& p, Index) {
         return Json::array({masker("tova", {{"token_capacity", p.at("token_capacity")}})});
       }},
      {"sparse-frontier/VerticalSlash",
       [](const Json& p, Index) {
         return vertical_slash(p.at("vertical_size"), p.at("slash_size"), p.at("approximation_size"),
                               p.at("forced_verticals"), p.at("forced_slashes"));
       }},
      {"sparse-frontier/FlexPrefill",
       [](const Json& p, Index) {
         return Json::array({masker("adaptive_vertical_slash", {{"alpha", p.at("alpha")},
                                                                {"approximation_size", p.at("approximation_size")},
                                                                {"min_budget", p.at("min_budget")},
                                                                {"attention_sinks", p.at("forced_verticals")},
                                                                {"window_size", p.at("forced_slashes")}})});
       }},
      {"sparse-frontier/BlockSparse",
       [](const Json& p, Index) {
         return Json::array(
             {masker("block_sparse",
                     {{"chunk_size", p.at("chunk_size")}, {"top_chunks", p.at("top_chunks")}, {"recent_chunks", 2}})});
       }},
      {"sparse-frontier/SnapKVCompression",
       [](const Json& p, Index) {
         return Json::array({masker("snap_kv", {{"token_capacity", p.at("token_capacity")},
                                                {"approximation_window", p.at("approximation_window")},
                                                {"kernel_size", p.at("kernel_size")},
                                                {"local_window", p.at("local_window")},
                                                {"prefix_tokens", p.at("prefix_tokens")},
                                                {"share_within_group", true}})});
       }},
      {"sparse-frontier/AdaSnapKVCompression",
       [](const Json& p, Index) {
         return Json::array({masker("ada_snap_kv", {{"token_capacity", p.at("token_capacity")},
                                                    {"approximation_window", p.at("approximation_window")},
                                                    {"kernel_size", p.at("kernel_size")},
                                                    {"local_window", p.at("local_window")},
                                                    {"prefix_tokens", p.at("prefix_tokens")},
                                                    {"min_head_capacity_ratio", p.at("min_head_capacity_ratio")}})});
       }},
      {"sparse-frontier/QuestAttention",
       [](const Json& p, Index) {
         return Json::array({masker("quest_top_k", {{"heavy_size", p.at("token_budget")},
                                                    {"page_size", p.at("page_size")},
                                                    {"min_pages", 1},
                                                    {"share_within_group", p.at("share_pages")},
                                                    {"keep_current_page", true}})});
       }},
      {"minference/vertical_and_slash",
       [](const Json& p, Index) {
         return vertical_slash(std::max(p.at("vertical_size").get<Index>(), p.at("min_vertical").get<Index>()),
                               std::max(p.at("slash_size").get<Index>(), p.at("min_slash").get<Index>()),
                               p.at("last_q"), p.at("forced_first_verticals"), p.at("forced_recent_slashes"));
       }},
      {"minference/A-shape / Tri-shape", shape_of_a},
      {"minference/block_sparse",
       [](const Json& p, Index) {
         return Json::array({masker(
             "block_sparse", {{"chunk_size", p.at("block_size")}, {"top_chunks", p.at("top_k")}, {"sink_chunks", 0}})});
       }},
      {"minference/FlexPrefill",
       [](const Json& p, Index) {
         Json flex = {{"gamma", p.at("gamma")},
                      {"tau", p.at("tau")},
                      {"block_size", p.at("block_size")},
                      {"max_budget", p.at("max_budget")},
                      {"tokens_per_block", 128}};  // the original divides by 128 whatever its blocks
         if (!p.at("min_budget").is_null()) flex["min_budget"] = p.at("min_budget");
         return Json::array({masker("flex_prefill", std::move(flex))});
       }},
      {"minference/XAttention",
       [](const Json& p, Index) {
         return Json::array({masker("x_attention", {{"stride", p.at("stride")},
                                                    {"threshold", p.at("threshold")},
                                                    {"block_size", p.at("block_size")},
                                                    {"norm", p.at("norm")}})});
       }},
      {"minference/KV compression snapkv_avg", minference_snap_kv},
      {"minference/KV compression snapkv_max", minference_snap_kv},
      {"minference/KV compression pyramidkv",
       [](const Json& p, Index) {
         return Json::array({masker("pyramid_kv", {{"num_layers", p.at("num_hidden_layers")},
                                                   {"token_capacity", p.at("max_capacity_prompt")},
                                                   {"approximation_window", p.at("window_size")},
                                                   {"kernel_size", p.at("kernel_size")},
                                                   {"pooling", p.at("pooling") == "maxpool" ? "max" : "avg"},
                                                   {"beta", p.at("beta")}})});
       }},
      {"minference/KV compression streamingllm",
       [](const Json& p, Index) {
         const auto window = p.at("window_size").get<Index>();
         return Json::array({masker("sink", {{"sink_size", p.at("max_capacity_prompt").get<Index>() - window}}),
                             masker("local", {{"window_size", window}})});
       }},
      {"minference/Quest",
       [](const Json& p, Index keys) {
         return Json::array({masker("quest_top_k", {{"heavy_size", std::min(p.at("token_budget").get<Index>(), keys)},
                                                    {"page_size", p.at("chunk_size")}})});
       }},
      {"magicpig/LSH sampling attention",
       [](const Json& p, Index) {
         return Json::array({masker(
             "magic_pig", {{"lsh_k", p.at("K")},
                           {"lsh_l", p.at("L")},
                           {"min_collisions", p.at("min_collisions")},
                           {"lift", false},
                           {"center_query", false},
                           {"mean_skips_first", p.at("sink")},
                           {"mean_skips_last", p.at("window").get<Index>() + p.at("gen_steps").get<Index>()}})});
       }},
  };
  return patterns;
}

/// Queries [from, to) of a sequence and the keys up to the last of them. A key axis longer than the query axis starts
/// earlier; both end together.
struct Sequence {
  TensorView queries, keys, values;

  AttentionInputs inputs(Index from, Index to, Stage stage, int layer = 0) const {
    AttentionInputs inputs;
    const Index before = keys.size(2) - queries.size(2);
    inputs.queries = queries.slice(2, from, to);
    inputs.keys = keys.slice(2, 0, before + to);
    inputs.values = values.slice(2, 0, before + to);
    inputs.scaling = 1 / std::sqrt(static_cast<float>(queries.size(3)));
    inputs.causal = true;
    inputs.stage = stage;
    inputs.layer = layer;
    return inputs;
  }
};

class PatternCase {
 public:
  explicit PatternCase(const CaseFile& file) : file_(file), json_(file.json()) {}

  Report run() {
    const auto pattern = json_.at("pattern").get<std::string>();
    if (pattern == "Attention static utilities") return sparsity_ratios(), report_;
    if (pattern == "LSH batch_retrieve") return retrieval(), report_;
    if (pattern == "sampling probability") return probabilities(), report_;
    if (pattern == "InferenceHandler") return handler(), report_;
    if (pattern == "llama_attention_forward") return llama_layer(), report_;
    if (pattern == "model_forward loss") return loss(), report_;
    if (pattern == "offline pattern search") return search(), report_;
    std::string key = json_.at("family").get<std::string>() + "/" + pattern;
    // Compressions are named with their layer.
    if (const std::size_t layer = key.find("_l"); key.find("pyramidkv") != std::string::npos && layer != key.npos)
      key.resize(layer);
    const auto found = patterns().find(key);
    if (found == patterns().end()) return {Outcome::unknown, 0, "\"" + pattern + "\" is not supported"};
    make_ = found->second;

    const auto stage = json_.at("stage").get<std::string>();
    if (file_.has("prefill_queries")) {
      generation_after_prefill();
    } else if (file_.has("hash_matrix")) {
      hashed_decode();
    } else if (stage == "prefill-compress") {
      compression();
    } else if (json_.contains("gen_steps")) {
      decode();
    } else {
      prefill(sequence(file_.has("query") ? "query" : "queries"),
              stage == "prefill" ? Stage::prefill : Stage::generation);
    }
    return report_;
  }

 private:
  const Json& parameters() const { return json_.at("params"); }

  Sequence sequence(const char* queries) const {
    return {file_.tensor(queries), file_.tensor("keys"), file_.tensor("values")};
  }

  static SparseAttention pipeline(Json maskers) {
    Json config;
    config["maskers"] = std::move(maskers);
    config["causal"] = true;
    return SparseAttention::from_json(config.dump());
  }
  SparseAttention pipeline(Index keys) const { return pipeline(make_(parameters(), keys)); }

  /// The mask must be the recorded one and the output of attention over it, too.
  void compare(const AttentionInputs& inputs, const Mask& mask, const std::string& mask_name,
               const std::string& output_name) {
    report_.difference(mask_name, largest_difference(mask, file_.mask_of(mask_name)), 0);
    const AttentionResult result = attention(inputs, mask);
    compare_values(output_name, result.output.span<float>());
    if (mask_name == "mask_dense" && file_.has("lse")) compare_values("lse", result.lse.span<float>());
    if (mask_name == "mask_dense") compare_sparsity(mask, "sparsity_ratio");
  }

  void compare_values(const std::string& name, std::span<const float> ours) {
    const std::span<const float> theirs = file_.values<float>(name);
    if (ours.size() != theirs.size()) return report_.fail(name + " has another size");
    const double absolute = file_.tolerance("output_atol", 3e-5), relative = file_.tolerance("output_rtol", 3e-5);
    for (std::size_t i = 0; i < ours.size(); ++i)
      report_.difference(name, std::abs(static_cast<double>(ours[i]) - static_cast<double>(theirs[i])),
                         absolute + relative * std::abs(static_cast<double>(theirs[i])));
  }

  /// Kept entries over those that causality leaves, subtracted from 1.
  static double sparsity(const Mask& mask) {
    return 1 - static_cast<double>(mask.nnz()) / static_cast<double>(causal_nnz(Mask::full(mask.shape())));
  }
  void compare_sparsity(const Mask& mask, const char* name) {
    if (!json_.contains("expected") || !json_.at("expected").contains(name)) return;
    report_.difference(name, std::abs(sparsity(mask) - json_.at("expected").at(name).get<double>()),
                       file_.tolerance("sparsity_atol", 1e-5));
  }

  void prefill(const Sequence& all, Stage stage) {
    const AttentionInputs inputs = all.inputs(0, all.queries.size(2), stage);
    SequenceState state;
    compare(inputs, pipeline(inputs.keys_length()).mask(inputs, state), "mask_dense", "output");
    if (!file_.has("mask_effective_64x64")) return;
    Json maskers = make_(parameters(), inputs.keys_length());
    maskers.at(0)["block_size"] = parameters().at("block");
    SequenceState other;
    compare(inputs, pipeline(std::move(maskers)).mask(inputs, other), "mask_effective_64x64", "output_effective_64x64");
  }

  /// Rows from `prompt` on are generated: all in one call, and one by one, must give the recorded mask.
  Mask generate(const SparseAttention& sparse, const Sequence& all, Index prompt, int layer, SequenceState& state) {
    const Index end = all.queries.size(2);
    SequenceState stepwise;
    sparse.mask(all.inputs(0, prompt, Stage::prefill, layer), state);
    sparse.mask(all.inputs(0, prompt, Stage::prefill, layer), stepwise);
    Mask at_once = sparse.mask(all.inputs(prompt, end, Stage::generation, layer), state);
    Mask steps;
    for (Index query = prompt; query < end; ++query) {
      const Mask step = sparse.mask(all.inputs(query, query + 1, Stage::generation, layer), stepwise);
      const Mask row = append_keys(step, all.keys.size(2) - step.shape().keys);
      steps = query == prompt ? row : append_queries(steps, row);
    }
    if (end > prompt) report_.difference("step by step", largest_difference(at_once, steps), 0);
    return at_once;
  }

  void generation_after_prefill() {
    const Tensor queries = joined("prefill_queries", "gen_queries"), keys = joined("prefill_keys", "gen_keys"),
                 values = joined("prefill_values", "gen_values");
    const Sequence all{queries.view(), keys.view(), values.view()};
    generated(all, file_.tensor("prefill_queries").size(2));
  }

  void decode() { generated(sequence("queries"), json_.at("prefill_length").get<Index>()); }

  void generated(const Sequence& all, Index prompt) {
    SequenceState state;
    const Mask mask = generate(pipeline(prompt), all, prompt, 0, state);
    compare(all.inputs(prompt, all.queries.size(2), Stage::generation), mask, "mask_dense", "output");
  }

  Tensor joined(const char* a, const char* b) const {
    const TensorView first = file_.tensor(a), second = file_.tensor(b);
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

  /// What is kept of a prompt, as its last query sees it.
  void compression() {
    const Sequence all = sequence("queries");
    const Index prompt = all.queries.size(2);
    SequenceState state;
    const int layer = parameters().value("layer_idx", 0);
    const SparseAttention sparse = pipeline(prompt);
    sparse.mask(all.inputs(0, prompt, Stage::prefill, layer), state);
    const Mask kept = sparse.mask(all.inputs(prompt - 1, prompt, Stage::generation, layer), state);
    const std::span<const std::uint8_t> theirs = file_.values<std::uint8_t>("state_kept_prefill");
    report_.difference("state_kept_prefill",
                       largest_difference(to_dense(kept), std::vector<float>(theirs.begin(), theirs.end())), 0);
  }

  /// MagicPIG: sinks, the end of the prompt and what came later are attended to in any case.
  void hashed_decode() {
    const Json& p = parameters();
    const Sequence all = sequence("queries");
    AttentionInputs inputs = all.inputs(0, all.queries.size(2), Stage::generation);
    const NamedTensor projection{"projection", file_.tensor("hash_matrix")};
    inputs.extras = {&projection, 1};
    const auto sink = p.at("sink").get<std::int32_t>();
    const auto window = p.at("prefill_length").get<std::int32_t>() - p.at("window").get<std::int32_t>();
    const Mask always =
        Mask::from_runs(inputs.shape().one_head(), [&](RowId row, FunctionRef<void(reticle::Run)> emit) {
          emit({0, sink, 1});
          emit({window, static_cast<std::int32_t>(inputs.position(row.query) + 1), 1});
        });
    SequenceState state;
    const Mask mask = pipeline(inputs.keys_length()).mask(inputs, state, {}, always);
    report_.difference("mask_dense", largest_difference(support(mask), file_.mask_of("mask_dense")), 0);
    const Mask theirs = file_.mask_of("sampling_probability");
    report_.difference("sampling_probability", largest_difference(mask, theirs), file_.tolerance("weight_atol", 1e-5));
    // The reference divides by p + log_eps where it samples.
    Array<float> p_used = to_dense(theirs);
    for (float& value : p_used)
      value = value > 0 && value < 1 ? std::min(1.0f, value + p.at("log_eps").get<float>()) : value;
    compare_values("output", attention(inputs, Mask::dense(inputs.shape(), p_used)).output.span<float>());
  }

  void handler() {
    const Json& p = parameters();
    const auto one = [&](const char* stage) {
      const Json& of_stage = p.at(stage);
      return patterns().at("nano/" + of_stage.at("name").get<std::string>())(of_stage, 0);
    };
    const SparseAttention sparse = by_stage(one("prefill"), one("generation"));
    SequenceState teacher_forced(Recording::figures);
    const Index layers = p.at("num_layer_calls").get<Index>(), length = file_.tensor("queries").size(3);
    const Index prompt = length - p.at("output_length").get<Index>();
    SequenceState state;
    for (Index layer = 0; layer < layers; ++layer) {
      const auto of_layer = [&](const char* name) {
        const TensorView view = file_.tensor(name).slice(0, layer, layer + 1);
        return TensorView(view.data, view.dtype, {view.size(1), view.size(2), view.size(3), view.size(4)});
      };
      const Sequence all{of_layer("queries"), of_layer("keys"), of_layer("values")};
      const int index = static_cast<int>(layer);
      const Mask generated = generate(sparse, all, prompt, index, state);
      SequenceState fresh;
      const Mask prefilled = sparse.mask(all.inputs(0, prompt, Stage::prefill, index), fresh);
      const Mask mask = append_queries(append_keys(prefilled, length - prompt), generated);
      const std::span<const std::uint8_t> kept =
          file_.values<std::uint8_t>("mask_dense")
              .subspan(static_cast<std::size_t>(layer * mask.shape().positions()),
                       static_cast<std::size_t>(mask.shape().positions()));
      report_.difference("mask_dense", largest_difference(to_dense(mask), std::vector<float>(kept.begin(), kept.end())),
                         0);
      const AttentionResult result = sparse.forward(all.inputs(0, length, Stage::prefill, index),
                                                    p.at("output_length").get<Index>(), teacher_forced);
      const auto size = static_cast<std::size_t>(result.output.view().elements());
      report_.difference(
          "output",
          largest_difference(result.output.span<float>(),
                             file_.values<float>("output").subspan(static_cast<std::size_t>(layer) * size, size)),
          file_.tolerance("output_atol", 2e-5) * 2);
      compare_recorded_sparsity("prefill_sparsity_list", layer, prefilled);
      compare_recorded_sparsity("generation_sparsity_list", layer, generated);
    }
    const Json& expected = json_.at("expected");
    for (const auto& [name, stage] :
         {std::pair{"prefill_sparsity_avg", Stage::prefill}, std::pair{"generation_sparsity_avg", Stage::generation}})
      report_.difference(name,
                         std::abs(teacher_forced.recorded(stage).mean_sparsity() - expected.at(name).get<double>()),
                         file_.tolerance("sparsity_atol", 1e-6));
  }

  static SparseAttention by_stage(Json prefill, Json generation) {
    Json config;
    config["prefill"]["maskers"] = std::move(prefill);
    config["generation"]["maskers"] = std::move(generation);
    config["causal"] = true;
    return SparseAttention::from_json(config.dump());
  }

  /// One layer, prompt and output through its cache.
  void llama_layer() {
    const Json& p = parameters();
    const auto handler_name = p.at("handler").get<std::string>();
    const std::size_t to = handler_name.find("_to_");
    const SparseAttention sparse =
        by_stage(patterns().at("nano/" + handler_name.substr(0, to))(p.at("prefill"), 0),
                 patterns().at("nano/" + handler_name.substr(to + 4))(p.at("generation"), 0));
    const Index d = p.at("head_dim"), kv_heads = p.at("num_kv_heads"), output = p.at("output_length");
    const Rope rope(d, p.at("rope_theta").get<double>(), std::nullopt);
    const SelfAttention layer(d, rope,
                              {file_.tensor("wq"), file_.tensor("wk"), file_.tensor("wv"), file_.tensor("wo")});
    const TensorView& x = file_.tensor("hidden_states");
    const Index length = x.size(1), prompt = length - output;
    KvCache cache({1, kv_heads, d, d, length, DType::f32});
    SequenceState state(Recording::masks);
    std::vector<float> ours;
    const auto extend = [&](Index from, Index until, Stage stage) {
      cache.extend(std::vector<std::int32_t>(static_cast<std::size_t>(until - from)));
      const AttendedSequence sequence{&cache, 0, stage, &state};
      const Index cu_seqlens[] = {0, until - from};
      const TensorView rows(x.at<float>(0, from, 0), DType::f32, {until - from, x.size(2)});
      const Tensor y = layer.extend(rows, cu_seqlens, {&sequence, 1}, &sparse);
      ours.insert(ours.end(), y.span<float>().begin(), y.span<float>().end());
    };
    extend(0, prompt, Stage::prefill);
    extend(prompt, length, Stage::generation);
    compare_values("output", ours);
    for (const auto& [name, stage] :
         {std::pair{"prefill", Stage::prefill}, std::pair{"generation", Stage::generation}}) {
      const StageRecord& record = state.recorded(stage);
      report_.difference(
          name,
          std::abs(record.mean_sparsity() - json_.at("expected").at(std::string(name) + "_sparsity").get<double>()),
          1e-6);
      const std::string mask_name = std::string(name) + "_mask_b0h0";
      report_.difference(
          mask_name, largest_difference(slice(record.masks.at(0).mask, Dim::heads, 0, 1), file_.mask_of(mask_name)), 0);
    }
  }

  void loss() {
    const Json& expected = json_.at("expected");
    const double tolerance = file_.tolerance("loss_atol", 1e-5);
    double sum = 0;
    Index example = 0;
    for (const Json& of_example : parameters().at("examples")) {
      const std::string number = std::to_string(example);
      const auto ids = file_.values<std::int64_t>("input_ids_" + number);
      const TensorView& logits = file_.tensor("logits_" + number);
      const double own =
          loss_of_last({logits.data, logits.dtype, {logits.size(1), logits.size(2)}},
                       std::vector<std::int32_t>(ids.begin(), ids.end()), of_example.at("output_length"));
      report_.difference(
          "per_example_loss",
          std::abs(own - expected.at("per_example_loss").at(static_cast<std::size_t>(example)).get<double>()),
          tolerance);
      sum += own;
      ++example;
    }
    report_.difference("loss", std::abs(sum / static_cast<double>(example) - expected.at("loss").get<double>()),
                       tolerance);
  }

  void compare_recorded_sparsity(const char* name, Index layer, const Mask& mask) {
    const Json& list = json_.at("expected").at(name);  // empty for dense attention, which records none
    if (list.empty()) return report_.difference(name, sparsity(mask), 0);
    report_.difference(name, std::abs(sparsity(mask) - list.at(static_cast<std::size_t>(layer)).get<double>()),
                       file_.tolerance("sparsity_atol", 1e-6));
  }

  void sparsity_ratios() {
    for (const auto& [name, expected] : json_.at("expected").at("sparsity").items())
      report_.difference(name, std::abs(sparsity(file_.mask_of(name)) - expected.get<double>()),
                         file_.tolerance("sparsity_atol", 1e-6));
  }

  /// MInference's search: which candidate covers the most attention of the later rows.
  void search() {
    const Json &p = parameters(), &expected = json_.at("expected");
    const Sequence all{file_.tensor("queries"), file_.tensor("keys"), file_.tensor("keys")};
    const AttentionInputs inputs = all.inputs(0, all.queries.size(2), Stage::prefill);
    const Index from = p.at("eval_rows_from"), block = p.at("search_block");
    const auto maskers = [&](const std::string& type, Index first, Index second) {
      if (type == "stream_llm")  // the search's window keeps one distance more than the kernel's
        return Json::array({masker("sink", {{"sink_size", first}}), masker("local", {{"window_size", second + 1}})});
      if (type == "vertical_and_slash") return vertical_slash(first, second, p.at("last_q"), 30, 30);
      if (block < 1 || first < 1) throw FormatError("search_block and all_scores: expected positive sizes");
      const Index blocks = (inputs.keys_length() + block - 1) / block;
      return Json::array(
          {masker("block_sparse",
                  {{"chunk_size", block}, {"top_chunks", std::max<Index>(1, blocks / first)}, {"sink_chunks", 0}})});
    };
    const AttentionResult dense = attention(inputs, Mask::full(inputs.shape()));
    double best = -1;
    for (const Json& recorded : expected.at("all_scores")) {
      SequenceState state;
      const Mask mask = pipeline(maskers(recorded.at(0), recorded.at(1), recorded.at(2))).mask(inputs, state);
      const AttentionResult sparse = attention(inputs, mask);
      double mass = 0;
      for (Index row = from; row < inputs.queries_length(); ++row)
        mass += std::exp(static_cast<double>(*sparse.lse.view().at<float>(0, 0, row)) -
                         static_cast<double>(*dense.lse.view().at<float>(0, 0, row)));
      mass /= static_cast<double>(inputs.queries_length() - from);
      report_.difference(recorded.at(0).get<std::string>(), std::abs(mass - recorded.at(3).get<double>()),
                         file_.tolerance("score_atol", 2e-5));
      best = std::max(best, mass);
    }
    report_.difference("best", std::abs(best - expected.at("best").at(3).get<double>()),
                       file_.tolerance("score_atol", 2e-5));
  }

  /// Of any signed integer type.
  std::vector<std::int32_t> integers(const char* name) const {
    if (file_.tensor(name).dtype == DType::i32) {
      const auto values = file_.values<std::int32_t>(name);
      return {values.begin(), values.end()};
    }
    const auto values = file_.values<std::int16_t>(name);
    return {values.begin(), values.end()};
  }

  /// Which keys share the query's code in two tables.
  void retrieval() {
    const Json& p = parameters();
    const Index heads = p.at("num_heads"), kv_heads = p.at("num_kv_heads"), tables = p.at("L"), keys = p.at("seq_len");
    const std::vector<std::int32_t> key_codes = integers("key_codes"), query_codes = integers("query_codes");
    const auto expected = file_.values<std::uint8_t>("retrieved_mask");
    const LshRecipe recipe{.tables = tables, .bits = 32, .min_collisions = 2};
    std::vector<std::int32_t> of_key(static_cast<std::size_t>(tables));
    for (Index head = 0; head < heads; ++head) {
      const Index kv_head = head / (heads / kv_heads);
      for (Index key = 0; key < keys; ++key) {
        for (Index table = 0; table < tables; ++table)
          of_key[static_cast<std::size_t>(table)] =
              key_codes[static_cast<std::size_t>((kv_head * tables + table) * keys + key)];
        std::vector<std::int32_t> found;
        collisions(reinterpret_cast<const std::uint8_t*>(query_codes.data() + head * tables),
                   reinterpret_cast<const std::uint8_t*>(of_key.data()), 1, recipe, found);
        if (found.empty() == (expected[static_cast<std::size_t>(head * keys + key)] != 0))
          return report_.fail(fmt::format("head {}, key {} is retrieved by one only", head, key));
      }
    }
  }

  void probabilities() {
    const auto cosines = file_.values<double>("cosine"), expected = file_.values<double>("probability");
    std::size_t at = 0;
    for (const Json& row : parameters().at("K_L_rows")) {
      for (const double cosine : cosines)
        report_.difference("probability",
                           std::abs(collision_probability(cosine, row.at(0), row.at(1), 2) - expected[at++]),
                           file_.tolerance("prob_atol", 1e-9));
    }
  }

  const CaseFile& file_;
  const Json& json_;
  MakeMaskers make_ = nullptr;
  Report report_;
};

}  // namespace

Report replay_pattern(const CaseFile& file) { return PatternCase(file).run(); }

}  // namespace reticle::tools
