// GPU kernels called from C++: each result is compared with the CPU's, then timed as a share of a GPU limit. The limit
// of kernels that move data is the bandwidth of a large copy, timed in the same run; that of kernels that multiply is
// --rate, the Tflop/s of a dense bf16 product, which needs a library that this program does not use.
//
//   bench_gpu [--rate TFLOPS] [--quick] [--json FILE] [--only TEXT] [--once]
//
// A time is the median of repeats of several launches between two events. Launches cycle through as many copies of the
// keys and values as exceed the L2 cache. A row that fails gives the reason, and the others go on; the exit status is
// then 1. For a profiler: --only runs the rows whose names contain a text, and --once launches everything once.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <cuda_runtime.h>
#include <exception>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/backward.hpp>
#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/cuda/mask.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/cuda/top_k.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/reshape.hpp>
#include <reticle/core/ops/select.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle {
namespace {

constexpr Index kHeads = 32, kKvHeads = 8, kHeadDim = 128;
constexpr std::size_t kL2Bytes = std::size_t{60} << 20;  // of Hopper GPUs

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw DeviceError(std::string(what) + ": " + cudaGetErrorString(status));
}

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "creating an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record() const { check(cudaEventRecord(event_, nullptr), "recording an event"); }
  double seconds_since(const Event& earlier) const {
    check(cudaEventSynchronize(event_), "waiting for an event");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, earlier.event_, event_), "reading an event");
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t event_{};
};

bool once = false;

/// Median seconds of one launch. `launch` receives the number of launches before.
double seconds(const std::function<void(int)>& launch, int launches = 20, int repeats = 9) {
  if (once) launches = repeats = 1;
  int count = 0;
  for (int i = 0; i < 3 && !once; ++i) launch(count++);
  std::vector<double> times;
  const Event begin, end;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    begin.record();
    for (int i = 0; i < launches; ++i) launch(count++);
    end.record();
    times.push_back(end.seconds_since(begin) / launches);
  }
  std::ranges::nth_element(times, times.begin() + repeats / 2);
  return times[static_cast<std::size_t>(repeats / 2)];
}

TensorView on_gpu(TensorView view, const void* data) {
  view.data = data;
  view.device = {Device::Kind::cuda, 0};
  return view;
}

Tensor drawn(DType dtype, Index heads, Index length, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(65537);  // drawing 32 million numbers takes longer than all measurements
  for (float& number : numbers) number = normal(random);
  Tensor tensor(DType::f32, {1, heads, length, kHeadDim});
  std::size_t at = 0;
  for (float& value : tensor.span<float>()) value = numbers[at++ % numbers.size()];
  return Tensor::copy(tensor, dtype);
}

std::span<const std::byte> bytes_of(const Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.view().data),
          static_cast<std::size_t>(tensor.view().elements() * size_of(tensor.view().dtype))};
}

/// bfloat16 tensors on the host, and copies of them on the GPU that together exceed the L2 cache.
class Problem {
 public:
  Problem(Index queries_length, Index keys_length, bool causal)
      : queries_(drawn(DType::bf16, kHeads, queries_length, 1)),
        keys_(drawn(DType::bf16, kKvHeads, keys_length, 2)),
        values_(drawn(DType::bf16, kKvHeads, keys_length, 3)) {
    host.queries = queries_.view();
    host.keys = keys_.view();
    host.values = values_.view();
    host.scaling = 1 / std::sqrt(static_cast<float>(kHeadDim));
    host.causal = causal;
    const std::size_t copies = 1 + kL2Bytes / (2 * bytes_of(keys_).size());
    device_queries_ = cuda::Buffer::copy_of(bytes_of(queries_), nullptr);
    for (std::size_t i = 0; i < copies; ++i) {
      buffers_.push_back(cuda::Buffer::copy_of(bytes_of(keys_), nullptr));
      buffers_.push_back(cuda::Buffer::copy_of(bytes_of(values_), nullptr));
      AttentionInputs inputs = host;
      inputs.queries = on_gpu(host.queries, device_queries_.as<std::byte>());
      inputs.keys = on_gpu(host.keys, buffers_[2 * i].as<std::byte>());
      inputs.values = on_gpu(host.values, buffers_[2 * i + 1].as<std::byte>());
      devices_.push_back(inputs);
    }
    output = cuda::Buffer(bytes_of(queries_).size(), nullptr);
    lse = cuda::Buffer(static_cast<std::size_t>(kHeads * queries_length) * sizeof(float), nullptr);
    poison();
  }

