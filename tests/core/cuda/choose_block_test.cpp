// Chains of maskers as the GPU takes rows through them - scores, rules, attention - run on the CPU: the same masks, p
// included, and the same attention as the pipeline's.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/cuda/choose_block.hpp>
#include <reticle/core/cuda/hash_block.hpp>
#include <reticle/core/cuda/lsh_block.hpp>
#include <reticle/core/cuda/page_block.hpp>
#include <reticle/core/cuda/quantiser_block.hpp>
#include <reticle/core/cuda/reachable_block.hpp>
#include <reticle/core/cuda/score_block.hpp>
#include <reticle/core/ops/product_quantiser.hpp>
#include <reticle/core/registry.hpp>

#include "support/cuda/hash_weights.hpp"
#include "support/cuda/problem.hpp"
#include "support/cuda/threaded_block.hpp"
#include "support/files.hpp"

namespace reticle::cuda {
namespace {

constexpr char kSink[] = R"({"type": "sink", "sink_size": 4})";
constexpr char kLocal[] = R"({"type": "local", "window_size": 16})";
constexpr char kDilated[] = R"({"type": "local", "window_size": 9, "dilation": 7})";
constexpr char kTopK[] = R"({"type": "oracle_top_k", "heavy_size": 50})";
constexpr char kTopP[] = R"({"type": "oracle_top_p", "top_p": 0.4})";
constexpr char kSample[] = R"({"type": "random_sampling", "sampling_rate": 0.1})";
constexpr char kPages[] = R"({"type": "quest_top_k", "heavy_size": 100, "page_size": 16, "min_pages": 2})";
constexpr char kAdaptive[] =
    R"({"type": "adaptive_sampling", "base_rate_sampling": 0.1, "epsilon": 0.2, "init_offset": 4, "local_offset": 9})";
constexpr char kAdaptiveFew[] = R"({"type": "adaptive_sampling", "base_rate_sampling": 5, "epsilon": 0.1})";
constexpr char kPq[] = R"({"type": "pq_cache", "heavy_size": 60, "kmeans_iter": 1})";
constexpr char kCollide[] = R"({"type": "magic_pig", "lsh_l": 30})";
constexpr char kSampleMost[] = R"({"type": "random_sampling", "sampling_rate": 0.8})";

/// Lists of what a chain chooses, as device memory would hold them.
struct Lists {
  std::vector<std::int32_t> indices, counts;
  std::vector<float> p;
};

/// A byte for each key of each KV head; none without an attention mask.
std::vector<std::uint8_t> reachable_by_block(const AttentionInputs& inputs) {
  if (!inputs.attention_mask) return {};
  const Index matrices = inputs.batch() * inputs.kv_heads();
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(matrices * inputs.keys_length()), 7);
  const ReachableProblem problem = ReachableProblem::of(inputs, bytes.data());
  for (int matrix = 0; matrix < static_cast<int>(matrices); ++matrix) {
    for (int part = 0; part * kReachableThreads < problem.key_count; ++part)
      mark_reachable(HostBlock(kReachableThreads), problem, matrix, part);
  }
  return bytes;
}

/// Of all keys.
template <class T>
void score_collisions_of(const AttentionInputs& inputs, const LshRecipe& recipe, std::vector<float>& scores) {
  const auto matrices = static_cast<int>(inputs.batch() * inputs.kv_heads()),
             rows = static_cast<int>(inputs.batch() * inputs.heads() * inputs.queries_length());
  LshProblem problem = lsh_problem(inputs, recipe);
  const std::vector<std::uint8_t> reachable = reachable_by_block(inputs);
  problem.reachable = reachable.empty() ? nullptr : reachable.data();
  const std::vector<float> projections = projections_by_element(recipe, inputs.head_dim(), inputs.layer);
  std::vector<float> means(static_cast<std::size_t>(matrices * problem.head_dim));
  std::vector<std::uint32_t> largest(static_cast<std::size_t>(inputs.batch()));
  problem.capacity = problem.key_count + 3;
  std::vector<std::uint64_t> key_codes(static_cast<std::size_t>(matrices * problem.capacity * problem.words()), 0xDEAD),
      codes(static_cast<std::size_t>(rows * problem.words()), 0xDEAD);
  problem.projections = projections.data();
  problem.means = means.data();
  problem.largest = largest.data();
  problem.key_codes = key_codes.data();
  problem.codes = codes.data();
  problem.scores = scores.data();
  const int first = std::min(static_cast<int>(recipe.mean_skips_first), problem.key_count),
            end = std::max(first, problem.key_count - static_cast<int>(recipe.mean_skips_last)),
            panels = (problem.signs() + kLshThreads - 1) / kLshThreads;
  const auto shared = std::make_unique<LshShared>();
  char none[1];
  for (int matrix = 0; matrix < matrices; ++matrix) {
    double sums[kLshThreads];
    for (int part = 0; part * kMeanElements < problem.head_dim && recipe.center && first < end; ++part)
      run_block(kLshThreads, sums,
                [&](const auto& block) { average_keys<T>(block, sums, problem, matrix, part, first, end); });
  }
  for (int matrix = 0; matrix < matrices; ++matrix) {
    for (int part = 0; part * kLshThreads < problem.key_count; ++part)
      run_block(kLshThreads, none, [&](const auto& block) { keep_largest_norm<T>(block, problem, matrix, 0, part); });
  }
  for (int panel = 0; panel < panels; ++panel) {
    for (int matrix = 0; matrix < matrices; ++matrix) {
      for (int begin = 0; begin < problem.key_count; begin += kLshVectors)
        run_block(kLshThreads, *shared, [&](const auto& block) {
          code_by_signs<T, true>(block, *shared, problem, matrix, begin, problem.key_count, panel);
        });
    }
    for (int begin = 0; begin < rows; begin += kLshVectors)
      run_block(kLshThreads, *shared,
                [&](const auto& block) { code_by_signs<T, false>(block, *shared, problem, 0, begin, rows, panel); });
  }
  float query[kMaxLshDim];
  for (int row = 0; row < rows; ++row) {
    for (int part = 0; part * kLshThreads < problem.key_count; ++part)
      run_block(kLshThreads, query, [&](const auto& block) { score_collisions<T>(block, query, problem, row, part); });
  }
}

template <class T, int head_dim>
Lists choose(const AttentionInputs& inputs, const std::vector<Rule>& rules) {
  const Index keys = inputs.keys_length(), rows = inputs.batch() * inputs.heads() * inputs.queries_length();
  const auto size = static_cast<std::size_t>(rows * keys);
  std::vector<float> scores(size, std::nanf("")), p(size, -1.0f);
  std::vector<std::int32_t> scratch(size, -7);
  Lists lists{std::vector<std::int32_t>(size, -7), std::vector<std::int32_t>(static_cast<std::size_t>(rows), -7),
              std::vector<float>(size, -7.0f)};
  const ScoreProblem score{ScoredInputs::of(inputs), scores.data()};
  const std::vector<std::uint8_t> reachable = reachable_by_block(inputs);
  ChooseProblem problem;
  const auto pages = std::ranges::find(rules, Rule::Kind::pages, &Rule::kind);
  std::vector<float> bounds, page_scores;
  if (pages != rules.end()) {
    const auto page_size = static_cast<int>(pages->page_size);
    PageScoreProblem paged;
    paged.pages.keys = inputs.keys.data;
    paged.pages.key_strides = strides_of(inputs.keys);
    paged.pages.kv_heads = static_cast<int>(inputs.kv_heads());
    paged.pages.key_count = static_cast<int>(keys);
    paged.pages.head_dim = head_dim;
    paged.pages.page_size = page_size;
    paged.page_count = (static_cast<int>(keys) + page_size - 1) / page_size;
    paged.pages.capacity = paged.page_count + 3;
    bounds.resize(static_cast<std::size_t>(inputs.batch() * inputs.kv_heads() * paged.pages.capacity * 2 * head_dim));
    paged.pages.bounds = bounds.data();
    paged.pages.reachable = reachable.empty() ? nullptr : reachable.data();
    paged.queries = inputs.queries.data;
    paged.query_strides = strides_of(inputs.queries);
    paged.heads = static_cast<int>(inputs.heads());
    paged.rows = static_cast<int>(inputs.queries_length());
    page_scores.resize(static_cast<std::size_t>(rows * paged.page_count));
    paged.scores = page_scores.data();
    for (int batch = 0; batch < static_cast<int>(inputs.batch()); ++batch) {
      for (int kv_head = 0; kv_head < paged.pages.kv_heads; ++kv_head) {
        for (int page = 0; page < paged.page_count; ++page)
          bound_page<T>(HostBlock(kPageThreads), paged.pages, batch, kv_head, page);
      }
    }
    float query[kMaxHeadDim];
    for (int row = 0; row < static_cast<int>(rows); ++row) {
      for (int part = 0; part * kPagesPerBlock < paged.page_count; ++part)
        run_block(kPageThreads, query, [&](const auto& block) { score_pages<T>(block, query, paged, row, part); });
    }
    problem.page_scores = page_scores.data();
    problem.page_count = paged.page_count;
  }
  const auto hashed = std::ranges::find(rules, Rule::Kind::hashed, &Rule::kind);
  std::vector<float> code_scores(size, std::nanf(""));
  if (hashed != rules.end()) {
    const Index words = (hashed->hash->query.bits() + 63) / 64, capacity = keys + 5;
    std::vector<std::uint64_t> codes[2];
    const auto code = [&](int side, const HashMlp& mlp, const TensorView& vectors, Index room) {
      codes[side].assign(static_cast<std::size_t>(inputs.batch() * inputs.heads() * room * words), 0xDEAD);
      HashProblem coding;
      coding.vectors = vectors.data;
      coding.strides = strides_of(vectors);
      coding.heads = static_cast<int>(inputs.heads());
      coding.heads_of_vectors = static_cast<int>(vectors.size(1));
      coding.end = static_cast<int>(vectors.size(2));
      coding.activation = mlp.activation();
      coding.codes = codes[side].data();
      coding.capacity = room;
      std::vector<std::vector<float>> transposed;
      for (const HashMlp::Linear& map : mlp.linear()) {
        const std::vector<float>& weights = transposed.emplace_back(weights_by_input(map, inputs.heads()));
        coding.layers[coding.layer_count++] = {static_cast<int>(map.in), static_cast<int>(map.out), weights.data(),
                                               map.bias.data()};
      }
      const auto shared = std::make_unique<HashShared>();
      for (int number = 0; number < static_cast<int>(inputs.batch() * inputs.heads()); ++number) {
        for (int first = 0; first < coding.end; first += kHashVectors)
          run_block(kHashThreads, *shared,
                    [&](const auto& block) { code_vectors<T>(block, *shared, coding, number, first); });
      }
    };
    code(0, hashed->hash->query, inputs.queries, inputs.queries_length());
    code(1, hashed->hash->key, inputs.keys, capacity);
    HashScoreProblem scored;
    scored.queries = codes[0].data();
    scored.keys = codes[1].data();
    scored.capacity = capacity;
    scored.rows = static_cast<int>(inputs.queries_length());
    scored.key_count = static_cast<int>(keys);
    scored.bits = static_cast<int>(hashed->hash->query.bits());
    scored.causal = inputs.causal;
    scored.scores = code_scores.data();
    for (int row = 0; row < static_cast<int>(rows); ++row) {
      for (int part = 0; part * kHashThreads < scored.key_count; ++part)
        score_codes(HostBlock(kHashThreads), scored, row, part);
    }
    problem.code_scores = code_scores.data();
  }
  const auto quantised = std::ranges::find(rules, Rule::Kind::quantised, &Rule::kind);
  PackedCodebooks packed;
  std::vector<std::uint16_t> codes;
  if (quantised != rules.end()) {
    const PqRecipe& recipe = *quantised->quantiser;
    const Index matrices = inputs.batch() * inputs.kv_heads(), capacity = keys + 3;
    codes.assign(static_cast<std::size_t>(matrices * capacity * recipe.parts), 0xFFFF);
    Codebooks books;
    books.parts = static_cast<int>(recipe.parts);
    books.head_dim = head_dim;
    books.count = 0;
    for (Index head = 0; head < matrices && keys > recipe.init_offset; ++head) {
      const Index batch = head / inputs.kv_heads(), kv_head = head % inputs.kv_heads();
      const ProductQuantiser quantiser = recipe.train(head_matrix(inputs.keys, batch, kv_head), inputs.layer, head,
                                                      ReachableKeys(inputs, batch, kv_head));
      books.count = static_cast<int>(quantiser.centroids());
      packed.add(quantiser);
    }
    books.centroids = packed.centroids.data();
    books.lifts = packed.lifts.data();
    books.radii = packed.radii.data();
    const EncodeProblem encoding = encode_problem(inputs, books, codes.data(), capacity);
    const int steps = (static_cast<int>(keys) * books.parts + kQuantiserThreads - 1) / kQuantiserThreads;
    for (int head = 0; head < static_cast<int>(matrices) && books.count > 0; ++head) {
      for (int step = 0; step < steps; ++step) encode_keys<T>(HostBlock(kQuantiserThreads), encoding, head, 0, step);
    }
    const TableScoreProblem scored = table_score_problem(inputs, encoding, recipe.init_offset, code_scores.data());
    float table[kMaxTableEntries];
    for (int row = 0; row < static_cast<int>(rows); ++row) {
      for (int part = 0; part * kQuantisedKeys < scored.key_count; ++part)
        run_block(kQuantiserThreads, table,
                  [&](const auto& block) { score_by_table<T>(block, table, scored, row, part); });
    }
    problem.code_scores = code_scores.data();
  }
  const auto colliding = std::ranges::find(rules, Rule::Kind::colliding, &Rule::kind);
  if (colliding != rules.end()) {
    score_collisions_of<T>(inputs, *colliding->lsh, code_scores);
    problem.code_scores = code_scores.data();
  }
  problem.scores = scores.data();
  problem.heads = score.heads;
  problem.rows = score.rows;
  problem.key_count = score.key_count;
  problem.causal = inputs.causal;
  problem.bias = BiasView::of(inputs.attention_mask);
  problem.layer = inputs.layer;
  std::ranges::copy(rules, problem.rules);
  problem.rule_count = static_cast<int>(rules.size());
  problem.p = p.data();
  problem.indices = lists.indices.data();
  problem.counts = lists.counts.data();
  problem.list_p = lists.p.data();
  problem.scratch = scratch.data();
  const auto shared = std::make_unique<ChooseShared>();
  dispatch_together(heads_taken_together(inputs.group()), [&]<int together>() {
    for (int row = 0; row < static_cast<int>(rows) / together; ++row) {
      for (int part = 0; part * kScoreKeys < score.key_count; ++part)
        score_part<T, head_dim, together>(HostBlock(kScoreThreads), score, row, part);
    }
  });
  for (int row = 0; row < static_cast<int>(rows); ++row)
    run_block(kTopKThreads, *shared, [&](const auto& block) { choose_row(block, *shared, problem, row); });
  return lists;
}

template <class T, int head_dim>
void compare_with_pipeline(const Case& c, const std::string& maskers, double tolerance) {
  SCOPED_TRACE(maskers);
  const Problem<T> drawn(c, head_dim);
  AttentionInputs inputs = drawn.inputs;
  inputs.causal = true;
  inputs.layer = 3;
  const auto sparse = SparseAttention::from_json(R"({"causal": true, "seed": 5, "maskers": [)" + maskers + "]}");
  SequenceState state;
  const SparseAttentionResult expected = sparse.run(inputs, state);
  const Lists lists = choose<T, head_dim>(inputs, sparse.rules(Stage::prefill, inputs.layer, c.keys));

  std::vector<Run> runs;
  for (Index row = 0; row < expected.mask.shape().rows(); ++row) {
    runs.clear();
    expected.mask.row(expected.mask.shape().row_of_logical(row), runs);
    std::vector<std::pair<std::int32_t, float>> wanted, found;
    for (const Run& run : runs) {
      for (std::int32_t key = run.begin; key < run.end; ++key) wanted.emplace_back(key, run.p);
    }
    for (std::int32_t i = 0; i < lists.counts[static_cast<std::size_t>(row)]; ++i) {
      const auto at = static_cast<std::size_t>(row * c.keys + i);
      found.emplace_back(lists.indices[at], lists.p[at]);
    }
    ASSERT_EQ(found, wanted) << "row " << row;
  }

  std::vector<T> output(drawn.output_size());
  std::vector<float> lse(drawn.lse_size());
  auto decode = problem_of<DecodeProblem>(inputs, output.data(), lse.data(), 0, nullptr);
  decode.batch = static_cast<int>(c.batch);
  decode.indices = lists.indices.data();
  decode.counts = lists.counts.data();
  decode.p = lists.p.data();
  decode.list_size = c.keys;
  const HostBlock attending(kDecodeThreads);
  decode.bias = BiasView::of(inputs.attention_mask);
  const auto shared = std::make_unique<DecodeShared<head_dim>>();
  for (int row = 0; row < static_cast<int>(lists.counts.size()); ++row) {
    c.biased ? decode_part<T, head_dim, 1, true>(attending, *shared, decode, row, 0)
             : decode_part<T, head_dim, 1, false>(attending, *shared, decode, row, 0);
  }
  expect_equal(expected.attention, output, lse, tolerance, 1e-4);
}

std::string chain(std::initializer_list<const char*> maskers) {
  std::string text;
  for (const char* masker : maskers) text += (text.empty() ? "" : ", ") + std::string(masker);
  return text;
}

TEST(CudaChoose, ChoosesWhatThePipelineChooses) {
  Case c;
  for (const Index rows : {1, 3}) {
    c.rows = rows;
    c.keys = 1500;
    for (const std::string& maskers :
         {chain({kSink}), chain({kSink, kLocal}), chain({kDilated, kTopK}), chain({kTopK}),
          chain({kSink, kLocal, kTopK}), chain({kTopP, kLocal}), chain({kSink, kTopK, kTopP}), chain({kSample}),
          chain({kSampleMost}), chain({kLocal, kSampleMost}), chain({kSink, kLocal, kTopK, kAdaptive}),
          chain({kAdaptiveFew}), chain({kTopK, kAdaptive}), chain({kPages}), chain({kSink, kPages, kTopK, kSample}),
          chain({kSink, kLocal, kTopK, kSample})}) {
      compare_with_pipeline<float, 64>(c, maskers, 1e-4);
    }
    compare_with_pipeline<float, 128>(c, chain({kSink, kTopP, kSample}), 1e-4);
    compare_with_pipeline<BFloat16, 64>(c, chain({kSink, kLocal, kTopK, kSample}), 0.03);
    compare_with_pipeline<Half, 64>(c, chain({kLocal, kPages}), 0.004);
  }
}

TEST(CudaThreads, ChoosingWaitsForWhatItReads) {
  const ExecutedBy threads(Execution::threads);
  const reticle::testing::TemporaryFolder folder;
  Case c;
  c.batch = c.kv_heads = 1;
  c.heads = 2;
  c.rows = 1;
  c.keys = 1500;
  const std::string hashes = hashing(folder / "w", 3, c.heads, 40, 70, "relu");
  for (const std::string& maskers : {chain({kSink, kLocal, kTopK, kAdaptive}), chain({kTopP, kPages, kSampleMost}),
                                     chain({hashes.c_str(), kTopK}), chain({kPq}), chain({kSink, kCollide})})
    compare_with_pipeline<float, 64>(c, maskers, 1e-4);
}

TEST(CudaChoose, EveryMaskerThatHasARuleChoosesByItWhatItSelects) {
  Case c;
  c.rows = 1;
  c.keys = 1500;
  int with_rules = 0;
  for (const MaskerType* type : Registry::global().list()) {
    const std::string masker = R"({"type": ")" + type->name + "\"}";
    try {
      SparseAttention::from_json(R"({"maskers": [)" + masker + "]}").rules(Stage::prefill, 0, c.keys);
    } catch (const Error&) {  // no rule, or a field without a default
      continue;
    }
    ++with_rules;
    c.biased = false;
    compare_with_pipeline<float, 64>(c, masker, 1e-4);
    c.biased = true;
    compare_with_pipeline<float, 64>(c, masker, 1e-4);
  }
  EXPECT_GE(with_rules, 14);
}

