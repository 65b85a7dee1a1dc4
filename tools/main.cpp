// The reticle command. Exit status 0: success; 1: a comparison failed; 2: bad arguments, config or file.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

#include <reticle/core/base/did_you_mean.hpp>
#include <reticle/core/masker_docs.hpp>
#include <reticle/core/registry.hpp>
#include <reticle/version.hpp>

#include "golden/case.hpp"
#include "options.hpp"

namespace reticle::tools {
namespace {

constexpr int kUsageError = 2;

int list() {
  std::size_t widest = 0;
  for (const MaskerType* type : Registry::global().list()) widest = std::max(widest, type->name.size());
  for (const MaskerType* type : Registry::global().list()) {
    fmt::print("{:<{}}  {}{}\n", type->name, widest, type->docs.summary,
               type->origin == "built in" ? "" : "  [" + type->origin + "]");
  }
  return 0;
}

/// Checks a config. Its plugins, which are code, are loaded only if asked for.
int check(const std::string& path, bool print, bool with_plugins) {
  const auto config = SparseAttention::from_file(path, with_plugins ? Plugins::load : Plugins::refuse);
  if (print) {
    fmt::print("{}\n", config.to_json());
  } else {
    fmt::print("{}: ok\n", path);
  }
  return 0;
}

/// Refuses empty option values. Otherwise an option with an empty value, as in --output "$UNSET", would count as not
/// given.
void refuse_empty_values(const CLI::App& app) {
  for (const CLI::App* command : app.get_subcommands()) {
    for (const CLI::Option* option : command->get_options()) {
      if (option->get_name() == "--prompt" || option->get_name() == "--stop") continue;  // texts may be empty
      for (const std::string& value : option->results()) {
        if (value.empty()) throw CLI::ValidationError(option->get_name(), "is empty; expected a value");
        const bool negative_seed =
            option->get_name() == "--seed" && value.find_first_not_of("0123456789") != value.npos;
        if (negative_seed || (option->get_name() == "--seed" && value.size() > 19))
          throw CLI::ValidationError("--seed", "is " + value + "; expected a number in [0, 10^19)");
      }
    }
  }
}

void add_input_options(CLI::App& command, InputOptions& input) {
  command.add_option("--input", input.file,
                     "safetensors file with layers.<i>.queries|keys|values (b, h, n, d); default: the bundled tensors");
  command.add_option("--layers", input.layers, "layers: all, or numbers and ranges such as 0,2,5-7")
      ->capture_default_str();
  command.add_option("--queries", input.queries, "queries: all, last, or a number of last ones")->capture_default_str();
  command.add_option("--scaling", input.scaling, "softmax scale; default: 1 / sqrt(head_dim)");
  command
      .add_option("--stage", input.stage,
                  "stage to run, where the config has stages; auto: generation for one query, else prefill")
      ->check(CLI::IsMember({"auto", "prefill", "generation"}))
      ->capture_default_str();
}

/// Reports an unknown command.
int refuse_command(const CLI::App& app, const std::string& word) {
  if (word == "help") {
    fmt::print("{}", app.help());
    return 0;
  }
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  const std::vector<std::string_view> known(names.begin(), names.end());
  fmt::print(stderr, "reticle: there is no command \"{}\"{} (see --help)\n", word, did_you_mean(word, known));
  return kUsageError;
}

int dispatch(int argc, char** argv) {
  CLI::App app{"Sparse attention from JSON configs of maskers.", "reticle"};
  app.set_version_flag("--version", std::string("reticle ") + RETICLE_VERSION);
  app.require_subcommand(0, 1);
  app.footer("Start with: reticle run configs/sink_local_oracle_top_k.json --compare");

  RunOptions run_options;
  CLI::App& run_command = *app.add_subcommand("run", "Build a config's masks over attention tensors and run attention");
  run_command.add_option("config", run_options.config, "JSON config")->required();
  add_input_options(run_command, run_options.input);
  run_command.add_flag("--compare", run_options.compare, "dense attention too: relative error and recovered mass");
  run_command.add_option("--output", run_options.output, "safetensors file to write layers.<i>.output and .lse to");
  run_command
      .add_option("--output-length", run_options.output_length,
                  "number of last queries to generate, in one call, after a prefill of the others")
      ->check(CLI::Range(Index{1}, Index{1} << 30));
  run_command.add_flag("--json", run_options.json, "JSON instead of tables");
  run_command.add_flag("-v,--verbose", run_options.verbose, "also print a line for each head");
  run_command.add_option("--threads", run_options.threads, "number of threads; default: all cores")
      ->check(CLI::Range(0, 1024));
  run_command.add_option("--seed", run_options.seed, "number that varies the config's seed")->capture_default_str();

  bool no_plugins = false;
  const auto add_plugins_option = [&](CLI::App& command) {
    command.add_flag("--no-plugins", no_plugins,
                     "load no plugins: configs that name some are refused, RETICLE_PLUGIN_PATH is not read");
  };
  add_plugins_option(run_command);

  CLI::App& list_command = *app.add_subcommand("list", "List the maskers");
  add_plugins_option(list_command);

  std::string type;
  CLI::App& describe_command = *app.add_subcommand("describe", "Describe a masker: source, rule, parameters, cost");
  describe_command.add_option("type", type, "name of a masker, as `reticle list` prints it")->required();
  add_plugins_option(describe_command);
  CLI::App& schema_command = *app.add_subcommand("schema", "Print JSON Schema of configs, or of one masker");
  schema_command.add_option("type", type, "name of a masker; default: whole configs");

  add_plugins_option(schema_command);

  std::string config;
  bool print = false;
  CLI::App& check_command = *app.add_subcommand("check", "Check a config");
  check_command.add_option("config", config, "JSON config")->required();
  check_command.add_flag("--print", print, "the config with every default filled in, as JSON");
  bool check_plugins = false;
  check_command.add_flag("--plugins", check_plugins, "load the plugins that the config names: their code runs");

  ShowOptions show_options;
  CLI::App& show_command = *app.add_subcommand("show", "Draw a config's mask");
  show_command.add_option("config", show_options.config, "JSON config")->required();
  show_command.add_option("--queries", show_options.queries, "number of queries of the random tensors; default: 64")
      ->check(CLI::Range(Index{1}, Index{1} << 30));
  show_command.add_option("--keys", show_options.keys, "number of keys of the random tensors; default: 64")
      ->check(CLI::Range(Index{1}, Index{1} << 30));
  show_command.add_option(
      "--input", show_options.input,
      "safetensors file to use instead of random tensors; bundled: the tensors that come with Reticle");
  show_command.add_option("--layer", show_options.layer, "layer of --input")->capture_default_str();
  show_command.add_option("--head", show_options.head, "head to draw")->capture_default_str();
  show_command.add_option("--png", show_options.png, ".png file to write a picture to, each masker in its color");
  show_command.add_flag("--dark", show_options.dark, "picture on a dark ground");
  add_plugins_option(show_command);

  const auto add_model_options = [&](CLI::App& command, ModelOptions& model) {
    command.add_option("--model", model.model, "folder with config.json and *.safetensors; default: the bundled one")
        ->check(CLI::ExistingDirectory);
    command.add_option("--threads", model.threads, "number of threads; default: all cores")->check(CLI::Range(0, 1024));
    add_plugins_option(command);
  };
  GenerateCommand generate_options;
  CLI::App& generate_command = *app.add_subcommand("generate", "Continue prompts with a model");
  add_model_options(generate_command, generate_options.model);
  generate_command.add_option("--prompt", generate_options.prompts, "text to continue; several make a batch");
  generate_command.add_option("--prompt-file", generate_options.prompt_file, "file with a prompt");
  generate_command
      .add_option("--tokens", generate_options.tokens,
                  "token ids of a prompt, comma-separated, for any vocabulary; ids are printed, too")
      ->delimiter(',');
  generate_command.add_option("--config", generate_options.config, "JSON config for both stages; default: dense");
  generate_command.add_option("--prefill", generate_options.prefill, "JSON config for the prompt");
  generate_command.add_option("--generation", generate_options.generation,
                              "JSON config for the tokens after the prompt");
  generate_command.add_option("--max-new-tokens", generate_options.max_new_tokens, "number of tokens to generate")
      ->check(CLI::Range(Index{0}, Index{1} << 30))
      ->capture_default_str();
  generate_command
      .add_option("--temperature", generate_options.temperature, "softmax temperature; 0: always the most likely token")
      ->capture_default_str();
  generate_command
      .add_option("--top-p", generate_options.top_p, "probability mass of the likeliest tokens that are drawn from")
      ->capture_default_str();
  generate_command.add_option("--seed", generate_options.seed, "random seed")->capture_default_str();
  generate_command.add_option("--stop", generate_options.stops, "byte that ends a sequence");
  generate_command
      .add_option("--cache", generate_options.cache,
                  "number format of stored keys and values; q8 and q4: codes of 8 and 4 bits")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "q8", "q4"}))
      ->capture_default_str();
  generate_command.add_option("--masks", generate_options.masks,
                              "safetensors file to write the first prompt's masks to");
  generate_command.add_flag("--stats", generate_options.stats, "times, densities and cache size on stderr");
  generate_command.add_flag("--json", generate_options.json, "JSON instead of text: tokens and figures");

  EvaluateCommand evaluate_options;
  CLI::App& evaluate_command = *app.add_subcommand("evaluate", "Measure what configs cost in loss and retrieval");
  evaluate_command.add_option("configs", evaluate_options.configs, "JSON configs; dense attention is always measured");
  add_model_options(evaluate_command, evaluate_options.model);
  evaluate_command.add_option("--grid", evaluate_options.grid,
                              R"(JSON list of {"config": file or object, "name": ..., "grid": {pointer: [values]}, )"
                              R"("variants": [{pointer: value}]})");
  evaluate_command.add_option("--text", evaluate_options.text, "text file; default: the model's held-out text");
  evaluate_command.add_option("--window", evaluate_options.window, "tokens of each piece of the text")
      ->check(CLI::Range(Index{1}, Index{1} << 30))
      ->capture_default_str();
  evaluate_command
      .add_option("--output-length", evaluate_options.output_length,
                  "last tokens of a window, generated one by one, whose loss counts; 0: all are prefilled, and count")
      ->check(CLI::Range(Index{0}, Index{1} << 30))
      ->capture_default_str();
  evaluate_command.add_option("--max-tokens", evaluate_options.tokens, "number of tokens of the text, at most")
      ->capture_default_str();
  evaluate_command
      .add_option("--tasks", evaluate_options.tasks,
                  "tasks, comma-separated: repeated_phrase, needle, multi_needle, variable_tracking")
      ->delimiter(',');
  evaluate_command
      .add_option("--lengths", evaluate_options.lengths, "lengths of the tasks' prompts in bytes, comma-separated")
      ->delimiter(',')
      ->check(CLI::Range(Index{1}, Index{1} << 30))
      ->capture_default_str();
  evaluate_command
      .add_option(
          "--depths", evaluate_options.depths,
          "depths of what is hidden, % of the text before the question, comma-separated; default: random places")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 100.0));
  evaluate_command.add_option("--samples", evaluate_options.samples, "number of prompts of each task and length")
      ->capture_default_str();
  evaluate_command.add_option("--seed", evaluate_options.seed, "random seed of the tasks")->capture_default_str();
  evaluate_command.add_option("--output", evaluate_options.output,
                              "JSON file to write results to; a later run continues it");
  evaluate_command.add_option("--csv", evaluate_options.csv, "CSV file to write losses to");
  evaluate_command.add_option("--plot", evaluate_options.plot,
                              "folder to write pictures to (the command of the Python package with [research])");
  evaluate_command.add_flag("--json", evaluate_options.json, "JSON instead of tables");

  BenchModelCommand bench_options;
  CLI::App& bench_command = *app.add_subcommand("bench-model", "Time generation, sparse against dense");
  bench_command.add_option("configs", bench_options.configs, "JSON configs; dense attention is always measured");
  add_model_options(bench_command, bench_options.model);
  bench_command.add_option("--text", bench_options.text, "text file; default: the model's held-out text");
  bench_command
      .add_option("--lengths", bench_options.lengths, "lengths of prompt and output together, comma-separated")
      ->delimiter(',')
      ->capture_default_str();
  bench_command.add_option("--new-tokens", bench_options.new_tokens, "number of tokens to generate")
      ->capture_default_str();
  bench_command.add_option("--repeats", bench_options.repeats, "number of repetitions; the median is reported")
      ->capture_default_str();
  bench_command.add_flag("--json", bench_options.json, "JSON instead of tables");

  std::string patterns;
  int heads = 0;
  CLI::App& import_command =
      *app.add_subcommand("import-minference", "Print a config for MInference's per-head patterns");
  import_command
      .add_option("file", patterns, "MInference's JSON file: per layer, head -> [pattern, size, size, score]")
      ->required();
  import_command
      .add_option("--heads", heads,
                  "number of query heads of the model; heads that the file lacks get MInference's default")
      ->check(CLI::Range(1, 1 << 20));

  std::string plugin;
  CLI::App& seal_command =
      *app.add_subcommand("seal-plugin", "Write a checksum into a plugin, so that a damaged copy is refused");
  seal_command.add_option("file", plugin, "shared object")->required();

  bool doctor_json = false;
  CLI::App& doctor_command =
      *app.add_subcommand("doctor", "Print versions, processor, threads, GPU and plugins, for bug reports");
  doctor_command.add_flag("--json", doctor_json, "JSON instead of lines");
  add_plugins_option(doctor_command);

  std::string shell;
  CLI::App& completion_command =
      *app.add_subcommand("completion", "Print a shell's completion script; bash: source <(reticle completion bash)");
  completion_command.add_option("shell", shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));

  std::string directory;
  bool known_only = false;
  CLI::App& verify_command = *app.add_subcommand("verify", "Replay recorded cases and compare");
  verify_command.add_option("directory", directory, "folder with <case>.json and <case>.safetensors")->required();
  verify_command.add_flag("--known-only", known_only, "skip cases whose operation or masker is not supported");

  add_plugins_option(import_command);
  add_plugins_option(verify_command);

  try {
    app.parse(argc, argv);
    refuse_empty_values(app);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    if (app.get_subcommands().empty() && argc > 1 && argv[1][0] != '-') return refuse_command(app, argv[1]);
    fmt::print(stderr, "reticle: {} (see --help)\n", error.what());
    return kUsageError;
  }
  if (app.get_subcommands().empty()) {
    fmt::print("{}", app.help());
    return 0;
  }
  if (completion_command.parsed()) return completion(app, shell);
  if (seal_command.parsed()) {
    seal_plugin(plugin);
    return 0;
  }
  if (check_command.parsed()) no_plugins = !check_plugins;
  std::vector<std::string> refused_plugins;
  if (no_plugins) {
    run_options.plugins = show_options.plugins = Plugins::refuse;
    generate_options.model.plugins = evaluate_options.model.plugins = bench_options.model.plugins = Plugins::refuse;
  } else {
    refused_plugins = load_plugins_from_environment();
    if (doctor_command.parsed()) return doctor(refused_plugins, doctor_json);  // doctor lists the refused plugins
    for (const std::string& refused : refused_plugins) fmt::print(stderr, "reticle: warning: {}\n", refused);
  }
  if (doctor_command.parsed()) return doctor({}, doctor_json);

  if (run_command.parsed()) return run(run_options);
  if (list_command.parsed()) return list();
  if (describe_command.parsed()) {
    fmt::print("{}", describe_masker(type));
    return 0;
  }
  if (schema_command.parsed()) {
    fmt::print("{}\n", schema(type));
    return 0;
  }
  if (check_command.parsed()) return check(config, print, check_plugins);
  if (show_command.parsed()) return show(show_options);
  if (generate_command.parsed()) return generate(generate_options);
  if (evaluate_command.parsed()) return evaluate(evaluate_options);
  if (bench_command.parsed()) return bench_model(bench_options);
  if (import_command.parsed()) return import_minference(patterns, heads);
  return golden::verify(directory, known_only);
}

}  // namespace
}  // namespace reticle::tools

namespace {

/// Prints an error to stderr. If stderr cannot be written, only the exit status reports the error.
void say(const char* what) {
  std::fputs("reticle: ", stderr);
  std::fputs(what, stderr);
  std::fputs("\n", stderr);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const int status = reticle::tools::dispatch(argc, argv);
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return status;
    say((std::string("standard output cannot be written: ") + std::strerror(errno)).c_str());
  } catch (const std::bad_alloc&) {
    say("not enough memory");
  } catch (const std::exception& error) {
    say(error.what());
  }
  return reticle::tools::kUsageError;
}
