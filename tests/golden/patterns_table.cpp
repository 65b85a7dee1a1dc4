#include "golden/patterns_table.hpp"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

namespace reticle::golden {
namespace {

// "$name" is a parameter, "$keys" the length of the prompt; {"$max": [a, b]}, "$min", "$plus" and "$minus" are of whole
// numbers, and {"$rename": [value, {"theirs": "ours"}]} is a name of ours. A masker with "$if" is left out when that is
// 0, a field when its value is null.
constexpr const char* kPatterns = R"json({
"nano/DenseAttention": [],
"nano/LocalAndSinksAttention": [
  {"type": "local", "window_size": "$window_size"},
  {"$if": "$attention_sinks", "type": "sink", "sink_size": "$attention_sinks"}],
"nano/VerticalAndSlashAttention": [
  {"type": "vertical_slash", "vertical_size": "$top_tokens", "slash_size": "$top_slashes",
   "approximation_window": "$approximation_window", "attention_sinks": "$attention_sinks",
   "window_size": "$window_size"}],
"nano/BlockSparseAttention": [
  {"type": "local", "window_size": "$chunk_size"},
  {"type": "block_sparse", "chunk_size": "$chunk_size", "top_chunks": "$top_chunks"}],
"nano/SnapKVAttention": [
  {"type": "snap_kv", "token_capacity": "$token_capacity", "approximation_window": "$approximation_window",
   "kernel_size": "$kernel_size"}],
"nano/TOVAAttention": [{"type": "tova", "token_capacity": "$token_capacity"}],

"sparse-frontier/VerticalSlash": [
  {"type": "vertical_slash", "vertical_size": "$vertical_size", "slash_size": "$slash_size",
   "approximation_window": "$approximation_size", "attention_sinks": "$forced_verticals",
   "window_size": "$forced_slashes"}],
"sparse-frontier/FlexPrefill": [
  {"type": "adaptive_vertical_slash", "alpha": "$alpha", "approximation_size": "$approximation_size",
   "min_budget": "$min_budget", "attention_sinks": "$forced_verticals", "window_size": "$forced_slashes"}],
"sparse-frontier/BlockSparse": [
  {"type": "block_sparse", "chunk_size": "$chunk_size", "top_chunks": "$top_chunks", "recent_chunks": 2}],
"sparse-frontier/SnapKVCompression": [
  {"type": "snap_kv", "token_capacity": "$token_capacity", "approximation_window": "$approximation_window",
   "kernel_size": "$kernel_size", "local_window": "$local_window", "prefix_tokens": "$prefix_tokens",
   "share_within_group": true}],
"sparse-frontier/AdaSnapKVCompression": [
  {"type": "ada_snap_kv", "token_capacity": "$token_capacity", "approximation_window": "$approximation_window",
   "kernel_size": "$kernel_size", "local_window": "$local_window", "prefix_tokens": "$prefix_tokens",
   "min_head_capacity_ratio": "$min_head_capacity_ratio"}],
"sparse-frontier/QuestAttention": [
  {"type": "quest_top_k", "heavy_size": "$token_budget", "page_size": "$page_size", "min_pages": 1,
   "share_within_group": "$share_pages", "keep_current_page": true}],

"minference/vertical_and_slash": [
  {"type": "vertical_slash", "vertical_size": {"$max": ["$vertical_size", "$min_vertical"]},
   "slash_size": {"$max": ["$slash_size", "$min_slash"]}, "approximation_window": "$last_q",
   "attention_sinks": "$forced_first_verticals", "window_size": "$forced_recent_slashes"}],
"minference/A-shape / Tri-shape": [
  {"type": "tri_shape", "n_init": "$n_init", "n_local": "$n_local", "n_last": "$n_last"}],
"minference/block_sparse": [
  {"type": "block_sparse", "chunk_size": "$block_size", "top_chunks": "$top_k", "sink_chunks": 0}],
"minference/FlexPrefill": [  // the original divides by 128 whatever its blocks
  {"type": "flex_prefill", "gamma": "$gamma", "tau": "$tau", "block_size": "$block_size",
   "min_budget": "$min_budget", "max_budget": "$max_budget", "tokens_per_block": 128}],
"minference/XAttention": [
  {"type": "x_attention", "stride": "$stride", "threshold": "$threshold", "block_size": "$block_size",
   "norm": "$norm"}],
"minference/KV compression snapkv": [
  {"type": "snap_kv", "token_capacity": "$max_capacity_prompt", "approximation_window": "$window_size",
   "kernel_size": "$kernel_size", "pooling": {"$rename": ["$pooling", {"maxpool": "max", "avgpool": "avg"}]},
   "pool_window": false}],
"minference/KV compression pyramidkv": [
  {"type": "pyramid_kv", "num_layers": "$num_hidden_layers", "token_capacity": "$max_capacity_prompt",
   "approximation_window": "$window_size", "kernel_size": "$kernel_size",
   "pooling": {"$rename": ["$pooling", {"maxpool": "max", "avgpool": "avg"}]}, "beta": "$beta"}],
"minference/KV compression streamingllm": [
  {"type": "sink", "sink_size": {"$minus": ["$max_capacity_prompt", "$window_size"]}},
  {"type": "local", "window_size": "$window_size"}],
"minference/Quest": [
  {"type": "quest_top_k", "heavy_size": {"$min": ["$token_budget", "$keys"]}, "page_size": "$chunk_size"}],
// The search's window keeps one distance more than the kernel's.
"minference/search stream_llm": [
  {"type": "sink", "sink_size": "$first"},
  {"type": "local", "window_size": {"$plus": ["$second", 1]}}],
"minference/search vertical_and_slash": [
  {"type": "vertical_slash", "vertical_size": "$first", "slash_size": "$second", "approximation_window": "$last_q",
   "attention_sinks": 30, "window_size": 30}],
"minference/search block_sparse": [
  {"type": "block_sparse", "chunk_size": "$search_block", "top_chunks": "$top_chunks", "sink_chunks": 0}],

"magicpig/LSH sampling attention": [
  {"type": "magic_pig", "lsh_k": "$K", "lsh_l": "$L", "min_collisions": "$min_collisions", "lift": false,
   "center_query": false, "mean_skips_first": "$sink", "mean_skips_last": {"$plus": ["$window", "$gen_steps"]}}]
})json";