  const AttentionInputs& device(int launch = 0) const {
    return devices_[static_cast<std::size_t>(launch) % devices_.size()];
  }
  /// Fills the results with NaN, so that outputs which a kernel does not write are detected.
  void poison() const {
    check(cudaMemset(output.as<void>(), 0xff, output.bytes()), "clearing the output");
    check(cudaMemset(lse.as<void>(), 0xff, lse.bytes()), "clearing the LSE");
  }
  /// Relative error of the last `rows` queries' output against the CPU's.
  double error(const Mask& mask, Index rows) const {
    const Index length = host.queries_length(), first = length - std::min(rows, length);
    const AttentionInputs part = host.rows(first, length);
    const AttentionResult expected = attention(part, slice(mask, Dim::queries, first, length));
    Tensor found(DType::bf16, {1, kHeads, length, kHeadDim});
    output.copy_to(found.data(), nullptr);
    const auto wanted = expected.output.span<BFloat16>();
    const auto all = found.span<BFloat16>();
    double difference = 0, size = 0;
    for (Index head = 0; head < kHeads; ++head) {
      for (Index i = 0; i < (length - first) * kHeadDim; ++i) {
        const double a = to_float(wanted[static_cast<std::size_t>(head * (length - first) * kHeadDim + i)]);
        const double b = to_float(all[static_cast<std::size_t>((head * length + first) * kHeadDim + i)]);
        difference += (a - b) * (a - b);
        size += a * a;
      }
    }
    return std::sqrt(difference / size);
  }

  AttentionInputs host;
  cuda::Buffer output, lse;

 private:
  Tensor queries_, keys_, values_;
  cuda::Buffer device_queries_;
  std::vector<cuda::Buffer> buffers_;
  std::vector<AttentionInputs> devices_;
};

void require_small(double error, double bound) {
  if (!(error < bound))
    throw Error("wrong: relative error " + std::to_string(error) + "; expected below " + std::to_string(bound));
}

class Report {
 public:
  Report(double copy, double rate, std::string only, std::string file)
      : copy_(copy), rate_(rate), only_(std::move(only)), file_(std::move(file)) {}

  /// Runs `measure`, which returns (seconds, bytes moved or flops done); an exception is reported as the row's failure.
  void row(const std::string& name, const std::function<std::pair<double, double>()>& measure, bool moves_data) {
    if (name.find(only_) == std::string::npos) return;
    try {
      const auto [time, amount] = measure();
      const double share = amount / time / (moves_data ? copy_ : rate_);
      const char* const limit = moves_data ? "copy bandwidth" : "a bf16 product";
      std::printf("%-52s %10.1f us  %5.1f %% of %s\n", name.c_str(), 1e6 * time, 100 * share, limit);
      rows_.push_back({{"name", name}, {"seconds", time}, {"share", share}, {"of", limit}});
    } catch (const std::exception& reason) {
      std::printf("%-52s FAILED: %s\n", name.c_str(), reason.what());
      rows_.push_back({{"name", name}, {"failed", reason.what()}});
      failed_ = true;
      cudaGetLastError();
    }
    std::fflush(stdout);
    write();
  }
  bool failed() const { return failed_; }
  nlohmann::json json() const { return {{"copy", copy_}, {"rate", rate_}, {"rows", rows_}}; }

 private:
  /// Called after every row, so that results survive a crash in a later one.
  void write() const {
    if (file_.empty()) return;
    std::FILE* const to = std::fopen(file_.c_str(), "w");
    if (to == nullptr) throw Error(file_ + ": cannot be written");
    const std::string text = json().dump(1);
    std::fwrite(text.data(), 1, text.size(), to);
    std::fclose(to);
  }

