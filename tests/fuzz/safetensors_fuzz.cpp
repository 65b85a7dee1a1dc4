// A safetensors file is refused, or read; a file that was read is written, and reads back equal.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <string_view>
#include <vector>

#include <reticle/core/tensor/safetensors.hpp>

#include "fuzz.hpp"

using namespace reticle;  // NOLINT(google-build-using-namespace): a target is one function

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
  std::mt19937 random(seed);
  return fuzz::mutate_safetensors(data, size, max_size, random);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto path = fuzz::folder().write("input.safetensors", {reinterpret_cast<const char*>(data), size});
  fuzz::expect_value_or_error([&] {
    const SafeTensors file(path);
    std::uint64_t bytes = 0;
    std::vector<NamedTensor> tensors;
    for (const auto& [name, view] : file.tensors()) {
      const auto* first = static_cast<const std::uint8_t*>(view.data);
      for (Index i = 0; i < view.elements() * size_of(view.dtype); ++i) bytes += first[i];
      tensors.push_back({name, view});
    }
    const std::filesystem::path again_path = fuzz::folder().path() / "again.safetensors";
    save_safetensors(again_path, tensors, file.metadata());
    const SafeTensors again(again_path);
    fuzz::require(again.metadata() == file.metadata() && again.tensors().size() == file.tensors().size(),
                  "written and read again, a file differs");
    std::uint64_t bytes_again = 0;
    for (const auto& [name, view] : again.tensors()) {
      const auto* first = static_cast<const std::uint8_t*>(view.data);
      for (Index i = 0; i < view.elements() * size_of(view.dtype); ++i) bytes_again += first[i];
    }
    fuzz::require(bytes == bytes_again, "written and read again, bytes differ");
  });
  return 0;
}