TEST(CudaChoose, AttentionMasksAddAndForbid) {
  const reticle::testing::TemporaryFolder folder;
  Case c;
  c.biased = true;
  c.keys = 600;
  const std::string hashes = hashing(folder / "w", 3, c.heads, 40, 70, "relu");
  for (const Index rows : {1, 3}) {
    c.rows = rows;
    for (const std::string& maskers :
         {chain({kSink, kLocal, kTopK, kAdaptive}), chain({kTopP, kPages, kSampleMost}),
          chain({hashes.c_str(), kSample}), chain({kSink, kPq}), chain({kSink, kCollide, kTopK})})
      compare_with_pipeline<float, 64>(c, maskers, 1e-4);
  }
}

TEST(CudaChoose, ShortSequencesKeepWhatThereIs) {
  for (const Index keys : {1, 5, 18, 30}) {
    Case c;
    c.rows = 1;
    c.keys = keys;
    compare_with_pipeline<float, 64>(c, chain({kSink, kLocal, kTopK}), 1e-4);
    compare_with_pipeline<float, 64>(c, chain({kLocal, kSample}), 1e-4);
    compare_with_pipeline<float, 64>(c, chain({kDilated, kSink}), 1e-4);
    compare_with_pipeline<float, 64>(c, chain({kSink, kTopP, kSampleMost}), 1e-4);
    compare_with_pipeline<float, 64>(c, chain({kPages, kSink}), 1e-4);
    compare_with_pipeline<float, 64>(c, chain({kSink, kAdaptiveFew}), 1e-4);
  }
}

