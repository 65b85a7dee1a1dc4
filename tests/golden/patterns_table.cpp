#include "golden/patterns_table.hpp"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

namespace reticle::golden {
namespace {

// "$name" is a parameter, "$" the one with the name of the field, "$keys" the length of the prompt. {"$max": [a, b]},
// "$min", "$plus" and "$minus" compute whole numbers, {"$rename": [value, {"theirs": "ours"}]} translates a name. A
// masker with "$if" is left out when that is 0, a field when its value is null.
constexpr const char* kPatterns = R"json({
"nano/DenseAttention": [],
"nano/LocalAndSinksAttention": [
  {"type": "local", "window_size": "$"},
  {"$if": "$attention_sinks", "type": "sink", "sink_size": "$attention_sinks"}],
"nano/VerticalAndSlashAttention": [
  {"type": "vertical_slash", "vertical_size": "$top_tokens", "slash_size": "$top_slashes", "approximation_window": "$",
   "attention_sinks": "$", "window_size": "$"}],
"nano/BlockSparseAttention": [
  {"type": "local", "window_size": "$chunk_size"},
  {"type": "block_sparse", "chunk_size": "$", "top_chunks": "$"}],
"nano/SnapKVAttention": [
  {"type": "snap_kv", "token_capacity": "$", "approximation_window": "$", "kernel_size": "$"}],
"nano/TOVAAttention": [{"type": "tova", "token_capacity": "$"}],

"sparse-frontier/VerticalSlash": [
  {"type": "vertical_slash", "vertical_size": "$", "slash_size": "$", "approximation_window": "$approximation_size",
   "attention_sinks": "$forced_verticals", "window_size": "$forced_slashes"}],
"sparse-frontier/FlexPrefill": [
  {"type": "adaptive_vertical_slash", "alpha": "$", "approximation_size": "$", "min_budget": "$",
   "attention_sinks": "$forced_verticals", "window_size": "$forced_slashes"}],
"sparse-frontier/BlockSparse": [{"type": "block_sparse", "chunk_size": "$", "top_chunks": "$", "recent_chunks": 2}],
"sparse-frontier/SnapKVCompression": [
  {"type": "snap_kv", "token_capacity": "$", "approximation_window": "$", "kernel_size": "$", "local_window": "$",
   "prefix_tokens": "$", "share_within_group": true}],
"sparse-frontier/AdaSnapKVCompression": [
  {"type": "ada_snap_kv", "token_capacity": "$", "approximation_window": "$", "kernel_size": "$", "local_window": "$",
   "prefix_tokens": "$", "min_head_capacity_ratio": "$"}],
"sparse-frontier/QuestAttention": [
  {"type": "quest_top_k", "heavy_size": "$token_budget", "page_size": "$", "min_pages": 1,
   "share_within_group": "$share_pages", "keep_current_page": true}],

"minference/vertical_and_slash": [
  {"type": "vertical_slash", "vertical_size": {"$max": ["$vertical_size", "$min_vertical"]},
   "slash_size": {"$max": ["$slash_size", "$min_slash"]}, "approximation_window": "$last_q",
   "attention_sinks": "$forced_first_verticals", "window_size": "$forced_recent_slashes"}],
"minference/A-shape / Tri-shape": [{"type": "tri_shape", "n_init": "$", "n_local": "$", "n_last": "$"}],
"minference/block_sparse": [
  {"type": "block_sparse", "chunk_size": "$block_size", "top_chunks": "$top_k", "sink_chunks": 0}],
"minference/FlexPrefill": [  // the original divides by 128 whatever its blocks
  {"type": "flex_prefill", "gamma": "$", "tau": "$", "block_size": "$", "min_budget": "$", "max_budget": "$",
   "tokens_per_block": 128}],
"minference/XAttention": [{"type": "x_attention", "stride": "$", "threshold": "$", "block_size": "$", "norm": "$"}],
"minference/KV compression snapkv": [
  {"type": "snap_kv", "token_capacity": "$max_capacity_prompt", "approximation_window": "$window_size",
   "kernel_size": "$", "pooling": {"$rename": ["$pooling", {"maxpool": "max", "avgpool": "avg"}]},
   "pool_window": false}],
"minference/KV compression pyramidkv": [
  {"type": "pyramid_kv", "num_layers": "$num_hidden_layers", "token_capacity": "$max_capacity_prompt",
   "approximation_window": "$window_size", "kernel_size": "$", "beta": "$",
   "pooling": {"$rename": ["$pooling", {"maxpool": "max", "avgpool": "avg"}]}}],
"minference/KV compression streamingllm": [
  {"type": "sink", "sink_size": {"$minus": ["$max_capacity_prompt", "$window_size"]}},
  {"type": "local", "window_size": "$"}],
"minference/Quest": [
  {"type": "quest_top_k", "heavy_size": {"$min": ["$token_budget", "$keys"]}, "page_size": "$chunk_size"}],
"minference/search stream_llm": [  // the search's window keeps one distance more than the kernel's
  {"type": "sink", "sink_size": "$first"},
  {"type": "local", "window_size": {"$plus": ["$second", 1]}}],
"minference/search vertical_and_slash": [
  {"type": "vertical_slash", "vertical_size": "$first", "slash_size": "$second", "approximation_window": "$last_q",
   "attention_sinks": 30, "window_size": 30}],
"minference/search block_sparse": [
  {"type": "block_sparse", "chunk_size": "$search_block", "top_chunks": "$", "sink_chunks": 0}],

"magicpig/LSH sampling attention": [
  {"type": "magic_pig", "lsh_k": "$K", "lsh_l": "$L", "min_collisions": "$", "lift": false, "center_query": false,
   "mean_skips_first": "$sink", "mean_skips_last": {"$plus": ["$window", "$gen_steps"]}}]
})json";

