// The bytes of a plugin: the checks before the loader sees them.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <reticle/core/plugin.hpp>
#include <reticle/core/registry.hpp>

#include "fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto path = reticle::fuzz::folder().write("plugin.so", {reinterpret_cast<const char*>(data), size});
  reticle::fuzz::expect_value_or_error([&] {
    reticle::require_matching_stamps(path);
    reticle::seal_plugin(path);
    // A sealed plugin must be accepted.
    try {
      reticle::require_matching_stamps(path);
    } catch (const reticle::Error& error) {
      reticle::fuzz::fail(error.what());
    }
  });
  return 0;
}