TEST(CudaChoose, HashedKeysAreThosePipelinesChoose) {
  const reticle::testing::TemporaryFolder folder;
  for (const char* activation : {"relu", "silu", "gelu", "tanh"}) {
    for (const Index bits : {32, 70}) {
      Case c;
      c.rows = 2;
      c.keys = 500;
      const std::string masker = hashing(folder / activation, 3, c.heads, 150, bits, activation);
      compare_with_pipeline<float, 64>(c, masker, 1e-4);
      compare_with_pipeline<BFloat16, 64>(c, chain({kSink, masker.c_str(), kTopK}), 0.03);
    }
  }
}

TEST(CudaChoose, QuantisedKeysAreThosePipelinesChoose) {
  for (const char* metric : {"euclidean", "ip"}) {
    for (const int offset : {0, 40}) {
      const std::string masker =
          R"({"type": "pq_cache", "heavy_size": 60, "pq_group_factor": 5, "pq_bits": 4, "kmeans_iter": 3, "metric": ")" +
          std::string(metric) + R"(", "init_offset": )" + std::to_string(offset) + "}";
      Case c;
      c.rows = 2;
      c.keys = 1100;
      compare_with_pipeline<float, 64>(c, masker, 1e-4);
      compare_with_pipeline<BFloat16, 64>(c, chain({kSink, masker.c_str(), kTopK}), 0.03);
      c.keys = 30;
      compare_with_pipeline<float, 64>(c, masker, 1e-4);
    }
  }
}