  double copy_, rate_;
  std::string only_, file_;
  bool failed_ = false;
  nlohmann::json rows_ = nlohmann::json::array();
};

double copy_bandwidth() {
  const std::size_t bytes = std::size_t{1} << 30;
  const cuda::Buffer from = cuda::Buffer::zeros(bytes, nullptr), to(bytes, nullptr);
  const auto copy = [&](int) {
    check(cudaMemcpyAsync(to.as<void>(), from.as<void>(), bytes, cudaMemcpyDeviceToDevice, nullptr), "copying");
  };
  return 2.0 * static_cast<double>(bytes) / seconds(copy, 4);
}

/// For each KV head, `count` keys in runs of `run`, shared by its query heads.
Mask chosen_by_kv_head(Index keys, Index count, Index run) {
  return Mask::from_selections({1, kHeads, 1, keys}, [&](RowId row, Selection& selection) {
    std::mt19937 random(static_cast<unsigned>(row.head / (kHeads / kKvHeads)));
    std::vector<std::int32_t> starts(static_cast<std::size_t>(keys / run));
    std::iota(starts.begin(), starts.end(), 0);
    std::ranges::shuffle(starts, random);
    starts.resize(static_cast<std::size_t>(count / run));
    std::ranges::sort(starts);
    for (const std::int32_t start : starts) {
      for (Index i = 0; i < run; ++i) selection.indices.push_back(static_cast<std::int32_t>(start * run + i));
    }
  });
}

/// Random blocks of 128 x 128, and the diagonal blocks.
Mask random_blocks(Index length, double density) {
  constexpr Index kBlock = 128;
  const Index blocks = length / kBlock;
  std::mt19937 random(5);
  std::vector<bool> kept(static_cast<std::size_t>(blocks * blocks));
  for (std::size_t i = 0; i < kept.size(); ++i)
    kept[i] = static_cast<double>(random()) < density * 4294967296.0 || i % static_cast<std::size_t>(blocks + 1) == 0;
  MaskShape shape{1, kHeads, length, length};
  shape.shared_heads = true;
  return Mask::from_runs(shape, [&](RowId row, const auto& emit) {
    for (Index block = 0; block <= row.query / kBlock; ++block) {
      if (kept[static_cast<std::size_t>(row.query / kBlock * blocks + block)])
        emit(Run{static_cast<std::int32_t>(block * kBlock), static_cast<std::int32_t>((block + 1) * kBlock), 1.0f});
    }
  });
}

std::pair<double, double> attend(Index queries, Index keys, const Mask& mask, double amount) {
  const Problem problem(queries, keys, queries > 1);
  const cuda::DevicePlan plan(problem.device(), mask, nullptr);
  const auto run = [&](int launch) {
    plan.run(problem.device(launch), problem.output.as<void>(), problem.lse.as<float>(), nullptr);
  };
  run(0);
  if (!once) require_small(problem.error(mask, 64), 1e-2);
  return {seconds(run, queries > 1 ? 3 : 20), amount};
}

