// Helpers shared by the subcommands that run a model.
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <fmt/core.h>

#include <reticle/attention/llama/generate.hpp>
#include <reticle/core/base/input_file.hpp>

#include "options.hpp"

namespace reticle::tools {

namespace {

std::filesystem::path model_folder(const std::string& given) {
  return given.empty() ? bundled(kBundledModel) : std::filesystem::path(given);
}

}  // namespace

Decoder load_model(const ModelOptions& options) { return Decoder::load(model_folder(options.model)); }

Context context_for(int threads) { return threads > 0 ? Context(threads) : Context(); }

std::vector<std::int32_t> text_tokens(const Decoder& decoder, std::string_view text) {
  if (decoder.config().vocab_size != 256)
    throw Error("the model has a vocabulary of " + std::to_string(decoder.config().vocab_size) +
                " tokens; text is read as bytes, for vocabularies of 256 (give token ids, or use the Python package)");
  return bytes_to_tokens(text);
}

std::string held_out_text(const std::string& file, const std::string& model) {
  if (!file.empty()) return read_file<FormatError>(file);
  constexpr const char* kHeldOut = "heldout.safetensors";
  const std::filesystem::path beside = model_folder(model) / kHeldOut;
  const SafeTensors tensors(std::filesystem::exists(beside) ? beside : bundled(kBundledModel) / kHeldOut);
  const TensorView& tokens = tensors.at("tokens");
  if (tokens.dtype != DType::u8) throw FormatError(tensors.path().string() + ": tokens are not bytes");
  return {static_cast<const char*>(tokens.data), static_cast<std::size_t>(tokens.elements())};
}

SparseAttention pipeline_of(const std::string& prefill, const std::string& generation, Plugins plugins) {
  const auto pipeline = [&](const std::string& config) {
    return config.empty() ? SparseAttention::from_json(R"({"maskers": []})")
                          : SparseAttention::from_file(config, plugins);
  };
  return SparseAttention::by_stage(pipeline(prefill), pipeline(generation));
}

}  // namespace reticle::tools