const Json& patterns() {
  static const Json patterns = Json::parse(kPatterns, nullptr, true, /*ignore_comments=*/true);
  return patterns;
}

/// Evaluates an entry of the table for one case.
class Evaluation {
 public:
  Evaluation(const Json& parameters, Index keys, const Case& file)
      : parameters_(parameters), keys_(keys), file_(file) {}

  Json value(const Json& expression) const {
    if (expression.is_string() && expression.get_ref<const std::string&>().starts_with('$'))
      return parameter(expression.get_ref<const std::string&>().substr(1));
    if (expression.is_array()) return maskers(expression);
    if (!expression.is_object()) return expression;
    if (const auto first = expression.items().begin(); first.key().starts_with('$') && first.key() != "$if")
      return applied(first.key(), first.value());
    Json fields = Json::object();
    for (const auto& [name, field] : expression.items()) {
      if (name == "$if") continue;
      if (Json of_field = value(field); !of_field.is_null()) fields[name] = std::move(of_field);
    }
    return fields;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw FormatError(file_.path().string() + ": the pattern's parameters: " + what);
  }

  Json parameter(const std::string& name) const {
    if (name == "keys") return keys_;
    if (!parameters_.contains(name)) refuse("\"" + name + "\" is missing");
    return parameters_.at(name);
  }

  Json maskers(const Json& list) const {
    Json present = Json::array();
    for (const Json& masker : list) {
      if (!masker.contains("$if") || whole(masker.at("$if")) != 0) present.push_back(value(masker));
    }
    return present;
  }

  /// Bounded, so that sums do not overflow.
  Index whole(const Json& expression) const {
    const Json number = value(expression);
    if (!number.is_number() || std::abs(number.get<double>()) >= 0x1p31)
      refuse(expression.dump() + " is " + number.dump() + "; expected a number below 2^31");
    return number.get<Index>();
  }

  Json applied(const std::string& operation, const Json& operands) const {
    if (operation == "$rename") {
      const Json theirs = value(operands[0]);
      if (!theirs.is_string() || !operands[1].contains(theirs.get<std::string>()))
        refuse(operands[0].dump() + " is " + theirs.dump() + "; expected one of " + operands[1].dump());
      return operands[1].at(theirs.get<std::string>());
    }
    const Index a = whole(operands[0]), b = whole(operands[1]);
    return operation == "$max"    ? std::max(a, b)
           : operation == "$min"  ? std::min(a, b)
           : operation == "$plus" ? a + b
                                  : a - b;
  }

  const Json& parameters_;
  Index keys_;
  const Case& file_;
};

}  // namespace

bool has_pattern(const std::string& name) { return patterns().contains(name); }

Json maskers_of_pattern(const std::string& name, const Json& parameters, Index keys, const Case& file) {
  if (!has_pattern(name)) throw FormatError(file.path().string() + ": the pattern \"" + name + "\" is not supported");
  return Evaluation(parameters, keys, file).value(patterns().at(name));
}

}  // namespace reticle::golden
