#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <sys/file.h>
#include <unistd.h>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <reticle/core/base/input_file.hpp>
#include <reticle/core/base/output_file.hpp>
#include <reticle/core/config/enumerators.hpp>

#include "evaluation.hpp"
#include "options.hpp"

namespace reticle::tools {
namespace {

using Json = nlohmann::ordered_json;

/// One pipeline to be evaluated. `config` is empty for dense attention.
struct Candidate {
  std::string name;
  Json parameters = Json::object();  // the values that a sweep set, by JSON pointer
  std::optional<SparseAttention> config;

  std::string label() const {
    std::string label = name;
    for (const auto& [pointer, value] : parameters.items())
      label += " " + pointer.substr(pointer.rfind('/') + 1) + "=" + value.dump();
    return label;
  }
};

/// Adds a candidate for every combination of a sweep's grid and for each of its variants, applied to the sweep's
/// config.
void add_sweep(const Json& sweep, const std::filesystem::path& directory, Plugins plugins,
               std::vector<Candidate>& candidates) {
  const auto reject = [&](const std::string& what) { throw ConfigError("--grid: " + what + ": " + sweep.dump()); };
  if (!sweep.is_object() || !sweep.contains("config")) reject(R"(each entry needs a "config", a file or an object)");
  constexpr std::string_view kKnown[] = {"config", "name", "grid", "variants"};
  for (const auto& [key, value] : sweep.items()) {
    if (std::ranges::find(kKnown, key) == std::end(kKnown))
      reject("unknown key \"" + key + R"("; expected "config", "name", "grid" and "variants")");
  }
  if (sweep.contains("name") && !sweep.at("name").is_string()) reject(R"("name" must be text)");
  const Json& given = sweep.at("config");
  if (!given.is_string() && !given.is_object()) reject(R"("config" must be a file or an object)");
  const std::filesystem::path file = given.is_string() ? directory / given.get<std::string>() : std::filesystem::path();
  const Json base = given.is_string() ? Json::parse(read_file<FormatError>(file), nullptr, true, true) : given;
  const std::filesystem::path base_directory = given.is_string() ? file.parent_path() : directory;
  const std::string name = sweep.value("name", given.is_string() ? file.stem().string() : std::string("config"));
  std::vector<std::pair<Json, Json>> made{{base, Json::object()}};
  const auto set = [&](std::pair<Json, Json> candidate, const std::string& pointer, const Json& value) {
    try {
      const Json::json_pointer place(pointer);
      if (!candidate.first.contains(place.parent_pointer())) reject("the config has no place \"" + pointer + "\"");
      candidate.first[place] = value;
    } catch (const nlohmann::json::exception&) {
      reject("\"" + pointer + "\" is not a JSON pointer into the config");
    }
    candidate.second[pointer] = value;
    return candidate;
  };
  const Json grid = sweep.value("grid", Json::object()),
             variants = sweep.value("variants", Json::array({Json::object()}));
  if (!grid.is_object()) reject(R"("grid" must map JSON pointers into the config to lists of values)");
  if (!variants.is_array()) reject(R"("variants" must be a list of maps from JSON pointers into the config to values)");
  for (const auto& [pointer, values] : grid.items()) {
    if (!values.is_array()) reject("\"" + pointer + "\" needs a list of values");
    std::vector<std::pair<Json, Json>> next;
    for (const auto& candidate : made) {
      for (const Json& value : values) next.push_back(set(candidate, pointer, value));
    }
    made = std::move(next);
  }
  std::vector<std::pair<Json, Json>> varied;
  for (const auto& candidate : made) {
    for (const Json& variant : variants) {
      if (!variant.is_object())
        reject(R"("variants" must be a list of maps from JSON pointers into the config to values)");
      varied.push_back(candidate);
      for (const auto& [pointer, value] : variant.items()) varied.back() = set(varied.back(), pointer, value);
    }
  }
  made = std::move(varied);
  for (const auto& [config, parameters] : made) {
    try {
      candidates.push_back(
          {name, parameters,
           SparseAttention::from_json(config.dump(), base_directory.empty() ? "." : base_directory, plugins)});
    } catch (const ConfigError& error) {
      throw ConfigError("--grid: " + name + " with " + parameters.dump() + ": " + error.what());
    }
  }
}

std::vector<Candidate> candidates_of(const EvaluateCommand& command) {
  std::vector<Candidate> candidates{{"dense", Json::object(), std::nullopt}};
  for (const std::string& file : command.configs)
    candidates.push_back({std::filesystem::path(file).stem().string(), Json::object(),
                          SparseAttention::from_file(file, command.model.plugins)});
  if (!command.grid.empty()) {
    Json sweeps;
    try {
      sweeps = Json::parse(read_file<FormatError>(command.grid), nullptr, true, true);
    } catch (const nlohmann::json::exception& error) {
      throw ConfigError(command.grid + ": is not JSON: " + error.what());
    }
    if (!sweeps.is_array())
      throw ConfigError(command.grid + R"(: expected a list of {"config": ..., "grid": {...}, "variants": [...]})");
    for (const Json& sweep : sweeps)
      add_sweep(sweep, std::filesystem::path(command.grid).parent_path(), command.model.plugins, candidates);
  }
  return candidates;
}

RetrievalTask task_of(const std::string& name) {
  const std::optional<RetrievalTask> task = enumerator_of<RetrievalTask>(name);
  if (!task) throw Error("--tasks " + name + ": expected some of " + list_enumerators<RetrievalTask>());
  return *task;
}

Json json_of_stage(const StageRecord& record) {
  if (record.sparsity.empty()) return nullptr;
  return {{"density", record.density()}, {"mean_sparsity", record.mean_sparsity()}};
}

/// A lock file for one run at a time: two concurrent runs would overwrite each other's results.
class Lock {
 public:
  explicit Lock(std::string path)
      : path_(std::move(path)), file_(open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
    if (file_ < 0) throw Error(path_ + ": cannot be written: " + std::strerror(errno));
    if (flock(file_, LOCK_EX | LOCK_NB) == 0) return;
    close(file_);
    throw Error(path_ + ": another run writes to this --output; wait for it, or give another");
  }
  ~Lock() {
    unlink(path_.c_str());
    close(file_);
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  std::string path_;
  int file_;
};

/// Results, saved to a file after each one, from which a later run continues.
class Results {
 public:
  Results(std::string path, Json settings) : path_(std::move(path)), settings_(std::move(settings)) {
    if (path_.empty()) return;
    lock_.emplace(path_ + ".lock");
    if (!std::filesystem::exists(path_)) return;
    const Json before = Json::parse(read_file<FormatError>(path_), nullptr, false);
    if (!before.is_object() || !before.contains("settings") || !before.contains("results"))
      throw Error(path_ + ": exists, and is not a file of results; give another --output");
    if (before["settings"] != settings_)
      throw Error(path_ + ": holds results of other settings, " + before["settings"].dump() +
                  "; give these, or another --output");
    for (const Json& result : before["results"]) known_[key_of(result)] = result;
  }

