// A mask file is refused, or gives a mask that supports every operation.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <string_view>
#include <vector>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/io.hpp>
#include <reticle/core/mask/mask.hpp>

#include "fuzz.hpp"

using namespace reticle;  // NOLINT(google-build-using-namespace): a target is one function

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
  std::mt19937 random(seed);
  return fuzz::mutate_safetensors(data, size, max_size, random);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr Index kSmall = 1 << 16;
  const auto path = fuzz::folder().write("input.safetensors", {reinterpret_cast<const char*>(data), size});
  fuzz::expect_value_or_error([&] {
    const Mask mask = load_mask(path);
    const MaskShape& shape = mask.shape();
    fuzz::require(mask.nnz() >= 0 && mask.density() >= 0 && mask.density() <= 1, "a density out of range");
    const std::filesystem::path again = fuzz::folder().path() / "again.safetensors";
    save(mask, again);
    fuzz::require(load_mask(again) == mask, "written and read again, a mask differs");
    if (shape.batch > 0 && shape.heads > 0 && shape.queries > 0 && shape.keys > 0) {
      std::vector<Run> runs;
      mask.row({shape.batch - 1, shape.heads - 1, shape.queries - 1}, runs);
      for (const Run& run : runs)
        fuzz::require(run.begin >= 0 && run.begin < run.end && run.end <= shape.keys && run.p > 0 && run.p <= 1,
                      "a run out of range");
    }
    if (shape.rows() > kSmall || shape.keys > kSmall || shape.rows() * shape.keys > kSmall) return;
    const Array<float> dense = to_dense(mask);
    const Context context(1);
    for (const MaskKind kind : {MaskKind::bits, MaskKind::dense, MaskKind::csr, MaskKind::runs}) {
      fuzz::expect_value_or_error(
          [&] { fuzz::require(convert(mask, kind, context) == mask, "converted, a mask differs"); });
    }
    fuzz::require(merge(mask, mask, MergeRule::max, context) == mask, "merged with itself by max, a mask differs");
    fuzz::require((mask - mask).nnz() == 0, "without itself, a mask has entries");
    fuzz::require(Mask::dense(shape.unshared(), dense) == mask, "by its dense values, a mask differs");
  });
  return 0;
}
