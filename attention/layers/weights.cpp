#include <algorithm>
#include <functional>
#include <set>

#include <nlohmann/json.hpp>

#include <reticle/attention/layers/weights.hpp>
#include <reticle/core/base/did_you_mean.hpp>
#include <reticle/core/base/input_file.hpp>

namespace reticle {
namespace {

using Json = nlohmann::json;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr std::size_t kShownComplaints = 5;

std::set<std::string> shards_of(const std::filesystem::path& index) {
  const Json document = Json::parse(read_file<FormatError>(index), nullptr, /*allow_exceptions=*/false);
  if (!document.is_object() || !document.contains("weight_map") || !document["weight_map"].is_object())
    throw FormatError(index.string() + ": has no \"weight_map\" from tensors to files");
  std::set<std::string> shards;
  for (const auto& [tensor, file] : document["weight_map"].items()) {
    // A shard is a file beside the index; paths that lead out of the folder are refused.
    if (!file.is_string() || std::filesystem::path(file.get<std::string>()).filename() != file.get<std::string>())
      throw FormatError(index.string() + ": \"" + tensor + "\" is mapped to " + file.dump() +
                        "; expected the name of a file in this folder");
    shards.insert(file.get<std::string>());
  }
  return shards;
}

}  // namespace

Weights Weights::from_folder(const std::filesystem::path& folder) {
  Weights weights;
  weights.source_ = folder.string();
  std::set<std::string> files;
  if (std::filesystem::exists(folder / kSingle)) {
    files.insert(kSingle);
  } else if (std::filesystem::exists(folder / kIndex)) {
    files = shards_of(folder / kIndex);
  } else {
    throw FormatError(folder.string() + ": has neither " + kSingle + " nor " + kIndex +
                      "; a model is a folder with config.json and safetensors files");
  }
  for (const std::string& file : files) {
    const SafeTensors& shard = weights.files_.emplace_back(folder / file);
    for (const auto& [name, view] : shard.tensors()) {
      if (!weights.tensors_.emplace(name, view).second)
        throw FormatError(shard.path().string() + ": tensor \"" + name + "\" is in another shard, too");
    }
  }
  return weights;
}

Weights Weights::from_file(const SafeTensors& file, std::string_view prefix) {
  Weights weights;
  weights.source_ = file.path().string();
  weights.files_.push_back(file);
  for (const auto& [name, view] : file.tensors()) {
    if (name.starts_with(prefix)) weights.tensors_.emplace(name.substr(prefix.size()), view);
  }
  return weights;
}

Weights Weights::from_views(std::string source, std::map<std::string, TensorView, std::less<>> tensors) {
  Weights weights;
  weights.source_ = std::move(source);
  weights.tensors_ = std::move(tensors);
  return weights;
}

Index Weights::bytes() const {
  Index sum = 0;
  for (const auto& [name, view] : tensors_) sum += view.elements() * size_of(view.dtype);
  return sum;
}

TensorView WeightReader::take(const std::string& name, std::initializer_list<Index> shape) {
  taken_[name] = true;
  const TensorView wanted(nullptr, DType::f32, shape);
  const auto found = weights_.tensors().find(name);
  if (found == weights_.tensors().end()) {
    // Complaints that are not shown are only counted: comparing names for each of them would take minutes for a model
    // that lacks many layers.
    std::vector<std::string_view> known;
    if (complaints_.size() < kShownComplaints) {
      for (const auto& [key, view] : weights_.tensors()) known.push_back(key);
    }
    complaints_.push_back("\"" + name + "\" is missing" + did_you_mean(name, known));
    return {};
  }
  const TensorView& view = found->second;
  const bool is_float = view.dtype == DType::f32 || view.dtype == DType::f16 || view.dtype == DType::bf16;
  if (view.rank != wanted.rank || view.shape != wanted.shape || !is_float) {
    std::string text = wanted.describe();
    complaints_.push_back("\"" + name + "\" is " + view.describe() + "; expected F32, F16 or BF16" +
                          text.substr(text.find(' ')));
    return {};
  }
  return view;
}

void WeightReader::finish() const {
  std::vector<std::string> complaints = complaints_;
  for (const auto& [name, view] : weights_.tensors()) {
    if (taken_.find(name) == taken_.end()) complaints.push_back("\"" + name + "\" is not part of this architecture");
  }
  if (complaints.empty()) return;
  std::string message = weights_.source() + ": the tensors are not those of the config:";
  for (std::size_t i = 0; i < std::min(kShownComplaints, complaints.size()); ++i) message += "\n  " + complaints[i];
  if (complaints.size() > kShownComplaints)
    message += "\n  and " + std::to_string(complaints.size() - kShownComplaints) + " more";
  throw FormatError(message);
}

}  // namespace reticle
