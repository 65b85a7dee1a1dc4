#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/layers/weights.hpp>
#include <reticle/core/tensor/tensor.hpp>

#include "support/files.hpp"
#include "support/message_of.hpp"

namespace reticle::testing {
namespace {

Tensor filled(DType dtype, std::initializer_list<Index> shape, float value) {
  Tensor tensor(DType::f32, shape);
  for (float& x : tensor.span<float>()) x = value;
  return Tensor::copy(tensor, dtype);
}

std::vector<std::string> names_of(const Weights& weights) {
  std::vector<std::string> names;
  for (const auto& [name, view] : weights.tensors()) names.push_back(name);
  return names;
}

/// The message of loading a folder, which is called M in it.
std::string refusal(const TemporaryFolder& folder) {
  std::string message = message_of<FormatError>([&] { Weights::from_folder(folder.path()); });
  const std::string path = folder.path().string();
  for (std::size_t at = 0; (at = message.find(path)) != std::string::npos;) message.replace(at, path.size(), "M");
  return message;
}

TEST(Weights, OfAFolderAreThoseOfItsFileOrItsShards) {
  const TemporaryFolder folder;
  const Tensor one = filled(DType::f32, {2, 3}, 1), two = filled(DType::bf16, {4}, 2);
  save_safetensors(folder / "a.safetensors", {{"one", one}});
  save_safetensors(folder / "b.safetensors", {{"two", two}});
  write_bytes(folder / "model.safetensors.index.json",
              R"({"weight_map": {"one": "a.safetensors", "two": "b.safetensors"}})");
  const Weights shards = Weights::from_folder(folder.path());
  EXPECT_EQ(shards.source(), folder.path().string());
  EXPECT_EQ(names_of(shards), (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(shards.bytes(), 6 * 4 + 4 * 2);
  EXPECT_EQ(*shards.tensors().at("one").at<float>(1, 2), 1);
  save_safetensors(folder / "model.safetensors", {{"two", two}});
  EXPECT_EQ(names_of(Weights::from_folder(folder.path())), (std::vector<std::string>{"two"}))
      << "the one file comes first";
}

TEST(Weights, CopiesKeepTheFilesAlive) {
  const TemporaryFolder folder;
  const Tensor one = filled(DType::f32, {2}, 7);
  save_safetensors(folder / "model.safetensors", {{"one", one}});
  Weights copy = Weights::from_views("nowhere", {});
  {
    const Weights first = Weights::from_folder(folder.path());
    copy = first;
  }
  EXPECT_EQ(*copy.tensors().at("one").at<float>(1), 7);
}

TEST(Weights, FoldersThatAreNoModelAreRefusedByName) {
  const TemporaryFolder folder;
  EXPECT_EQ(refusal(folder),
            "M: has neither model.safetensors nor model.safetensors.index.json; a model is a folder with config.json "
            "and safetensors files");
  const auto index = [&](const std::string& text) {
    write_bytes(folder / "model.safetensors.index.json", text);
    return refusal(folder);
  };
  const std::string no_map = "M/model.safetensors.index.json: has no \"weight_map\" from tensors to files";
  for (const char* text : {"{", "[]", "{}", R"({"weight_map": 3})"}) EXPECT_EQ(index(text), no_map) << text;
  EXPECT_EQ(index(R"({"weight_map": {"x": "../a.safetensors"}})"),
            "M/model.safetensors.index.json: \"x\" is mapped to \"../a.safetensors\"; expected the name of a file in "
            "this folder");
  EXPECT_EQ(index(R"({"weight_map": {"x": 4}})"),
            "M/model.safetensors.index.json: \"x\" is mapped to 4; expected the name of a file in this folder");
  EXPECT_TRUE(index(R"({"weight_map": {"x": "a.safetensors"}})").starts_with("M/a.safetensors: "));
}

TEST(Weights, ATensorInTwoShardsIsRefused) {
  const TemporaryFolder folder;
  const Tensor one = filled(DType::f32, {2}, 1);
  for (const char* file : {"a.safetensors", "b.safetensors"}) save_safetensors(folder / file, {{"one", one}});
  write_bytes(folder / "model.safetensors.index.json",
              R"({"weight_map": {"one": "a.safetensors", "other": "b.safetensors"}})");
  EXPECT_EQ(refusal(folder), "M/b.safetensors: tensor \"one\" is in another shard, too");
}

TEST(Weights, OfAFileAreThoseOfAPrefixWithoutIt) {
  const TemporaryFolder folder;
  const Tensor one = filled(DType::f32, {2}, 1);
  save_safetensors(folder / "x", {{"weights.a", one}, {"weights.b", one}, {"inputs.a", one}});
  const SafeTensors file(folder / "x");
  EXPECT_EQ(names_of(Weights::from_file(file, "weights.")), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(names_of(Weights::from_file(file)).size(), 3u);
  EXPECT_TRUE(names_of(Weights::from_file(file, "none.")).empty());
}

struct Read {
  Tensor half = filled(DType::f16, {2, 3}, 1), integers = Tensor(DType::i32, {4});
  Weights weights = Weights::from_views("here", {{"layer.half", half}, {"layer.integers", integers}});
  WeightReader reader{weights};
};

TEST(WeightReader, TakesFloatTensorsOfTheShape) {
  Read read;
  EXPECT_EQ(read.reader.take("layer.half", {2, 3}).data, read.half.view().data);
  read.reader.pass_over("layer.integers");
  EXPECT_NO_THROW(read.reader.finish());
}

TEST(WeightReader, SaysAllThatWasWrongAtOnce) {
  Read read;
  EXPECT_EQ(read.reader.take("layer.half", {3, 2}).data, nullptr);
  EXPECT_EQ(read.reader.take("layer.hald", {2, 3}).data, nullptr);
  EXPECT_EQ(message_of<FormatError>([&] { read.reader.finish(); }),
            "here: the tensors are not those of the config:\n"
            "  \"layer.half\" is F16 (2, 3); expected F32, F16 or BF16 (3, 2)\n"
            "  \"layer.hald\" is missing; did you mean \"layer.half\"?\n"
            "  \"layer.integers\" is not part of this architecture");
}

TEST(WeightReader, RefusesIntegers) {
  Read read;
  read.reader.take("layer.integers", {4});
  read.reader.pass_over("layer.half");
  EXPECT_EQ(message_of<FormatError>([&] { read.reader.finish(); }),
            "here: the tensors are not those of the config:\n"
            "  \"layer.integers\" is I32 (4); expected F32, F16 or BF16 (4)");
}

TEST(WeightReader, ShowsFiveComplaintsAndCountsTheOthers) {
  const Weights none = Weights::from_views("here", {});
  WeightReader reader(none);
  for (int i = 0; i < 8; ++i) reader.take("t" + std::to_string(i), {1});
  EXPECT_EQ(message_of<FormatError>([&] { reader.finish(); }),
            "here: the tensors are not those of the config:\n  \"t0\" is missing\n  \"t1\" is missing\n"
            "  \"t2\" is missing\n  \"t3\" is missing\n  \"t4\" is missing\n  and 3 more");
}

}  // namespace
}  // namespace reticle::testing