std::pair<double, double> differentiate(Index length) {
  for (const Index checked : {Index{384}, length}) {
    if (once && checked != length) continue;
    const Problem problem(checked, checked, true);
    const Mask mask = Mask::full({1, kHeads, checked, checked});
    const Tensor d_output = drawn(DType::bf16, kHeads, checked, 9);
    const cuda::Buffer upstream = cuda::Buffer::copy_of(bytes_of(d_output), nullptr);
    const auto floats = [](Index heads, Index rows) {
      return cuda::Buffer(static_cast<std::size_t>(heads * rows * kHeadDim) * sizeof(float), nullptr);
    };
    const cuda::Buffer d_queries = floats(kHeads, checked), d_keys = floats(kKvHeads, checked),
                       d_values = floats(kKvHeads, checked);
    const AttentionInputs& inputs = problem.device();
    cuda::DevicePlan(inputs, mask, nullptr).run(inputs, problem.output.as<void>(), problem.lse.as<float>(), nullptr);
    const cuda::BackwardPlan plan(inputs, mask, nullptr);
    const TensorView output = on_gpu(problem.host.queries, problem.output.as<void>()),
                     given = on_gpu(d_output.view(), upstream.as<void>());
    const auto run = [&](int) {
      plan.run(inputs, output, problem.lse.as<float>(), given, d_queries.as<float>(), d_keys.as<float>(),
               d_values.as<float>(), nullptr);
    };
    if (checked == length)  // five products per visible pair, two of which recompute the forward pass
      return {seconds(run, 2),
              10.0 * kHeadDim * kHeads * static_cast<double>(length) * static_cast<double>(length) / 2};
    run(0);
    const AttentionResult result = attention(problem.host, mask);
    const AttentionGradients expected =
        attention_backward(problem.host, mask, result.output, result.lse, d_output.view());
    const auto compare = [](const cuda::Buffer& found, const Tensor& wanted) {
      std::vector<float> values(static_cast<std::size_t>(wanted.view().elements()));
      found.copy_to(values.data(), nullptr);
      double difference = 0, size = 0;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const double apart = values[i] - wanted.span<float>()[i];
        difference += apart * apart;
        size += static_cast<double>(wanted.span<float>()[i]) * wanted.span<float>()[i];
      }
      require_small(std::sqrt(difference / size), 2e-2);
    };
    compare(d_queries, expected.queries);
    compare(d_keys, expected.keys);
    compare(d_values, expected.values);
  }
  return {};
}

std::pair<double, double> choose_and_attend(Index keys, Index heavy) {
  const auto sparse = SparseAttention::from_json(
      R"({"maskers": [{"type": "sink", "sink_size": 128}, {"type": "local", "window_size": 128},
                      {"type": "oracle_top_k", "heavy_size": )" +
      std::to_string(heavy) + "}]}");
  const Problem problem(1, keys, true);
  SequenceState state;
  const Mask mask = sparse.mask(problem.host, state);
  const cuda::SparseDecoder decoder(kHeads, keys, nullptr);
  const auto rules = sparse.rules(Stage::generation, 0, keys);
  const auto run = [&](int launch) {
    decoder.run(problem.device(launch), rules, problem.output.as<void>(), problem.lse.as<float>(), nullptr);
  };
  run(0);
  require_small(problem.error(mask, 1), 2e-2);
  const double chosen = static_cast<double>(heavy + 256);
  return {seconds(run),
          kKvHeads * kHeadDim * 2 * (static_cast<double>(keys) + 2 * chosen) + kHeads * static_cast<double>(keys) * 8};
}

std::pair<double, double> unite(Index keys) {
  std::vector<Mask> there;
  std::vector<Mask> host;
  for (const unsigned seed : {1u, 2u}) {
    host.push_back(Mask::from_selections({1, kHeads, 1024, keys}, [&](RowId row, Selection& selection) {
      std::mt19937 random(seed + 7 * static_cast<unsigned>(row.head * 1024 + row.query));
      for (auto key = static_cast<std::int32_t>(random() % 64); key < keys;
           key += 1 + static_cast<std::int32_t>(random() % 99))
        selection.indices.push_back(key);
    }));
    there.push_back(host.back().to({Device::Kind::cuda, 0}));
  }
  const auto run = [&](int) { return merge(there[0], there[1]); };
  const Mask expected = merge(host[0], host[1]);
  if (run(0).to(Device()) != expected) throw Error("wrong: the union is not the CPU's");
  return {seconds(run, 5), 4.0 * static_cast<double>(host[0].nnz() + host[1].nnz() + expected.nnz())};
}