const Json& patterns() {
  static const Json patterns = Json::parse(kPatterns, nullptr, true, /*ignore_comments=*/true);
  return patterns;
}

/// Evaluates an entry of the table for one case.
struct Evaluation {
  const Json& parameters;
  Index keys;
  const Case& file;

  [[noreturn]] void refuse(const std::string& what) const {
    throw FormatError(file.path().string() + ": params: " + what);
  }

  Json value(const Json& expression, const std::string& field = "") const {
    if (expression.is_string() && expression.get_ref<const std::string&>().starts_with('$')) {
      const std::string name = expression == "$" ? field : expression.get<std::string>().substr(1);
      if (name == "keys") return keys;
      if (!parameters.contains(name)) refuse("\"" + name + "\" is missing");
      return parameters.at(name);
    }
    if (!expression.is_structured()) return expression;
    if (expression.is_object() && expression.size() == 1 && expression.items().begin().key().starts_with('$'))
      return applied(expression.items().begin().key(), expression.front());
    Json result = expression.is_array() ? Json::array() : Json::object();
    for (const auto& [name, part] : expression.items()) {
      if (name == "$if" || (part.contains("$if") && whole(part.at("$if")) == 0)) continue;
      Json of_part = value(part, name);
      if (expression.is_array()) {
        result.push_back(std::move(of_part));
      } else if (!of_part.is_null()) {
        result[name] = std::move(of_part);
      }
    }
    return result;
  }

  Json applied(const std::string& operation, const Json& operands) const {
    if (operation == "$rename") {
      const Json name = value(operands[0]);
      if (!name.is_string() || !operands[1].contains(name.get<std::string>()))
        refuse(operands[0].dump() + " is " + name.dump() + "; expected a key of " + operands[1].dump());
      return operands[1].at(name.get<std::string>());
    }
    const Index a = whole(operands[0]), b = whole(operands[1]);
    if (operation == "$max") return std::max(a, b);
    if (operation == "$min") return std::min(a, b);
    return operation == "$plus" ? a + b : a - b;
  }

  /// Bounded, so that sums do not overflow.
  Index whole(const Json& expression) const {
    const Json number = value(expression);
    if (!number.is_number() || std::abs(number.get<double>()) >= 0x1p31)
      refuse(expression.dump() + " is " + number.dump() + "; expected a number below 2^31");
    return number.get<Index>();
  }
};

}  // namespace

bool has_pattern(const std::string& name) { return patterns().contains(name); }

Json maskers_of_pattern(const std::string& name, const Json& parameters, Index keys, const Case& file) {
  if (!has_pattern(name)) throw FormatError(file.path().string() + ": the pattern \"" + name + "\" is not supported");
  return Evaluation{parameters, keys, file}.value(patterns().at(name));
}

}  // namespace reticle::golden
