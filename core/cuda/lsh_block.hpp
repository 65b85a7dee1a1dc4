// Locality-sensitive hashing on a GPU, as in maskers/sampling/magic_pig.cpp: a code holds the sign bits of random
// projections, in tables of a few bits each; a key that shares enough tables with the query gets the probability of
// that event. Coding reads the projections once for eight vectors, and only new keys are coded; scoring reads a code
// per key and query head, and the keys that collide.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include <reticle/core/cuda/scored_inputs.hpp>
#include <reticle/core/ops/lsh.hpp>

namespace reticle::cuda {

inline constexpr int kLshThreads = 128;   // and signs that a block computes
inline constexpr int kLshVectors = 8;     // vectors that a block codes
inline constexpr int kMaxLshDim = 256;    // head_dim
inline constexpr int kMeanElements = 32;  // elements of a block, over kLshThreads / kMeanElements parts of the keys

struct LshProblem : ScoredInputs {
  int tables = 1, bits = 1, least = 1;  // see LshRecipe
  bool lift = true, center_query = true;
  const float* projections = nullptr;                    // (width, tables * bits): neighbouring threads read neighbours
  float* means = nullptr;                                // (b * hkv, d)
  std::uint32_t* largest = nullptr;                      // (b), largest norms of centred keys, as the bits of a float
  std::uint64_t *key_codes = nullptr, *codes = nullptr;  // (b * hkv, capacity, words), (b * hq * sq, words)
  Index capacity = 0;
  float* scores = nullptr;  // (b * hq * sq, sk)

  RETICLE_HD int signs() const { return tables * bits; }
  RETICLE_HD int words() const { return (signs() + 63) / 64; }
  RETICLE_HD float largest_of(int batch) const {
    float norm = 0;
    std::memcpy(&norm, largest + batch, sizeof(norm));
    return norm;
  }
  template <class T>
  RETICLE_HD const T* key(int matrix, int number) const {
    return static_cast<const T*>(keys) + matrix / kv_heads * key_strides.batch + matrix % kv_heads * key_strides.head +
           number * key_strides.row;
  }
  template <class T>
  RETICLE_HD const T* query(int row) const {
    return static_cast<const T*>(queries) + row / rows / heads * query_strides.batch +
           row / rows % heads * query_strides.head + row % rows * query_strides.row;
  }
  /// The number of the (batch, KV head) of (batch, head, query) number `row`.
  RETICLE_HD int matrix_of(int row) const {
    return row / rows / heads * kv_heads + row / rows % heads * kv_heads / heads;
  }
};

/// A problem without the pointers to memory.
inline LshProblem lsh_problem(const AttentionInputs& inputs, const LshRecipe& recipe) {
  LshProblem problem{ScoredInputs::of(inputs)};
  problem.tables = static_cast<int>(recipe.tables);
  problem.bits = static_cast<int>(recipe.bits);
  problem.least = static_cast<int>(recipe.min_collisions);
  problem.lift = recipe.lift;
  problem.center_query = recipe.center_query;
  return problem;
}

/// The projections in the problem's layout.
inline std::vector<float> projections_by_element(const LshRecipe& recipe, Index head_dim, int layer) {
  const std::vector<float> by_row = recipe.projections(head_dim, layer);
  const auto width = static_cast<std::size_t>(recipe.width(head_dim)), rows = by_row.size() / width;
  std::vector<float> by_element(by_row.size());
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t e = 0; e < width; ++e) by_element[e * rows + row] = by_row[row * width + e];
  }
  return by_element;
}