std::pair<double, double> select(Index rows, Index count, Index k) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> scores(static_cast<std::size_t>(rows * count));
  for (float& score : scores) score = normal(random);
  const cuda::Buffer device = cuda::Buffer::copy_of(std::span<const float>(scores), nullptr);
  const auto room = [](Index numbers) {
    return cuda::Buffer(static_cast<std::size_t>(numbers) * sizeof(std::int32_t), nullptr);
  };
  const cuda::Buffer indices = room(rows * k), counts = room(rows);
  const auto run = [&](int) {
    cuda::top_k(device.as<float>(), rows, count, k, indices.as<std::int32_t>(), counts.as<std::int32_t>(), nullptr);
  };
  run(0);
  std::vector<std::int32_t> found(static_cast<std::size_t>(rows * k)), expected;
  indices.copy_to(found.data(), nullptr);
  for (Index row = 0; row < rows; ++row) {
    top_k(
        std::span<const float>(scores).subspan(static_cast<std::size_t>(row * count), static_cast<std::size_t>(count)),
        k, expected);
    if (!std::equal(expected.begin(), expected.end(), found.begin() + row * k))
      throw Error("wrong: row " + std::to_string(row) + " selects others than the CPU");
  }
  return {seconds(run), 4.0 * static_cast<double>(rows * count)};
}

int run(int argc, char** argv) {
  bool quick = false;
  double rate = 800;
  std::string file, only;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--quick") {
      quick = true;
    } else if (argument == "--rate" && i + 1 < argc) {
      rate = std::stod(argv[++i]);
    } else if (argument == "--once") {
      once = true;
    } else if (argument == "--json" && i + 1 < argc) {
      file = argv[++i];
    } else if (argument == "--only" && i + 1 < argc) {
      only = argv[++i];
    } else {
      std::fprintf(stderr,
                   "%s: unknown argument; expected --rate TFLOPS, --quick, --json FILE, --only TEXT or --once\n",
                   argument.c_str());
      return 2;
    }
  }
  if (cuda::device_count() == 0) {
    std::printf("no device: %s\n", cuda::why_unavailable());
    return 3;
  }
  Report report(copy_bandwidth(), 1e12 * rate, only, file);
  std::printf("copies %.0f GB/s; a bf16 product is taken to do %.0f Tflop/s\n",
              report.json()["copy"].get<double>() / 1e9, rate);
  const auto moved = [](Index tokens) { return 2.0 * kKvHeads * static_cast<double>(tokens) * kHeadDim * 2; };
  const auto pairs = [](Index length) { return static_cast<double>(length) * static_cast<double>(length) / 2; };
  const Index keys = 32768, length = quick ? 4096 : 16384;
  const auto thousands = [](Index number) { return std::to_string(number / 1024) + "k"; };
  report.row(
      "decode, 32k keys, dense",
      [&] {
        return attend(1, keys, Mask::full({1, kHeads, 1, keys}), moved(keys));
      },
      true);
  for (const Index run_length : {Index{16}, Index{1}}) {
    report.row(
        "decode, 32k keys, 2048 of them, runs of " + std::to_string(run_length),
        [&] { return attend(1, keys, chosen_by_kv_head(keys, 2048, run_length), moved(2048)); }, true);
  }
  report.row(
      "prefill, " + thousands(length) + ", causal",
      [&] {
        return attend(length, length, Mask::full({1, kHeads, length, length}), 4.0 * kHeadDim * kHeads * pairs(length));
      },
      false);
  report.row(
      "prefill, " + thousands(length) + ", 10 % of blocks of 128",
      [&] {
        const Mask blocks = random_blocks(length, 0.1);
        return attend(length, length, blocks, 4.0 * kHeadDim * static_cast<double>(causal_nnz(blocks)));
      },
      false);
  report.row(
      "gradients, " + thousands(length) + ", causal", [&] { return differentiate(length); }, false);
  report.row(
      "choice and attention, 32k keys, 655 of them", [&] { return choose_and_attend(keys, 655); }, true);
  report.row(
      "union of masks, 32 x 1024 rows of 32k keys, 2 %", [&] { return unite(keys); }, true);
  report.row(
      "top-k, 128 rows of 128k, k 2048", [&] { return select(128, 131072, 2048); }, true);
  return report.failed() ? 1 : 0;
}

}  // namespace
}  // namespace reticle

int main(int argc, char** argv) {
  try {
    return reticle::run(argc, argv);
  } catch (const std::exception& reason) {
    std::fprintf(stderr, "bench_gpu: %s\n", reason.what());
    return 1;
  }
}
