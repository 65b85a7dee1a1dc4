// What the subcommands share: finding files, picking layers and queries, tables.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/tensor/safetensors.hpp>

namespace reticle::tools {

/// The tensors that come with Reticle: in RETICLE_DATA, installed beside the command, or in the source tree.
std::filesystem::path bundled_tensors();

/// Which tensors of a file to use, and how.
struct InputOptions {
  std::string file;             // empty: the bundled tensors
  std::string layers = "all";   // "all", or numbers and ranges: "0,2,5-7"
  std::string queries = "all";  // "all", "last" or a number of last queries
  double scaling = 0;           // 0: 1 / sqrt(head_dim)
  std::string stage = "auto";   // "auto": generation for one query, else prefill
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

/// A writable file name, or Error: checked before the work is done rather than after.
void require_writable(const std::filesystem::path& path);

/// 8-bit grey, row-major. Error when it cannot be written.
void write_png(const std::filesystem::path& path, int width, int height, const std::vector<unsigned char>& grey);

struct RunOptions {
  std::string config;
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
  Index queries = 64, keys = 64;
  int layer = 0;
  Index head = 0;
  std::string input;
  std::string png;
};
int show(const ShowOptions& options);

/// Prints a config for MInference's per-head patterns.
int import_minference(const std::filesystem::path& file, int heads);

/// Runs every case of a golden directory; 0 when none fails.
int verify(const std::filesystem::path& directory, bool known_only);

}  // namespace reticle::tools
