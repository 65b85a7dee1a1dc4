#include <algorithm>
#include <filesystem>
#include <fstream>
#include <malloc.h>
#include <optional>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <reticle/attention/llama/generate.hpp>

#include "options.hpp"

namespace reticle::tools {
namespace {

using Json = nlohmann::ordered_json;

/// The process's peak memory since the last reset; nullopt where the system does not report it.
class PeakMemory {
 public:
  PeakMemory() {
    malloc_trim(0);
    std::ofstream("/proc/self/clear_refs") << "5";
  }
  static std::optional<Index> bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
    }
    return std::nullopt;
  }
};

struct Timing {
  std::vector<double> first_token, per_token;
  std::optional<Index> peak;
  double prefill_density = 1, generation_density = 1;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::string change(double value, double dense) { return fmt::format("{:+.1f} %", 100 * (value / dense - 1)); }

}  // namespace

int bench_model(const BenchModelCommand& command) {
  const Decoder decoder = load_model(command.model);
  const std::vector<std::int32_t> text = text_tokens(decoder, held_out_text(command.text, command.model.model));
  const Context context = context_for(command.model.threads);
  if (command.repeats < 1 || command.new_tokens < 2)
    throw Error("bench-model: expected --repeats >= 1 and --new-tokens >= 2");
  std::vector<std::pair<std::string, SparseAttention>> pipelines;
  pipelines.emplace_back("dense", pipeline_of("", "", command.model.plugins));
  for (const std::string& config : command.configs)
    pipelines.emplace_back(std::filesystem::path(config).stem().string(),
                           SparseAttention::from_file(config, command.model.plugins));

  Table table;
  table.row({"length", "config", "first token", "vs dense", "per token", "vs dense", "tokens/s", "peak memory",
             "vs dense", "prefill density", "generation density"});
  Json rows = Json::array();
  const Progress progress("runs", command.json);
  Index done = 0;
  const Index total = static_cast<Index>(command.lengths.size() * pipelines.size()) * command.repeats;
  for (const Index length : command.lengths) {
    const Index prompt = length - command.new_tokens;
    if (prompt < 1 || prompt > static_cast<Index>(text.size()))
      throw Error("--lengths " + std::to_string(length) +
                  ": expected more than --new-tokens, and a text that is as long");
    const std::vector<std::vector<std::int32_t>> prompts{{text.begin(), text.begin() + prompt}};
    std::vector<Timing> timings(pipelines.size());
    // Interleaved, so that other load on the machine affects all candidates alike.
    for (Index repeat = 0; repeat < command.repeats; ++repeat) {
      for (std::size_t i = 0; i < pipelines.size(); ++i) {
        progress.at(done++, total);
        const PeakMemory memory;
        const Generation generation =
            generate(decoder, prompts, {.max_new_tokens = command.new_tokens, .sparse = &pipelines[i].second}, context);
        Timing& timing = timings[i];
        timing.first_token.push_back(generation.prefill_seconds);
        timing.per_token.push_back(generation.decode_seconds / static_cast<double>(generation.steps));
        timing.peak = PeakMemory::bytes();
        timing.prefill_density = generation.states[0].attention.recorded(Stage::prefill).density();
        timing.generation_density = generation.states[0].attention.recorded(Stage::generation).density();
      }
    }
    const double dense_first = median(timings[0].first_token), dense_per = median(timings[0].per_token);
    for (std::size_t i = 0; i < pipelines.size(); ++i) {
      const Timing& timing = timings[i];
      const double first = median(timing.first_token), per = median(timing.per_token);
      const bool compared = timing.peak && timings[0].peak;
      table.row({std::to_string(length), pipelines[i].first, milliseconds(first), change(first, dense_first),
                 fmt::format("{:.3f} ms", 1000 * per), change(per, dense_per), fmt::format("{:.0f}", 1 / per),
                 timing.peak ? bytes(*timing.peak) : "-",
                 compared ? change(static_cast<double>(*timing.peak), static_cast<double>(*timings[0].peak)) : "-",
                 percent(timing.prefill_density), percent(timing.generation_density)});
      rows.push_back({{"length", length},
                      {"config", pipelines[i].first},
                      {"first_token_seconds", first},
                      {"seconds_per_token", per},
                      {"peak_bytes", timing.peak ? Json(*timing.peak) : Json(nullptr)},
                      {"prefill_density", timing.prefill_density},
                      {"generation_density", timing.generation_density}});
    }
  }
  if (command.json) {
    const Json document = {{"threads", context.pool->threads()}, {"new_tokens", command.new_tokens}, {"rows", rows}};
    fmt::print("{}\n", document.dump(2));
  } else {
    fmt::print("{} new tokens after the rest of each length; medians of {} interleaved runs, {} threads\n{}",
               command.new_tokens, command.repeats, context.pool->threads(), table.text());
  }
  return 0;
}

}  // namespace reticle::tools
