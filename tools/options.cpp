#include "options.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <string_view>
#include <system_error>
#include <unistd.h>

#include <fmt/core.h>

#include <reticle/core/base/output_file.hpp>

namespace reticle::tools {

std::filesystem::path bundled(const std::string& name) {
  std::vector<std::filesystem::path> places;
  if (const char* folder = std::getenv("RETICLE_DATA")) places.emplace_back(folder);
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) places.push_back(self.parent_path().parent_path() / "share/reticle/data");
#ifdef RETICLE_SOURCE_DATA
  places.emplace_back(RETICLE_SOURCE_DATA);
#endif
  for (const std::filesystem::path& place : places) {
    if (std::filesystem::exists(place / name, error)) return place / name;
  }
  throw Error("the bundled " + name + " was not found; give your own, or its folder in RETICLE_DATA");
}

namespace {

std::optional<int> parse_number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

std::vector<int> parse_layers(std::string_view text, const std::vector<int>& known) {
  if (text == "all") return known;
  const auto reject = [&]() -> std::vector<int> {
    std::string have;
    for (const int layer : known) have += (have.empty() ? "" : ", ") + std::to_string(layer);
    throw Error("--layers " + std::string(text) + ": expected \"all\" or numbers and ranges such as 0,2,5-7, of " +
                have);
  };
  std::vector<int> layers;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view part = rest.substr(0, comma);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
    const std::size_t dash = std::min(part.find('-'), part.size());
    const std::optional<int> first = parse_number(part.substr(0, dash));
    const std::optional<int> last = dash == part.size() ? first : parse_number(part.substr(dash + 1));
    if (!first || !last || *first > *last) return reject();
    std::size_t found = 0;
    for (const int layer : known) {
      if (layer < *first || layer > *last) continue;
      layers.push_back(layer);
      ++found;
    }
    if (found == 0) return reject();
  }
  if (layers.empty()) return reject();
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return layers;
}

}  // namespace

InputFile::InputFile(const InputOptions& options)
    : options_(options), file_(options.file.empty() ? bundled(kBundledTensors) : std::filesystem::path(options.file)) {
  std::vector<int> known;
  if (file_.contains("queries")) {
    single_ = true;
    known = {0};
  }
  for (const auto& [name, view] : file_.tensors()) {
    constexpr std::string_view kPrefix = "layers.", kSuffix = ".queries";
    if (single_ || !name.starts_with(kPrefix) || !name.ends_with(kSuffix)) continue;
    const std::string_view number =
        std::string_view(name).substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size());
    if (const std::optional<int> layer = parse_number(number)) known.push_back(*layer);
  }
  if (known.empty())
    throw FormatError(file_.path().string() +
                      ": has neither \"queries\", \"keys\" and \"values\" nor \"layers.<i>.queries\", ...");
  std::sort(known.begin(), known.end());
  layers_ = parse_layers(options.layers, known);
  for (const int layer : layers_) {
    const std::string prefix = prefix_of(layer);
    for (const auto& [name, view] : file_.tensors()) {
      if (name.starts_with(prefix)) extras_[layer].push_back({name.substr(prefix.size()), view});
    }
  }
}

AttentionInputs InputFile::inputs(int layer) const {
  const std::string prefix = prefix_of(layer);
  AttentionInputs inputs;
  inputs.queries = file_.at(prefix + "queries");
  inputs.keys = file_.at(prefix + "keys");
  inputs.values = file_.at(prefix + "values");
  require_rank(inputs.queries, 4, prefix + "queries");
  if (const std::optional<TensorView> given = file_.find(prefix + "attention_mask")) {
    // Missing dimensions come first, as in numpy broadcasting.
    if (given->rank > 4)
      throw FormatError(file_.path().string() + ": " + prefix + "attention_mask: " + given->describe() +
                        "; expected at most 4 dimensions");
    TensorView& mask = inputs.attention_mask.emplace(*given);
    mask.rank = 4;
    for (int dim = 0; dim < 4; ++dim) {
      const int given_dim = dim - (4 - given->rank);
      mask.shape[static_cast<std::size_t>(dim)] = given_dim < 0 ? 1 : given->size(given_dim);
      mask.strides[static_cast<std::size_t>(dim)] = given_dim < 0 ? 0 : given->stride(given_dim);
    }
  }
  const Index queries = inputs.queries.size(2);
  if (options_.queries != "all") {
    const std::optional<int> count = options_.queries == "last" ? std::optional(1) : parse_number(options_.queries);
    if (!count || *count < 1 || *count > queries)
      throw Error("--queries " + options_.queries + ": expected \"all\", \"last\" or a number from 1 to " +
                  std::to_string(queries));
    inputs.queries = inputs.queries.slice(2, queries - *count, queries);
    if (inputs.attention_mask && inputs.attention_mask->size(2) == queries)
      inputs.attention_mask = inputs.attention_mask->slice(2, queries - *count, queries);
  }
  inputs.scaling = options_.scaling ? static_cast<float>(*options_.scaling)
                                    : 1.0f / std::sqrt(static_cast<float>(std::max<Index>(1, inputs.head_dim())));
  inputs.layer = layer;
  if (const auto extras = extras_.find(layer); extras != extras_.end()) inputs.extras = extras->second;
  const bool generation = options_.stage == "auto" ? inputs.queries.size(2) == 1 : options_.stage == "generation";
  inputs.stage = generation ? Stage::generation : Stage::prefill;
  inputs.validate();
  return inputs;
}