/// Averages the reachable keys of [first, end), elements from part * kMeanElements on. `sums` is shared memory with one
/// element for each thread.
template <class T, class Block>
RETICLE_HD void average_keys(const Block& block, double* sums, const LshProblem& problem, int matrix, int part,
                             int first, int end) {
  constexpr int kParts = kLshThreads / kMeanElements;
  int count = end - first;
  if (problem.reachable != nullptr) {
    count = 0;
    for (int key = first; key < end; ++key) count += problem.reaches(matrix, key) ? 1 : 0;
  }
  block.each([&](int thread) {
    const int e = part * kMeanElements + thread % kMeanElements, begin = thread / kMeanElements;
    double sum = 0;
    if (e < problem.head_dim) {
      for (int key = first + begin; key < end; key += kParts) {
        if (problem.reaches(matrix, key)) sum += static_cast<double>(widened(problem.key<T>(matrix, key)[e]));
      }
    }
    sums[thread] = sum;
  });
  block.sync();
  block.each([&](int thread) {
    const int e = part * kMeanElements + thread;
    if (thread >= kMeanElements || e >= problem.head_dim) return;
    double sum = 0;
    for (int i = 0; i < kParts; ++i) sum += sums[i * kMeanElements + thread];
    problem.means[matrix * problem.head_dim + e] =
        count == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(count));
  });
}

namespace lsh_detail {

/// The norm of a vector with elements at(e).
template <class At>
RETICLE_HD float norm(int count, At&& at) {
  double squares = 0;
  for (int e = 0; e < count; ++e) squares += static_cast<double>(at(e)) * static_cast<double>(at(e));
  return static_cast<float>(std::sqrt(squares));
}

/// Sign bits [first, first + count), count <= 64, of a code.
RETICLE_HD inline std::uint64_t bits_of(const std::uint64_t* code, int first, int count) {
  const int shift = first % 64;
  std::uint64_t bits = code[first / 64] >> shift;
  if (shift + count > 64) bits |= code[first / 64 + 1] << (64 - shift);
  return count == 64 ? bits : bits & ((std::uint64_t{1} << count) - 1);
}

}  // namespace lsh_detail

/// Raises the largest norm to the norms of reachable keys [first + kLshThreads * part, ...).
template <class T, class Block>
RETICLE_HD void keep_largest_norm(const Block& block, const LshProblem& problem, int matrix, int first, int part) {
  const float* const mean = problem.means + matrix * problem.head_dim;
  block.each([&](int thread) {
    const int number = first + part * kLshThreads + thread;
    if (number >= problem.key_count || !problem.reaches(matrix, number)) return;
    const T* const key = problem.key<T>(matrix, number);
    const float norm = lsh_detail::norm(problem.head_dim, [&](int e) { return widened(key[e]) - mean[e]; });
    std::uint32_t bits = 0;  // the bits of floats that are not negative have the floats' order
    std::memcpy(&bits, &norm, sizeof(bits));
    block.keep_max(problem.largest + matrix / problem.kv_heads, bits);
  });
}

/// Shared memory of a block: vectors, centred and lifted; and signs, one bit for each vector.
struct LshShared {
  float vectors[kLshVectors][kMaxLshDim + 1];
  std::uint8_t signs[kLshThreads];
};

