#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include <reticle/core/tensor/safetensors.hpp>
#include <reticle/core/tensor/tensor.hpp>

#include "support/files.hpp"

namespace reticle::testing {
namespace {

std::string with_header(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t size = header.size();
  std::string file(sizeof size, '\0');
  std::memcpy(file.data(), &size, sizeof size);
  return file + header + std::string(data_bytes, '\x01');
}

TEST(SafeTensors, RoundTripsDtypesShapesMetadataAndStrides) {
  const TemporaryFolder folder;
  Tensor a(DType::f32, {2, 3}), b(DType::i64, {0, 4});
  for (std::size_t i = 0; i < 6; ++i) a.span<float>()[i] = static_cast<float>(i);
  const Tensor half = Tensor::copy(a, DType::bf16);
  save_safetensors(folder / "t", {{"a", a}, {"b", b}, {"half", half}, {"transposed", a.view().permute({1, 0})}},
                   {{"key", "value"}});
  const SafeTensors file(folder / "t");
  EXPECT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.metadata().at("key"), "value");
  EXPECT_EQ(file.at("half").describe(), "BF16 (2, 3)");
  EXPECT_EQ(file.at("b").describe(), "I64 (0, 4)");
  EXPECT_EQ(read_float(file.at("half"), 5), 5.0f);
  EXPECT_EQ(*file.at("transposed").at<float>(2, 1), 5.0f);
  EXPECT_EQ(*file.at("transposed").at<float>(0, 1), 3.0f);
}

TEST(SafeTensors, UnalignedTensorsAreRead) {
  const TemporaryFolder folder;
  std::string bytes = with_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                                      "x":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
                                  5);
  const float value = 2.5f;
  std::memcpy(bytes.data() + bytes.size() - 4, &value, 4);
  write_bytes(folder / "t", bytes);
  EXPECT_EQ(read_float(SafeTensors(folder / "t").at("x"), 0), 2.5f);
}

TEST(SafeTensors, MissingTensorNamesTheNearest) {
  const TemporaryFolder folder;
  Tensor a(DType::f32, {1});
  save_safetensors(folder / "t", {{"layers.0.queries", a}});
  const SafeTensors file(folder / "t");
  try {
    file.at("layers.0.query");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_EQ(std::string(error.what()),
              (folder / "t").string() + ": has no tensor \"layers.0.query\"; did you mean \"layers.0.queries\"?");
  }
}

TEST(SafeTensors, MalformedFilesAreRefusedWithTheReason) {
  const TemporaryFolder folder;
  const auto path = folder / "t";
  const auto refusal = [&](const std::string& bytes) {
    write_bytes(path, bytes);
    try {
      const SafeTensors file(path);
    } catch (const FormatError& error) {
      return std::string(error.what()).substr(path.string().size() + 2);
    }
    return std::string("accepted");
  };
  EXPECT_EQ(refusal("abc"), "has 3 bytes; a safetensors file has 8 or more");
  EXPECT_TRUE(refusal(std::string(20, '\xff')).starts_with("is not a safetensors file, or is truncated: it announces"));
  EXPECT_EQ(refusal(with_header("[]", 0)), "its header is not a JSON object");
  EXPECT_EQ(refusal(with_header("{", 0)), "its header is not a JSON object");
  EXPECT_EQ(refusal(with_header(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7)),
            "tensor \"x\": data_offsets [0,8] do not lie in the 7 bytes of data");
  EXPECT_EQ(refusal(with_header(R"({"x":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8)),
            "tensor \"x\": F32 (3) needs 12 bytes; data_offsets give 8");
  EXPECT_EQ(refusal(with_header(R"({"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}})", 8)),
            "tensor \"x\": shape holds -1; expected non-negative integers");
  EXPECT_EQ(refusal(with_header(R"({"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0)),
            "tensor \"x\": tensor: more than 2^63 - 1 elements");
  EXPECT_EQ(refusal(with_header(R"({"x":{"dtype":"F8","shape":[1],"data_offsets":[0,1]}})", 1)).substr(0, 36),
            "tensor \"x\": dtype \"F8\" is not one th");
  EXPECT_EQ(refusal(with_header(R"({"x":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})", 4)),
            "tensor \"x\": shape must be a list of at most 8 extents");
  EXPECT_EQ(refusal(with_header(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                                    "b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
                                7)),
            "its tensors overlap at byte 3 of its data");
  EXPECT_EQ(refusal(with_header(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}})", 5)),
            "its tensors leave a hole at byte 0 of its data");
  EXPECT_EQ(refusal(with_header(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 7)),
            "has 3 bytes behind its tensors");
  EXPECT_EQ(refusal(with_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                                    "a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}})",
                                1)),
            "its header has \"a\" twice");
  EXPECT_EQ(refusal(with_header(R"({"a":)" + std::string(200000, '[') + std::string(200000, ']') + "}", 0)),
            "its header is nested more than 4 levels deep");
  EXPECT_EQ(refusal(with_header(R"({"x":1})", 0)), "tensor \"x\": needs dtype, shape and data_offsets");
  EXPECT_EQ(refusal(with_header(R"({"__metadata__":{"k":1}})", 0)), "__metadata__ holds \"k\", which is not a string");
  EXPECT_THROW(SafeTensors(folder.path()), FormatError);
  EXPECT_THROW(SafeTensors(folder / "absent"), FormatError);
}

