// What the subcommands share: finding files, picking layers and queries, tables.
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

/// A file or folder that comes with Reticle: in RETICLE_DATA, installed beside the command, or in the source tree.
std::filesystem::path bundled(const std::string& name);
inline constexpr const char* kBundledTensors = "attention_4096.safetensors";
inline constexpr const char* kBundledModel = "byte-llama-3m";

/// Which tensors of a file to use, and how.
struct InputOptions {
  std::string file;               // empty: the bundled tensors
  std::string layers = "all";     // "all", or numbers and ranges: "0,2,5-7"
  std::string queries = "all";    // "all", "last" or a number of last queries
  std::optional<double> scaling;  // default: 1 / sqrt(head_dim)
  std::string stage = "auto";     // "auto": generation for one query, else prefill
};

/// The layers of a file: "layers.<i>.queries|keys|values", or one layer's "queries", "keys" and "values"; either with
/// an "attention_mask" beside them. Further tensors of a layer are what maskers may ask for by name.
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

/// Rows of cells, columns aligned: the first to the left, the others to the right.
class Table {
 public:
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

/// "[###.......] 2/4 layers", redrawn on stderr when it is a terminal, and cleared at the end.
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
/// A writable file that is none of those that the command reads, or Error: checked before the work is done rather than
/// after. Empty names are no files.
void require_writable(const std::filesystem::path& path, const std::vector<std::string>& inputs = {});
/// Of a file's bytes, or of a folder's files; Error when one cannot be read.
std::string digest_of(const std::filesystem::path& path);

/// 8-bit grey, row-major. Error when it cannot be written.
void write_png(const std::filesystem::path& path, int width, int height, const std::vector<unsigned char>& rgb);

struct RunOptions {
  std::string config;
  Plugins plugins = Plugins::load;
  InputOptions input;
  bool compare = false, json = false, verbose = false;
  Index output_length = 0;  // last queries that are generated, the others prefilled; 0: one stage only
  std::string output;
  int threads = 0;
  std::uint64_t seed = 0;
};
int run(const RunOptions& options);

struct ShowOptions {
  std::string config;
  Plugins plugins = Plugins::load;
  std::optional<Index> queries, keys;  // of random tensors; 64 without
  int layer = 0;
  Index head = 0;
  std::string input;
  std::string png;
  bool dark = false;
};
int show(const ShowOptions& options);

/// Which model to run, and which patterns it attends by.
struct ModelOptions {
  std::string model;  // folder; empty: the bundled one
  int threads = 0;
  Plugins plugins = Plugins::load;  // of the patterns' configs
};
Decoder load_model(const ModelOptions& options);
/// Threads as asked for; with few, the matrix products' too.
Context context_for(int threads);
/// Text as tokens of a byte-level model; Error for another vocabulary.
std::vector<std::int32_t> text_tokens(const Decoder& decoder, std::string_view text);
/// --text's bytes, or the model's heldout.safetensors, or the bundled model's.
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
  Index window = 1024, output_length = 0, tokens = 32768, samples = 16;
  std::uint64_t seed = 0;
  bool json = false;
};
/// Loss and retrieval against density, of configs and of dense attention.
int evaluate(const EvaluateCommand& options);

struct BenchModelCommand {
  ModelOptions model;
  std::vector<std::string> configs;
  std::string text;
  std::vector<Index> lengths{1024, 2048, 4096};
  Index new_tokens = 64, repeats = 3;
  bool json = false;
};
/// Times and memory of generating, of configs and of dense attention.
int bench_model(const BenchModelCommand& options);

/// Prints a config for MInference's per-head patterns.
int import_minference(const std::filesystem::path& file, int heads);

/// Prints what is installed and what it runs on; 1 when a plugin was refused.
int doctor(const std::vector<std::string>& refused_plugins, bool json);

/// Prints the script that completes the command's words in bash, zsh or fish.
int completion(const CLI::App& app, const std::string& shell);

}  // namespace reticle::tools
