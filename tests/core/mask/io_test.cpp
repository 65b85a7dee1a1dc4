#include <random>
#include <string>

#include <gtest/gtest.h>

#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/io.hpp>
#include <reticle/core/tensor/safetensors.hpp>
#include <reticle/core/tensor/tensor.hpp>

#include "support/files.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

TEST(MaskFiles, RoundTripEveryRepresentation) {
  const TemporaryFolder folder;
  std::mt19937 random(11);
  for (const NamedMask& m : random_masks({2, 3, 4, 70}, random)) {
    save(m.mask, folder / "mask.safetensors");
    const Mask loaded = load_mask(folder / "mask.safetensors");
    EXPECT_EQ(loaded, m.mask) << m.name;
    EXPECT_EQ(loaded.kind(), m.mask.kind()) << m.name;
    EXPECT_EQ(loaded.shape().stored_rows(), m.mask.shape().stored_rows()) << m.name;
  }
}

TEST(MaskFiles, DamagedFilesAreRefusedOrStillValid) {
  const TemporaryFolder folder;
  const auto path = folder / "mask.safetensors";
  std::mt19937 random(13);
  for (const NamedMask& m : random_masks({1, 2, 3, 40}, random)) {
    save(m.mask, path);
    const std::string good = read_bytes(path);
    for (int trial = 0; trial < 60; ++trial) {
      std::string bad = good;
      if (trial % 3 == 0) {
        bad.resize(random() % good.size());
      } else {
        bad[random() % bad.size()] ^= static_cast<char>(1u << (random() % 8));
      }
      write_bytes(path, bad);
      try {
        const Mask loaded = load_mask(path);
        EXPECT_EQ(to_dense(loaded).size(), static_cast<std::size_t>(loaded.shape().positions()));
      } catch (const FormatError& error) {
        EXPECT_TRUE(std::string(error.what()).starts_with(path.string())) << error.what();
      }
    }
  }
}

TEST(MaskFiles, ExtentsWhoseProductsOverflowAreRefused) {
  const TemporaryFolder folder;
  const Tensor words(DType::u64, {0});
  for (const char* heads : {"549755813888", "4611686018427387904"}) {
    save_safetensors(folder / "mask", {{"words", words}},
                     {{"format", "reticle.mask.v1"},
                      {"kind", "bits"},
                      {"batch", "0"},
                      {"heads", heads},
                      {"queries", "1"},
                      {"keys", "2147483647"},
                      {"shared_batch", "1"},
                      {"shared_heads", "0"},
                      {"shared_queries", "0"}});
    EXPECT_THROW(load_mask(folder / "mask"), FormatError) << heads;
  }
}

TEST(MaskFiles, OtherFilesAreRefusedByName) {
  const TemporaryFolder folder;
  EXPECT_THROW(load_mask(folder / "absent"), FormatError);
  save_safetensors(folder / "tensors", {});
  try {
    load_mask(folder / "tensors");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_EQ(std::string(error.what()),
              (folder / "tensors").string() + ": is not a mask: its metadata lacks \"format\"");
  }
}

}  // namespace
}  // namespace reticle::testing