/// Computes signs [panel * kLshThreads, ...) of vectors [first, first + kLshVectors): of the keys of (batch, KV head)
/// number `matrix`, or of rows.
template <class T, bool of_keys, class Block>
RETICLE_HD void code_by_signs(const Block& block, LshShared& shared, const LshProblem& problem, int matrix, int first,
                              int end, int panel) {
  constexpr int kPanelWords = kLshThreads / 64;
  const int d = problem.head_dim, width = d + (problem.lift ? 1 : 0);
  const int count = end - first < kLshVectors ? end - first : kLshVectors;
  block.each([&](int thread) {
    for (int i = thread; i < kLshVectors * d; i += kLshThreads) {
      const int vector = i / d, e = i % d, number = first + vector;
      if (vector >= count) {
        shared.vectors[vector][e] = 0;
        continue;
      }
      const T* const from = of_keys ? problem.key<T>(matrix, number) : problem.query<T>(number);
      const int mean_of = of_keys ? matrix : problem.matrix_of(number);
      const bool center = of_keys || problem.center_query;
      shared.vectors[vector][e] = widened(from[e]) - (center ? problem.means[mean_of * d + e] : 0.0f);
    }
  });
  block.sync();
  block.each([&](int thread) {
    if (thread >= kLshVectors || !problem.lift) return;
    float* const lifted = shared.vectors[thread];
    const float length = lsh_detail::norm(d, [&](int e) { return lifted[e]; });
    const float largest = of_keys ? problem.largest_of(matrix / problem.kv_heads) : length;
    const float above = largest * largest - length * length;
    lifted[d] = of_keys && above > 0 ? std::sqrt(above) : 0.0f;
  });
  block.sync();
  const int base = panel * kLshThreads;
  block.each([&](int thread) {
    float sums[kLshVectors] = {};
    if (base + thread < problem.signs()) {
      const float* const projections = problem.projections + base + thread;
      for (int e = 0; e < width; ++e) {
        const float weight = projections[static_cast<Index>(e) * problem.signs()];
        unrolled<kLshVectors>([&](int vector) { sums[vector] += weight * shared.vectors[vector][e]; });
      }
    }
    std::uint32_t positive = 0;
    unrolled<kLshVectors>([&](int vector) { positive |= (sums[vector] > 0 ? 1u : 0u) << vector; });
    shared.signs[thread] = static_cast<std::uint8_t>(positive);
  });
  block.sync();
  block.each([&](int thread) {
    const int vector = thread / kPanelWords, word = base / 64 + thread % kPanelWords;
    if (vector >= count || word >= problem.words()) return;
    std::uint64_t code = 0;
    for (int bit = 0; bit < 64; ++bit)
      code |= static_cast<std::uint64_t>(shared.signs[thread % kPanelWords * 64 + bit] >> vector & 1) << bit;
    std::uint64_t* const codes =
        of_keys ? problem.key_codes + matrix * problem.capacity * problem.words() : problem.codes;
    codes[static_cast<Index>(first + vector) * problem.words() + word] = code;
  });
}

/// Scores keys [part * kLshThreads, (part + 1) * kLshThreads) for row number `row`: the probability of a collision
/// where there is one, 0 elsewhere.
template <class T, class Block>
RETICLE_HD void score_collisions(const Block& block, float* query, const LshProblem& problem, int row, int part) {
  const int d = problem.head_dim, matrix = problem.matrix_of(row), words = problem.words();
  const int position = problem.key_count - problem.rows + row % problem.rows;
  const float* const mean = problem.means + matrix * d;
  block.each([&](int thread) {
    const T* const row_query = problem.query<T>(row);
    for (int e = thread; e < d; e += kLshThreads)
      query[e] = widened(row_query[e]) - (problem.center_query ? mean[e] : 0.0f);
  });
  block.sync();
  block.each([&](int thread) {
    const int number = part * kLshThreads + thread;
    if (number >= problem.key_count) return;
    float& score = problem.scores[static_cast<Index>(row) * problem.key_count + number];
    score = 0;
    if (problem.causal && number > position) return;
    const std::uint64_t* const code = problem.codes + static_cast<Index>(row) * words;
    const std::uint64_t* const key_code = problem.key_codes + (matrix * problem.capacity + number) * words;
    int shared_tables = 0;
    for (int table = 0; table < problem.tables && shared_tables < problem.least; ++table) {
      const int first = table * problem.bits;
      shared_tables +=
          lsh_detail::bits_of(code, first, problem.bits) == lsh_detail::bits_of(key_code, first, problem.bits) ? 1 : 0;
    }
    if (shared_tables < problem.least) return;
    const T* const key = problem.key<T>(matrix, number);
    double product = 0;
    for (int e = 0; e < d; ++e)
      product += static_cast<double>(query[e]) * static_cast<double>(widened(key[e]) - mean[e]);
    const float key_norm = problem.lift ? problem.largest_of(matrix / problem.kv_heads)
                                        : lsh_detail::norm(d, [&](int e) { return widened(key[e]) - mean[e]; });
    const auto query_norm = static_cast<double>(lsh_detail::norm(d, [&](int e) { return query[e]; }));
    const double cosine = key_norm > 0 ? product / ((query_norm + 1e-8) * static_cast<double>(key_norm)) : 0;
    const auto p = static_cast<float>(collision_probability(cosine, problem.bits, problem.tables, problem.least));
    if (p > 0) score = p < 1 ? p : 1;  // 0: exactly opposite vectors, which collide only by rounding
  });
}

}  // namespace reticle::cuda
