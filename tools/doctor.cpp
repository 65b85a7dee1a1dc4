#include <cstdlib>
#include <dlfcn.h>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <reticle/core/base/context.hpp>
#include <reticle/core/base/machine.hpp>
#include <reticle/core/base/processor.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/registry.hpp>
#include <reticle/version.hpp>

#include "options.hpp"

namespace reticle::tools {
namespace {

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name") && line.find(": ") != line.npos) return line.substr(line.find(": ") + 2);
  }
  return "unknown";
}

/// The path of the library file in use, in case several are installed.
std::string library() {
  Dl_info info{};
  const auto* function = reinterpret_cast<const void*>(&instruction_set);
  return dladdr(function, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "unknown";
}

#if defined(__clang__)
constexpr const char* kCompiler = __VERSION__;  // the text contains "Clang"
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

/// How tiles of bfloat16 are multiplied, and why.
std::string bfloat16() {
  if (!has_bf16_pairs()) return "as float32: the processor has no instruction for pairs";
  const char* asked = std::getenv("RETICLE_BF16_PRODUCT");
  return fmt::format("in {}: the instruction for pairs takes {:.1f} times as long as a multiply-add of float32{}",
                     name_of(bf16_product()), time_of_bf16_pairs(),
                     asked == nullptr || *asked == '\0' ? "" : std::string(", RETICLE_BF16_PRODUCT=") + asked);
}

std::string gpu() {
  if (const char* reason = cuda::why_unavailable()) return std::string("none: ") + reason;
  const int capability = cuda::compute_capability();
  return fmt::format("{}, the current one of compute capability {}.{} with {} multiprocessors", cuda::device_count(),
                     capability / 10, capability % 10, cuda::multiprocessors());
}

}  // namespace

int doctor(const std::vector<std::string>& refused_plugins, bool json) {
  std::vector<std::string> plugins;
  for (const MaskerType* type : Registry::global().list()) {
    if (type->origin != "built in") plugins.push_back(type->name + " of " + type->origin);
  }
  for (const std::string& refused : refused_plugins) plugins.push_back("refused: " + refused);
  std::string data;
  try {
    data = bundled("attention_4096.safetensors").parent_path().lexically_normal().string();
  } catch (const Error& error) {
    data = error.what();
  }
  const char* asked = std::getenv("RETICLE_NUM_THREADS");
  const int threads = Context().pool->threads();
  if (json) {
    const nlohmann::ordered_json report{{"version", RETICLE_VERSION},
                                        {"library", library()},
                                        {"compiler", kCompiler},
                                        {"processor", processor()},
                                        {"kernels", instruction_set()},
                                        {"bfloat16", bfloat16()},
                                        {"threads", threads},
                                        {"gpu", gpu()},
                                        {"maskers", Registry::global().list().size()},
                                        {"plugins", plugins},
                                        {"bundled data", data}};
    fmt::print("{}\n", report.dump(2));
    return refused_plugins.empty() ? 0 : 1;
  }
  fmt::print("version       {}\n", RETICLE_VERSION);
  fmt::print("library       {}\n", library());
  fmt::print("compiler      {}\n", kCompiler);
  fmt::print("processor     {}; kernels for {}\n", processor(), instruction_set());
  fmt::print("bfloat16      {}\n", bfloat16());
  fmt::print("threads       {}{}\n", threads, asked == nullptr ? "" : std::string(", RETICLE_NUM_THREADS=") + asked);
  fmt::print("GPU           {}\n", gpu());
  fmt::print("maskers       {}\n", Registry::global().list().size());
  if (plugins.empty()) plugins.emplace_back("none (RETICLE_PLUGIN_PATH names folders of them)");
  for (const std::string& plugin : plugins)
    fmt::print("{:<14}{}\n", &plugin == &plugins.front() ? "plugins" : "", plugin);
  fmt::print("bundled data  {}\n", data);
  return refused_plugins.empty() ? 0 : 1;
}

}  // namespace reticle::tools
