// The GPU's decoding kernel, run on the CPU: the same source, its threads and blocks taking turns.
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/cuda/decode_block.hpp>
#include <reticle/attention/cuda/list_plan.hpp>
#include <reticle/attention/cuda/plan_block.hpp>
#include <reticle/attention/executor.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>

#include "support/cuda/problem.hpp"
#include "support/cuda/threaded_block.hpp"

namespace reticle::cuda {
namespace {

/// `sharing`: how many heads the plan is to find that share lists; 0: any.
/// With `band`, which attends to what the mask does, without lists.
template <class T, int head_dim>
void compare_with_cpu(const Case& c, const Mask& mask, double tolerance, int sharing = 0,
                      const BandMask* band = nullptr) {
  const Problem<T> drawn(c, head_dim);
  const AttentionInputs& inputs = drawn.inputs;
  const AttentionResult expected = attention(inputs, mask, drawn.options());
  const auto [shared_by, csr] = plan_lists(mask, c.biased ? c.heads : c.kv_heads, false);
  EXPECT_TRUE(sharing == 0 || shared_by == sharing) << shared_by;
  const auto rows = static_cast<int>(c.batch * c.heads * c.rows);
  std::vector<T> output(drawn.output_size(), from_float<T>(std::nanf("")));
  std::vector<float> lse(drawn.lse_size(), 7),
      workspace(static_cast<std::size_t>(rows * c.parts * (head_dim + 2)), std::nanf(""));
  std::vector<int> arrived(static_cast<std::size_t>(rows), 0);
  auto problem = problem_of<DecodeProblem>(inputs, output.data(), lse.data(), c.soft_cap,
                                           drawn.sinks.empty() ? nullptr : drawn.sinks.data());
  problem.batch = static_cast<int>(c.batch);
  problem.sharing = shared_by;
  problem.bias = BiasView::of(inputs.attention_mask);
  problem.row_ptr = csr.row_ptr.data();
  problem.indices = csr.indices.data();
  problem.p = csr.p.empty() ? nullptr : csr.p.data();
  std::vector<std::int32_t> begins, counts;
  if (band != nullptr) {
    for (Index list = 0; list < c.batch * c.heads / shared_by * c.rows; ++list) {
      begins.push_back(band->begin(static_cast<int>(list % c.rows)));
      counts.push_back(band->count(static_cast<int>(list % c.rows)));
    }
    problem.row_ptr = nullptr;
    problem.indices = nullptr;
    problem.begins = begins.data();
    problem.counts = counts.data();
  }
  problem.parts = c.parts;
  problem.workspace = workspace.data();
  problem.arrived = arrived.data();
  const auto shared = std::make_unique<DecodeShared<head_dim>>();
  for (int list = 0; list < problem.lists(); ++list) {
    for (int part = 0; part < c.parts; ++part) {
      const auto run = [&]<int together, bool biased>() {
        run_block(kDecodeThreads, *shared, [&](const auto& block) {
          decode_part<T, head_dim, together, biased>(block, *shared, problem, list, part);
        });
      };
      if (c.biased) {
        run.template operator()<1, true>();
      } else {
        dispatch_together(shared_by, [&]<int together>() { run.template operator()<together, false>(); });
      }
    }
  }
  expect_equal(expected, output, lse, tolerance, 1e-4);
  EXPECT_EQ(arrived, std::vector<int>(arrived.size(), 0)) << "ready for the next launch";
}

TEST(CudaDecode, ComputesWhatTheCpuComputes) {
  for (const int parts : {1, 3, 8}) {
    for (const double density : {0.02, 0.3, 1.0}) {
      Case c;
      c.parts = parts;
      compare_with_cpu<float, 64>(c, random_mask(c, density, 3), 2e-5);
    }
  }
}

TEST(CudaThreads, DecodingWaitsForWhatItReads) {
  const ExecutedBy threads(Execution::threads);
  Case c;
  c.batch = 1;
  c.rows = 1;
  c.parts = 2;
  compare_with_cpu<float, 64>(c, random_mask(c, 0.3, 3), 2e-5);
  compare_with_cpu<BFloat16, 128>(c, Mask::full({c.batch, c.heads, c.rows, c.keys}), 0.02, 2);
}

TEST(CudaDecode, KeysThatFollowEachOtherNeedNoList) {
  for (const int parts : {1, 3}) {
    for (const bool biased : {false, true}) {
      Case c;
      c.parts = parts;
      c.biased = biased;
      const MaskShape shape{c.batch, c.heads, c.rows, c.keys};
      const auto queries = static_cast<int>(c.rows), keys = static_cast<int>(c.keys);
      const BandMask all{keys, 1, 1, std::numeric_limits<std::int32_t>::max(), queries, keys};
      compare_with_cpu<float, 64>(c, Mask::full(shape), 2e-5, 0, &all);
      const BandMask band{-2, 1, 1, 40, queries, keys};  // of the first two queries nothing is left
      const Mask window = Mask::intervals(shape.one_head(), [&](RowId row) {
        const auto query = static_cast<int>(row.query);
        return Interval{band.begin(query), band.begin(query) + band.count(query)};
      });
      compare_with_cpu<BFloat16, 128>(c, window, 0.02, 0, &band);
    }
  }
}

TEST(CudaDecode, AttentionMasksAddAndForbid) {
  for (const int parts : {1, 3}) {
    Case c;
    c.biased = true;
    c.parts = parts;
    compare_with_cpu<float, 64>(c, random_mask(c, 0.02, 3), 2e-5);
    c.weighted = c.sinks = true;
    c.soft_cap = 2;
    compare_with_cpu<BFloat16, 128>(c, random_mask(c, 0.4, 3), 0.03);
    compare_with_cpu<Half, 64>(c, Mask::full({c.batch, c.heads, c.rows, c.keys}), 0.004, 1);
  }
}

TEST(CudaDecode, EveryDtypeAndHeadSize) {
  Case c;
  c.parts = 2;
  const Mask mask = random_mask(c, 0.2, 5);
  compare_with_cpu<float, 128>(c, mask, 2e-5);
  compare_with_cpu<float, 256>(c, mask, 2e-5);
  compare_with_cpu<BFloat16, 64>(c, mask, 0.02);
  compare_with_cpu<BFloat16, 128>(c, mask, 0.02);
  compare_with_cpu<BFloat16, 256>(c, mask, 0.02);
  compare_with_cpu<Half, 64>(c, mask, 0.003);
  compare_with_cpu<Half, 128>(c, mask, 0.003);
}

TEST(CudaDecode, WeightsSinksAndSoftCap) {
  for (const int parts : {1, 4}) {
    Case c;
    c.parts = parts;
    c.weighted = c.sinks = true;
    c.soft_cap = 2;
    compare_with_cpu<float, 64>(c, random_mask(c, 0.1, 8), 2e-5);
  }
}

TEST(CudaDecode, HeadsThatAttendAlikeShareLists) {
  for (const int parts : {1, 3}) {
    for (const bool weighted : {false, true}) {
      Case c;
      c.heads = 8;
      c.parts = parts;
      c.weighted = c.sinks = weighted;
      const MaskShape shape{c.batch, c.heads, c.rows, c.keys};
      Case one_head = c;
      one_head.heads = 1;
      const Mask alike = broadcast_to(random_mask(one_head, 0.2, 10), shape);
      compare_with_cpu<float, 64>(c, alike, 2e-5, 4);
      compare_with_cpu<BFloat16, 256>(c, alike, 0.02, 4);
      // Alike by pairs of heads.
      Array<float> p = to_dense(random_mask(c, 0.2, 11));
      const auto of_head = static_cast<std::size_t>(c.rows * c.keys);
      for (std::size_t i = 0; i < p.size(); ++i) p[i] = p[i / (2 * of_head) * 2 * of_head + i % of_head];
      compare_with_cpu<float, 128>(c, Mask::dense(shape, p), 2e-5, 2);
      p.back() = p.back() > 0 ? 0.0f : 1.0f;
      compare_with_cpu<float, 128>(c, Mask::dense(shape, p), 2e-5, 1);
    }
  }
}

TEST(CudaDecode, RowsWithoutKeysGiveZeroAndMinusInfinity) {
  for (const int parts : {1, 4}) {
    Case c;
    c.parts = parts;
    compare_with_cpu<float, 64>(c, Mask::empty({c.batch, c.heads, c.rows, c.keys}), 0);
    compare_with_cpu<float, 64>(c, random_mask(c, 0.003, 9), 2e-5);  // fewer entries than parts
    c.sinks = true;
    compare_with_cpu<float, 64>(c, Mask::empty({c.batch, c.heads, c.rows, c.keys}), 0);
  }
}

}  // namespace
}  // namespace reticle::cuda