TEST(CudaChoose, CollidingKeysAndHowLikelyTheyWereAreThePipelines) {
  for (const char* fields :
       {"", R"(, "lsh_l": 20, "lsh_k": 11, "min_collisions": 2, "lift": false)",
        R"(, "center": false, "lsh_k": 3, "lsh_l": 4)", R"(, "center_query": false, "lsh_k": 33, "lsh_l": 4000)",
        R"(, "lsh_k": 64, "lsh_l": 3, "mean_skips_first": 4, "mean_skips_last": 9)"}) {
    const std::string masker = R"({"type": "magic_pig")" + std::string(fields) + "}";
    Case c;
    c.rows = 2;
    c.keys = std::string(fields).find("4000") == std::string::npos ? 500 : 40;
    compare_with_pipeline<float, 64>(c, masker, 1e-4);
    compare_with_pipeline<BFloat16, 64>(c, chain({kSink, masker.c_str(), kTopK}), 0.03);
  }
}

TEST(Rules, OfHashesNameTheLayerWithoutWeights) {
  const reticle::testing::TemporaryFolder folder;
  const auto sparse =
      SparseAttention::from_json(R"({"maskers": [)" + hashing(folder / "w", 3, 2, 16, 32, "relu") + "]}");
  const std::vector<Rule> rules = sparse.rules(Stage::generation, 3, 100);
  EXPECT_EQ(rules.front().hash, sparse.rules(Stage::generation, 3, 200).front().hash) << "weights are read once";
  EXPECT_EQ(rules.front().count, 60);
  try {
    sparse.rules(Stage::generation, 2, 100);
    FAIL() << "there is layer 3 only";
  } catch (const ShapeError& error) {
    EXPECT_NE(std::string(error.what()).find("hat.2.query_matrix.0"), std::string::npos) << error.what();
  }
}

