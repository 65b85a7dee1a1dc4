// Helpers shared by the subcommands: finding files, selecting layers and queries, tables; and the subcommands' options.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <reticle/attention/llama/decoder.hpp>
#include <reticle/core/tensor/safetensors.hpp>

namespace CLI {
class App;
}

namespace reticle::tools {

/// The path of a file or folder distributed with Reticle: in RETICLE_DATA, installed beside the command, or in the
/// source tree.
std::filesystem::path bundled(const std::string& name);
inline constexpr const char* kBundledTensors = "attention_4096.safetensors";
inline constexpr const char* kBundledModel = "byte-llama-3m-retrieval";

/// The tensors of a file to use, and how to use them.
struct InputOptions {
  std::string file;               // empty: the bundled tensors
  std::string layers = "all";     // "all", or numbers and ranges: "0,2,5-7"
  std::string queries = "all";    // "all", "last" or a number of last queries
  std::optional<double> scaling;  // default: 1 / sqrt(head_dim)
  std::string stage = "auto";     // "auto": generation for one query, else prefill
};

/// The layers of a safetensors file: "layers.<i>.queries|keys|values", or "queries", "keys" and "values" of a single
/// layer; either may have an "attention_mask". Further tensors of a layer are extras that maskers can request by name.
class InputFile {
 public:
  /// FormatError or Error naming what is missing or malformed.
  explicit InputFile(const InputOptions& options);
  const std::vector<int>& layers() const { return layers_; }
  std::string path() const { return file_.path().string(); }
  /// Views into the file; ShapeError when its tensors do not fit together.
  AttentionInputs inputs(int layer) const;

 private:
  std::string prefix_of(int layer) const { return single_ ? "" : "layers." + std::to_string(layer) + "."; }

  InputOptions options_;
  SafeTensors file_;
  std::vector<int> layers_;
  std::map<int, std::vector<NamedTensor>> extras_;
  bool single_ = false;
};

/// A table with aligned columns: the first to the left, the others to the right.
class Table {
 public:
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

/// A progress bar, "[###.......] 2/4 layers", redrawn on stderr when that is a terminal, and cleared at the end.
class Progress {
 public:
  Progress(std::string unit, bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void at(Index done, Index total) const;

 private:
  std::string unit_;
  bool shown_;
};

std::string percent(double share);         // "12.34 %"
std::string milliseconds(double seconds);  // "12.3 ms"
std::string bytes(Index count);            // "12.3 kB"
/// Throws Error unless the file is writable and is not one of the command's inputs, so that the check comes before the
/// work, not after. Empty names are ignored.
void require_writable(const std::filesystem::path& path, const std::vector<std::string>& inputs = {});
/// A digest of a file's bytes, or of the files in a folder; Error when one cannot be read.
std::string digest_of(const std::filesystem::path& path);

/// Writes a PNG from 8-bit RGB pixels, row-major. Error when the file cannot be written.
void write_png(const std::filesystem::path& path, int width, int height, const std::vector<unsigned char>& rgb);

struct RunOptions {
  std::string config;
  Plugins plugins = Plugins::load;
  InputOptions input;
  bool compare = false, json = false, verbose = false;
  Index output_length = 0;  // number of last queries that count as generated; 0: one stage only
  std::string output;
  int threads = 0;
  std::uint64_t seed = 0;
};
int run(const RunOptions& options);

struct ShowOptions {
  std::string config;
  Plugins plugins = Plugins::load;
  std::optional<Index> queries, keys;  // extents of random tensors; default: 64
  int layer = 0;
  Index head = 0;
  std::string input;
  std::string png;
  bool dark = false;
};
int show(const ShowOptions& options);

/// The model to run, and its sparse patterns.
struct ModelOptions {
  std::string model;  // folder; empty: the bundled model
  int threads = 0;
  Plugins plugins = Plugins::load;  // for plugins named in the patterns' configs
};
Decoder load_model(const ModelOptions& options);
/// A context with this number of threads; 0: the default.
Context context_for(int threads);
/// Converts text to tokens of a byte-level model; Error for another vocabulary.
std::vector<std::int32_t> text_tokens(const Decoder& decoder, std::string_view text);
/// The evaluation text: the file's bytes, or the model's heldout.safetensors, or that of the bundled model.
std::string held_out_text(const std::string& file, const std::string& model);
SparseAttention pipeline_of(const std::string& prefill, const std::string& generation, Plugins plugins);

struct GenerateCommand {
  ModelOptions model;
  std::vector<std::string> prompts, stops;
  std::string prompt_file, config, prefill, generation, masks, cache = "f32";
  std::vector<std::int32_t> tokens;
  Index max_new_tokens = 128;
  double temperature = 0, top_p = 1;
  std::uint64_t seed = 0;
  bool json = false, stats = false;
};
/// Continues prompts.
int generate(const GenerateCommand& options);

struct EvaluateCommand {
  ModelOptions model;
  std::vector<std::string> configs, tasks;
  std::string grid, text, output, csv, plot;
  std::vector<Index> lengths{512, 1024, 2048};
  std::vector<double> depths;  // %; empty: random places
  Index window = 1024, output_length = 0, tokens = 32768, samples = 16;
  std::uint64_t seed = 0;
  bool json = false;
};
/// Measures loss and retrieval against density, for configs and dense attention.
int evaluate(const EvaluateCommand& options);

struct BenchModelCommand {
  ModelOptions model;
  std::vector<std::string> configs;
  std::string text;
  std::vector<Index> lengths{1024, 2048, 4096};
  Index new_tokens = 64, repeats = 3;
  bool json = false;
};
/// Measures time and memory of generation, for configs and dense attention.
int bench_model(const BenchModelCommand& options);

/// Prints a config for MInference's per-head patterns.
int import_minference(const std::filesystem::path& file, int heads);

/// Prints the installation and the machine that it runs on; returns 1 when a plugin was refused.
int doctor(const std::vector<std::string>& refused_plugins, bool json);

/// Prints the completion script for bash, zsh or fish.
int completion(const CLI::App& app, const std::string& shell);

}  // namespace reticle::tools
