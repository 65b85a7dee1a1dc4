#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <reticle/attention/llama/generate.hpp>
#include <reticle/core/base/input_file.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>

#include "options.hpp"

namespace reticle::tools {
namespace {

using Json = nlohmann::ordered_json;

DType cache_dtype(const std::string& name) {
  const std::pair<const char*, DType> formats[] = {
      {"f16", DType::f16}, {"bf16", DType::bf16}, {"q8", DType::q8}, {"q4", DType::q4}};
  for (const auto& [known, dtype] : formats) {
    if (name == known) return dtype;
  }
  return DType::f32;
}

Json json_with_calls(const StageRecord& record) {
  return {{"density", record.density()}, {"mean_sparsity", record.mean_sparsity()}, {"calls", record.sparsity.size()}};
}

/// Saves what the first sequence attended to, layer by layer: "prefill.<layer>" (heads, prompt, prompt) and
/// "generation.<layer>" (heads, steps, keys), U8, 1 = attended.
void save_masks(const std::string& path, const SequenceState& state) {
  std::vector<Tensor> tensors;
  std::vector<NamedTensor> named;
  for (const auto& [name, stage] : {std::pair{"prefill", Stage::prefill}, std::pair{"generation", Stage::generation}}) {
    std::map<int, Mask> by_layer;
    for (const StageRecord::SavedMask& saved : state.recorded(stage).masks) {
      const auto [found, first] = by_layer.try_emplace(saved.layer, saved.mask);
      if (first) continue;
      // Each step sees one key more than the step before.
      const Index more = saved.mask.shape().keys - found->second.shape().keys;
      found->second = append_queries(append_keys(found->second, more), saved.mask);
    }
    for (const auto& [layer, mask] : by_layer) {
      const MaskShape& shape = mask.shape();
      Tensor dense(DType::u8, {shape.heads, shape.queries, shape.keys});
      const Array<float> p = to_dense(mask);
      std::transform(p.begin(), p.end(), static_cast<std::uint8_t*>(dense.data()),
                     [](float value) { return static_cast<std::uint8_t>(value > 0 ? 1 : 0); });
      tensors.push_back(std::move(dense));
      named.push_back({std::string(name) + "." + std::to_string(layer), tensors.back().view()});
    }
  }
  save_safetensors(path, named);
}

}  // namespace

int generate(const GenerateCommand& command) {
  if (!command.config.empty() && !(command.prefill.empty() && command.generation.empty()))
    throw Error("--config " + command.config +
                ": is for both stages; expected it alone, or --prefill and --generation");
  const Decoder decoder = load_model(command.model);
  const bool bytes_in = command.tokens.empty();
  std::vector<std::vector<std::int32_t>> prompts;
  prompts.reserve(command.prompts.size() + 2);
  for (const std::string& prompt : command.prompts) prompts.push_back(text_tokens(decoder, prompt));
  if (!command.prompt_file.empty())
    prompts.push_back(text_tokens(decoder, read_file<FormatError>(command.prompt_file)));
  if (!bytes_in) prompts.push_back(command.tokens);
  if (prompts.empty()) throw Error("generate: give --prompt, --prompt-file or --tokens");
  if (!command.masks.empty())
    require_writable(command.masks, {command.config, command.prefill, command.generation, command.prompt_file});

  GenerateOptions options;
  options.max_new_tokens = command.max_new_tokens;
  options.temperature = command.temperature;
  options.top_p = command.top_p;
  options.seed = command.seed;
  options.cache_dtype = cache_dtype(command.cache);
  for (const std::string& stop : command.stops) {
    const std::vector<std::int32_t> token = text_tokens(decoder, stop);
    if (token.size() != 1) throw Error("--stop \"" + stop + "\": expected a single byte");
    options.stop_tokens.push_back(token.front());
  }
  std::optional<SparseAttention> sparse;
  const std::string& prefill = command.prefill.empty() ? command.config : command.prefill;
  const std::string& generation = command.generation.empty() ? command.config : command.generation;
  if (!prefill.empty() || !generation.empty() || !command.masks.empty()) {
    sparse.emplace(pipeline_of(prefill, generation, command.model.plugins));
    options.sparse = &*sparse;
    if (!command.masks.empty()) options.recording = Recording::masks;
  }
  const bool stream = prompts.size() == 1 && bytes_in && !command.json;
  bool started = false;  // set at the first token, so that a refused call prints nothing
  const auto start = [&] {
    if (!std::exchange(started, true)) fmt::print("{}", tokens_to_bytes(prompts[0]));
  };
  if (stream) {
    options.on_token = [&](Index, std::int32_t token) {
      start();
      fmt::print("{}", tokens_to_bytes({&token, 1}));
      std::fflush(stdout);
      return true;
    };
  }
  const Generation result = generate(decoder, prompts, options, context_for(command.model.threads));
  if (stream) {
    start();
    fmt::print("\n");
    std::fflush(stdout);
  }

  StageRecord prefilled, generated;
  Index cache_bytes = 0;
  for (const DecoderState& state : result.states) {
    prefilled.merge(state.attention.recorded(Stage::prefill));
    generated.merge(state.attention.recorded(Stage::generation));
    cache_bytes += state.cache.bytes_used();
  }
  const double per_token = result.steps == 0 ? 0 : result.decode_seconds / static_cast<double>(result.steps);
  if (command.json) {
    Json sequences = Json::array();
    for (const std::vector<std::int32_t>& tokens : result.tokens) {
      Json sequence = {{"tokens", tokens}};
      // Bytes that are not UTF-8 are printed as the replacement character.
      if (bytes_in) sequence["text"] = tokens_to_bytes(tokens);
      sequences.push_back(std::move(sequence));
    }
    const Json document = {{"sequences", std::move(sequences)},        {"first_token_seconds", result.prefill_seconds},
                           {"seconds_per_token", per_token},           {"prefill", json_with_calls(prefilled)},
                           {"generation", json_with_calls(generated)}, {"cache_bytes", cache_bytes}};
    fmt::print("{}\n", document.dump(2, ' ', false, Json::error_handler_t::replace));
  } else if (!stream) {
    for (std::size_t i = 0; i < result.tokens.size(); ++i) {
      if (i > 0) fmt::print("---\n");
      if (bytes_in) {
        fmt::print("{}{}\n", tokens_to_bytes(prompts[i]), tokens_to_bytes(result.tokens[i]));
      } else {
        for (const std::int32_t token : result.tokens[i]) fmt::print("{} ", token);
        fmt::print("\n");
      }
    }
  }
  if (command.stats && !command.json)
    fmt::print(
        stderr,
        "first token {}, then {:.3f} ms per step; prefill attended to {} of what it could see, generation to {}; "
        "KV cache {}\n",
        milliseconds(result.prefill_seconds), 1000 * per_token, percent(prefilled.density()),
        percent(generated.density()), bytes(cache_bytes));
  const bool patterned = !(command.config.empty() && command.prefill.empty() && command.generation.empty());
  if (command.stats && !command.json && patterned && prefilled.density() == 1 && generated.density() == 1)
    fmt::print(stderr, "note: nothing was left out: the pattern keeps more keys than there were (--max-new-tokens)\n");
  if (!command.masks.empty() && !result.states.empty()) save_masks(command.masks, result.states[0].attention);
  return 0;
}

}  // namespace reticle::tools
