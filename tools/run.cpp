#include <optional>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <reticle/core/config/enumerators.hpp>
#include <reticle/core/config/fields.hpp>

#include "options.hpp"

namespace reticle::tools {
namespace {

using Json = nlohmann::ordered_json;

struct LayerReport {
  int layer = 0;
  AttentionInputs inputs;  // for one stage
  Metrics metrics;
};

Json json_of(const LayerReport& report) {
  Json json = {{"layer", report.layer},
               {"stage", name_of_enumerator(report.inputs.stage)},
               {"batch", report.inputs.batch()},
               {"heads", report.inputs.heads()},
               {"queries", report.inputs.queries_length()},
               {"keys", report.inputs.keys_length()}};
  json.update(Json::parse(json_of(report.metrics)));
  if (!report.metrics.comparison) json.erase("comparison");
  return json;
}

/// Prints how much each masker contributed at a stage, over all layers.
void print_contributions(const std::vector<LayerReport>& reports, Stage stage) {
  std::vector<MaskerMetrics> total;
  Index entries = 0;
  for (const LayerReport& report : reports) {
    if (report.inputs.stage != stage) continue;
    entries += report.metrics.entries;
    total.resize(report.metrics.maskers.size());
    for (std::size_t i = 0; i < total.size(); ++i) {
      total[i].type = report.metrics.maskers[i].type;
      total[i].added += report.metrics.maskers[i].added;
      total[i].seconds += report.metrics.maskers[i].seconds;
    }
  }
  if (total.empty()) return;
  Table table;
  table.row({"masker", "added", "of the mask", "time"});
  for (const MaskerMetrics& masker : total)
    table.row({masker.type, std::to_string(masker.added),
               percent(entries == 0 ? 0 : static_cast<double>(masker.added) / static_cast<double>(entries)),
               milliseconds(masker.seconds)});
  fmt::print("\n{}", table.text());
}

void print_table(const std::vector<LayerReport>& reports, const RunOptions& options) {
  Table table;
  std::vector<std::string> head{"layer", "queries", "keys", "density", "of visible", "mask", "build", "attention"};
  if (options.compare) head.insert(head.end(), {"dense", "error", "mass", "least mass"});
  table.row(head);
  for (const LayerReport& report : reports) {
    const Metrics& m = report.metrics;
    std::vector<std::string> row{
        std::to_string(report.layer) + (options.output_length == 0              ? ""
                                        : report.inputs.stage == Stage::prefill ? " prefill"
                                                                                : " generation"),
        std::to_string(report.inputs.queries_length()),
        std::to_string(report.inputs.keys_length()),
        percent(m.density),
        percent(m.visible_density),
        bytes(m.mask_bytes),
        milliseconds(m.mask_seconds),
        milliseconds(m.attention_seconds)};
    if (m.comparison) {
      row.insert(row.end(),
                 {milliseconds(m.comparison->dense_seconds), fmt::format("{:.4f}", m.comparison->relative_error),
                  fmt::format("{:.4f}", m.comparison->mean_mass), fmt::format("{:.4f}", m.comparison->least_mass)});
    }
    table.row(row);
    if (!options.verbose) continue;
    for (std::size_t i = 0; i < m.head_density.size(); ++i) {
      std::vector<std::string> head_row{
          fmt::format("  head {}", i), "", "", percent(m.head_density[i]), "", "", "", ""};
      if (m.comparison) {
        head_row.insert(head_row.end(), {"", fmt::format("{:.4f}", m.comparison->head_relative_error[i]),
                                         fmt::format("{:.4f}", m.comparison->head_mean_mass[i]), ""});
      }
      table.row(head_row);
    }
  }
  fmt::print("{}", table.text());

  for (const Stage stage : {Stage::prefill, Stage::generation}) print_contributions(reports, stage);
  if (options.compare)
    fmt::print(
        "\nerror: ||dense - sparse|| / ||dense||; mass: share of a row's dense attention that its kept keys hold\n");
}

}  // namespace

int run(const RunOptions& options) {
  const SparseAttention sparse = SparseAttention::from_file(options.config, options.plugins);
  const InputFile file(options.input);
  if (!options.output.empty()) require_writable(options.output, {options.config, file.path()});
  Context context = options.threads > 0 ? Context(options.threads) : Context();
  context.seed = options.seed;

  std::vector<LayerReport> reports;
  std::vector<AttentionResult> results;
  SequenceState state;
  {
    const Progress progress("layers", options.json);
    Index done = 0;
    for (const int layer : file.layers()) {
      progress.at(done++, static_cast<Index>(file.layers().size()));
      const AttentionInputs inputs = file.inputs(layer);
      const Index queries = inputs.queries_length(), split = queries - options.output_length;
      if (options.output_length != 0 && split < 1)
        throw Error("--output-length " + std::to_string(options.output_length) +
                    ": expected less than the number of queries, " + std::to_string(queries) +
                    ", so that some are left to prefill");
      const auto run_stage = [&](AttentionInputs stage_inputs, std::optional<Stage> stage) {
        if (stage) stage_inputs.stage = *stage;
        SparseAttentionResult result = sparse.run(stage_inputs, state, options.compare, {}, context);
        reports.push_back({layer, stage_inputs, std::move(result.metrics)});
        if (!options.output.empty()) results.push_back(std::move(result.attention));
      };
      if (options.output_length == 0) {
        run_stage(inputs, std::nullopt);
      } else {
        run_stage(inputs.rows(0, split), Stage::prefill);
        run_stage(inputs.rows(split, queries), Stage::generation);
      }
    }
  }

  if (options.json) {
    Json layers = Json::array();
    for (const LayerReport& report : reports) layers.push_back(json_of(report));
    const Json document = {{"config", Json::parse(sparse.to_json())},
                           {"input", file.path()},
                           {"threads", context.pool->threads()},
                           {"layers", std::move(layers)}};
    fmt::print("{}\n", document.dump(2));
  } else {
    const std::string& description = sparse.description();
    fmt::print("{}{}\n{}, {} threads\n\n", options.config, description.empty() ? "" : ": " + description, file.path(),
               context.pool->threads());
    print_table(reports, options);
  }
  if (!options.output.empty()) {
    std::vector<NamedTensor> tensors;
    for (std::size_t i = 0; i < results.size(); ++i) {
      const bool generated = options.output_length != 0 && reports[i].inputs.stage == Stage::generation;
      const std::string prefix = "layers." + std::to_string(reports[i].layer) + (generated ? ".generation." : ".");
      tensors.push_back({prefix + "output", results[i].output.view()});
      tensors.push_back({prefix + "lse", results[i].lse.view()});
    }
    save_safetensors(options.output, tensors);
  }
  return 0;
}

}  // namespace reticle::tools