  static std::string key_of(const Json& result) { return result.at("name").dump() + result.at("config").dump(); }
  const Json* find(const Json& candidate) const {
    const auto found = known_.find(key_of(candidate));
    return found == known_.end() ? nullptr : &found->second;
  }
  void add(Json result) {
    results_.push_back(std::move(result));
    if (!path_.empty()) write_file(path_, document().dump(2) + "\n");
  }
  /// The requested results, followed by the others in the file.
  Json document() const {
    Json results = results_;
    std::set<std::string> asked;
    for (const Json& result : results_) asked.insert(key_of(result));
    for (const auto& [key, result] : known_) {
      if (!asked.contains(key)) results.push_back(result);
    }
    return {{"settings", settings_}, {"results", std::move(results)}};
  }
  const Json& all() const { return results_; }

 private:
  std::string path_;
  Json settings_, results_ = Json::array();
  std::map<std::string, Json> known_;
  std::optional<Lock> lock_;
};

std::string density_of(const Json& result, const char* stage) {
  return result.at(stage).is_null() ? "-" : percent(result.at(stage).at("density").get<double>());
}

void print_losses(const Json& results) {
  Table table;
  table.row({"config", "prefill density", "generation density", "loss", "perplexity", "above dense", "time"});
  const double dense = results.at(0).at("loss");
  for (const Json& result : results)
    table.row({result.at("label"), density_of(result, "prefill"), density_of(result, "generation"),
               fmt::format("{:.5f}", result.at("loss").get<double>()),
               fmt::format("{:.3f}", result.at("perplexity").get<double>()),
               fmt::format("{:+.5f}", result.at("loss").get<double>() - dense),
               fmt::format("{:.1f} s", result.at("seconds").get<double>())});
  fmt::print("{}", table.text());
  if (results.at(0).at("retrieval").empty()) return;
  Table tasks;
  tasks.row({"config", "task", "length", "accuracy", "unaided", "exact", "prefill density", "generation density"});
  for (const Json& result : results) {
    for (const Json& task : result.at("retrieval"))
      tasks.row({result.at("label"), task.at("task"),
                 std::to_string(task.at("length").get<Index>()) +
                     (task.contains("depth") ? fmt::format(" at {} %", task.at("depth").get<double>()) : ""),
                 percent(task.at("accuracy").get<double>()),
                 task.contains("unaided_accuracy") ? percent(task.at("unaided_accuracy").get<double>()) : "",
                 percent(task.at("exact").get<double>()), density_of(task, "prefill"), density_of(task, "generation")});
  }
  fmt::print(
      "\naccuracy: bytes of the answers that were the most likely ones; unaided: with nothing to be found; exact: "
      "whole answers\n{}",
      tasks.text());
}

/// Notes patterns that kept all keys: their results equal dense attention because they are dense.
void note_what_leaves_nothing_out(const Json& results) {
  for (const Json& result : results) {
    const auto whole = [&](const char* stage) {
      return result.at(stage).is_null() || result.at(stage).at("density").get<double>() == 1;
    };
    if (!result.at("config").is_null() && whole("prefill") && whole("generation"))
      fmt::print(stderr,
                 "reticle: note: {} left nothing out: it keeps more keys than there were, or serves the other stage "
                 "(--window, --output-length)\n",
                 result.at("label").get<std::string>());
  }
}

std::string csv_of(const Json& results) {
  std::string csv = "config,prefill_density,generation_density,loss,perplexity,seconds\n";
  const auto number = [](const Json& stage) {
    return stage.is_null() ? std::string() : fmt::format("{}", stage.at("density").get<double>());
  };
  for (const Json& result : results) {
    std::string label = result.at("label");
    for (std::size_t at = 0; (at = label.find('"', at)) != std::string::npos; at += 2) label.insert(at, 1, '"');
    csv += fmt::format("\"{}\",{},{},{},{},{}\n", label, number(result.at("prefill")), number(result.at("generation")),
                       result.at("loss").get<double>(), result.at("perplexity").get<double>(),
                       result.at("seconds").get<double>());
  }
  return csv;
}

}  // namespace

int evaluate(const EvaluateCommand& command) {
  if (!command.plot.empty())
    throw Error("--plot " + command.plot +
                ": pictures are drawn by the command of the Python package (pip install '.[research]')");
  const std::vector<Candidate> candidates = candidates_of(command);
  std::vector<RetrievalTask> tasks;
  tasks.reserve(command.tasks.size());
  for (const std::string& name : command.tasks) tasks.push_back(task_of(name));
  std::vector<std::string> read = command.configs;
  read.insert(read.end(), {command.grid, command.text});
  for (const std::string& path : {command.output, command.csv}) {
    if (path.empty()) continue;
    require_writable(path, read);
    read.push_back(path);
  }
  if (!command.csv.empty() &&
      std::filesystem::path(command.csv).lexically_normal() == std::filesystem::path(command.output).lexically_normal())
    throw Error("--csv " + command.csv + ": is the --output, too; expected two files");
  const Decoder decoder = load_model(command.model);
  const std::string text = held_out_text(command.text, command.model.model);
  const std::vector<std::int32_t> tokens = text_tokens(decoder, text);
  const Context context = context_for(command.model.threads);
  // Results are reused by content digest, since the file at a path may change.
  const std::string model = command.model.model.empty() ? bundled(kBundledModel).string() : command.model.model;
  Json settings = {{"model", command.model.model.empty() ? kBundledModel : command.model.model},
                   {"model_digest", command.output.empty() ? "" : digest_of(model)},
                   {"text", command.text.empty() ? "held out" : command.text},
                   {"text_digest", command.text.empty() || command.output.empty() ? "" : digest_of(command.text)},
                   {"window", command.window},
                   {"output_length", command.output_length},
                   {"tokens", command.tokens},
                   {"tasks", command.tasks},
                   {"lengths", command.lengths},
                   {"samples", command.samples},
                   {"seed", command.seed}};
  if (!command.depths.empty()) settings["depths"] = command.depths;
  std::vector<std::optional<double>> depths(command.depths.begin(), command.depths.end());
  if (depths.empty()) depths.emplace_back();
  Results results(command.output, settings);
  for (const Candidate& candidate : candidates) {
    Json result = {{"name", candidate.name},
                   {"label", candidate.label()},
                   {"parameters", candidate.parameters},
                   {"config", candidate.config ? Json::parse(candidate.config->to_json()) : Json(nullptr)}};
    if (const Json* before = results.find(result)) {
      results.add(*before);
      continue;
    }
    const Progress progress(candidate.label(), command.json);
    const EvaluationProgress show = [&](Index done, Index total) { progress.at(done, total); };
    // Dense attention also runs as a pipeline, so that its density is recorded.
    const SparseAttention sparse =
        candidate.config ? *candidate.config : SparseAttention::from_json(R"({"maskers": []})");
    const LossResult loss =
        evaluate_loss(decoder, tokens, {command.window, command.output_length, command.tokens, &sparse, show}, context);
    result["loss"] = loss.loss;
    result["perplexity"] = loss.perplexity();
    result["tokens"] = loss.tokens;
    result["prefill"] = json_of_stage(loss.prefill);
    result["generation"] = json_of_stage(loss.generation);
    result["seconds"] = loss.seconds;
    result["retrieval"] = Json::array();
    const auto retrieve = [&](RetrievalTask task, Index length, std::optional<double> depth) {
      RetrievalOptions options{
          .task = task, .length = length, .samples = command.samples, .seed = command.seed, .sparse = &sparse};
      options.progress = show;
      if (depth) options.depth = *depth / 100;
      const RetrievalResult retrieval = evaluate_retrieval(decoder, text, options, context);
      Json& added = result["retrieval"].emplace_back(Json{{"task", name_of_enumerator(task)},
                                                          {"length", length},
                                                          {"accuracy", retrieval.accuracy},
                                                          {"exact", retrieval.exact},
                                                          {"prefill", json_of_stage(retrieval.prefill)},
                                                          {"generation", json_of_stage(retrieval.generation)},
                                                          {"seconds", retrieval.seconds}});
      if (depth) added["depth"] = *depth;
      // Measures prompts without the answer too: what language and chance alone achieve. They have no depth.
      if (candidate.config || depth) return;
      options.unaided = true;
      added["unaided_accuracy"] = evaluate_retrieval(decoder, text, options, context).accuracy;
    };
    for (const RetrievalTask task : tasks) {
      for (const Index length : command.lengths) {
        for (const std::optional<double> depth : depths) retrieve(task, length, depth);
      }
    }
    results.add(std::move(result));
  }
  if (command.json) {
    fmt::print("{}\n", results.document().dump(2));
  } else {
    print_losses(results.all());
    note_what_leaves_nothing_out(results.all());
  }
  if (!command.csv.empty()) write_file(command.csv, csv_of(results.all()));
  return 0;
}

}  // namespace reticle::tools