TEST(SafeTensors, AFileThatIsCutShortWhileItIsInUseIsStillThere) {
  const TemporaryFolder folder;
  Tensor a(DType::f32, {100000});
  std::ranges::fill(a.span<float>(), 0.0f);
  save_safetensors(folder / "t", {{"a", a}});
  const SafeTensors file(folder / "t");
  std::filesystem::resize_file(folder / "t", 100);
  EXPECT_EQ(read_float(file.at("a"), 99999), 0.0f);
}

TEST(SafeTensors, RandomDamageNeverCrashes) {
  const TemporaryFolder folder;
  Tensor a(DType::f32, {5, 3}), b(DType::i64, {7});
  std::memset(a.data(), 0, 60);
  std::memset(b.data(), 0, 56);
  save_safetensors(folder / "t", {{"a", a}, {"b", b}}, {{"k", "v"}});
  const std::string good = read_bytes(folder / "t");
  std::mt19937 random(17);
  for (int trial = 0; trial < 2000; ++trial) {
    std::string bad = good;
    for (unsigned i = 0; i <= random() % 4; ++i) bad[random() % bad.size()] = static_cast<char>(random());
    if (trial % 5 == 0) bad.resize(random() % bad.size());
    write_bytes(folder / "t", bad);
    try {
      const SafeTensors file(folder / "t");
      for (const auto& [name, view] : file.tensors()) {
        // Every byte of a view must be readable.
        const auto* bytes = static_cast<const unsigned char*>(view.data);
        unsigned sum = 0;
        for (Index i = 0; i < view.elements() * size_of(view.dtype); ++i) sum += bytes[i];
        EXPECT_LE(sum, 255u * bad.size());
      }
    } catch (const FormatError&) {
      continue;
    }
  }
}

TEST(SafeTensors, QuantisedTensorsAreNotWritten) {
  const TemporaryFolder folder;
  const Tensor codes = Tensor::copy(Tensor(DType::f32, {2, 32}), DType::q8);
  EXPECT_THROW(save_safetensors(folder / "t", {{"codes", codes}}), FormatError);
  EXPECT_FALSE(std::filesystem::exists(folder / "t"));
}

TEST(SafeTensors, AFailedWriteLeavesNothingBehind) {
  const TemporaryFolder folder;
  Tensor a(DType::f32, {1});
  EXPECT_THROW(save_safetensors(folder / "missing/t", {{"a", a}}), FormatError);
  EXPECT_THROW(save_safetensors(folder / "t", {{"a", a}, {"a", a}}), FormatError);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace reticle::testing