TEST(CudaChoose, KeysAreScoredOnceForTheHeadsOfAGroupWhateverItsSize) {
  for (const Index group : {1, 3, 6, 8}) {
    Case c;
    c.heads = 2 * group;
    c.rows = 2;
    c.keys = 600;
    compare_with_pipeline<float, 64>(c, chain({kSink, kTopK}), 1e-4);
    compare_with_pipeline<BFloat16, 128>(c, chain({kTopK}), 0.03);
  }
}

TEST(CudaChoose, OfMoreQueriesThanKeysTheFirstSeeNothing) {
  Case c;
  c.rows = 9;
  c.keys = 5;
  compare_with_pipeline<float, 64>(c, chain({kSink, kLocal, kTopK, kTopP, kPages, kAdaptive}), 1e-4);
}

TEST(Rules, NameTheMaskerThatHasNone) {
  const auto sparse = SparseAttention::from_json(
      R"({"maskers": [{"type": "sink"}, {"type": "moba"}, {"type": "local", "heads": [0]}]})");
  try {
    sparse.rules(Stage::generation, 0, 100);
    FAIL() << "moba has no rule";
  } catch (const DeviceError& error) {
    EXPECT_STREQ(error.what(), "masker 1, \"moba\", has no rule for a GPU: it chooses on the CPU");
  }
  const auto some_layers = SparseAttention::from_json(R"({"maskers": [{"type": "sink", "layers": [1]}]})");
  EXPECT_THROW(some_layers.rules(Stage::generation, 0, 100), DeviceError);
  EXPECT_EQ(some_layers.rules(Stage::generation, 1, 100).size(), 1u);
  EXPECT_THROW(
      SparseAttention::from_json(R"({"maskers": [{"type": "local", "heads": [0]}]})").rules(Stage::generation, 0, 100),
      DeviceError);
}

}  // namespace
}  // namespace reticle::cuda