std::string Table::text() const {
  std::vector<std::size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (std::size_t column = 0; column < row.size(); ++column)
      widths[column] = std::max(widths[column], row[column].size());
  }
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (std::size_t column = 0; column < row.size(); ++column) {
      const std::string padding(widths[column] - row[column].size(), ' ');
      if (column > 0) line += "  ";
      line += column == 0 ? row[column] + padding : padding + row[column];
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

Progress::Progress(std::string unit, bool quiet)
    : unit_(std::move(unit)), shown_(!quiet && isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (shown_) fmt::print(stderr, "\r\033[K");
}

void Progress::at(Index done, Index total) const {
  if (!shown_ || total < 2) return;
  constexpr Index kWidth = 30;
  const auto filled = static_cast<std::size_t>(done * kWidth / total);
  fmt::print(stderr, "\r\033[K[{}{}] {}/{} {}", std::string(filled, '#'), std::string(kWidth - filled, '.'), done,
             total, unit_);
  std::fflush(stderr);
}

std::string percent(double share) { return fmt::format("{:.2f} %", 100 * share); }
std::string milliseconds(double seconds) { return fmt::format("{:.1f} ms", 1000 * seconds); }

std::string bytes(Index count) {
  if (count < 10'000) return fmt::format("{} B", count);
  if (count < 10'000'000) return fmt::format("{:.1f} kB", static_cast<double>(count) / 1e3);
  return fmt::format("{:.1f} MB", static_cast<double>(count) / 1e6);
}

void require_writable(const std::filesystem::path& path, const std::vector<std::string>& inputs) {
  std::error_code ignored;
  for (const std::string& input : inputs) {
    if (!input.empty() && std::filesystem::equivalent(path, input, ignored))
      throw Error(path.string() + ": is a file that this command reads, and would be replaced; expected another name");
  }
  if (std::filesystem::exists(path, ignored) && std::filesystem::is_other(path, ignored))
    return;  // a pipe: opening it to test would block or disturb its reader
  const OutputFile trial(path);
}

std::string digest_of(const std::filesystem::path& path) {
  std::vector<std::filesystem::path> files;
  if (std::filesystem::is_directory(path)) {
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    std::ranges::sort(files);
  } else {
    files.push_back(path);
  }
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a over 64-bit words
  const auto add = [&](std::string_view bytes) {
    for (std::size_t at = 0; at < bytes.size(); at += sizeof(std::uint64_t)) {
      std::uint64_t word = bytes.size();
      std::memcpy(&word, bytes.data() + at, std::min(sizeof(word), bytes.size() - at));
      hash = (hash ^ word) * 1099511628211u;
      hash ^= hash >> 29;
    }
  };
  std::vector<char> block(std::size_t{1} << 20);
  for (const std::filesystem::path& file : files) {
    std::ifstream in(file, std::ios::binary);
    if (!in) throw Error(file.string() + ": cannot be read");
    add(file.filename().string());
    while (in.read(block.data(), static_cast<std::streamsize>(block.size())) || in.gcount() > 0)
      add({block.data(), static_cast<std::size_t>(in.gcount())});
  }
  return fmt::format("{:016x}", hash);
}

}  // namespace reticle::tools
