// Product-quantised keys on a GPU, as in core/ops/product_quantiser.hpp: a key is stored as the index of the nearest
// centroid for each of its parts, and its score is a sum of entries of the query's table. Encoding reads a key once,
// when it is new; scoring reads 2 bytes per part, key and KV head, where exact scores read the key.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/row_block.hpp>
#include <reticle/core/ops/product_quantiser.hpp>

namespace reticle::cuda {

inline constexpr int kQuantiserThreads = 128;
inline constexpr int kQuantisedKeys = 1024;    // keys that a block scores
inline constexpr int kMaxTableEntries = 8192;  // parts * centroids

/// The codebooks of a layer's KV heads. Part u of a vector consists of elements [u * head_dim / parts, (u + 1) *
/// head_dim / parts).
struct Codebooks {
  const float* centroids = nullptr;  // (b * hkv, count * head_dim); part u: (count, width) from count * begin(u) on
  const float* lifts = nullptr;      // (b * hkv, parts, count)
  const float* radii = nullptr;      // (b * hkv, parts), squared
  int parts = 1, count = 1, head_dim = 0;

  RETICLE_HD int begin(int part) const { return static_cast<int>(static_cast<Index>(part) * head_dim / parts); }
  RETICLE_HD const float* of_part(int head, int part) const {
    return centroids + (static_cast<Index>(head) * head_dim + begin(part)) * count;
  }
};

/// Codebooks on the host, in the same layout.
struct PackedCodebooks {
  std::vector<float> centroids, lifts, radii;

  /// Appends the codebooks of the next KV head.
  void add(const ProductQuantiser& quantiser) {
    for (const ProductQuantiser::Book& book : quantiser.books()) {
      centroids.insert(centroids.end(), book.centroids.begin(), book.centroids.end());
      lifts.insert(lifts.end(), book.lift.begin(), book.lift.end());
      radii.push_back(book.radius);
    }
  }
};

struct EncodeProblem {
  const void* keys = nullptr;  // (b, hkv, sk, d)
  Strides key_strides;
  int kv_heads = 1, key_count = 0;
  Codebooks books;
  std::uint16_t* codes = nullptr;  // (b * hkv, capacity, parts)
  Index capacity = 0;
};

inline EncodeProblem encode_problem(const AttentionInputs& inputs, const Codebooks& books, std::uint16_t* codes,
                                    Index capacity) {
  return {inputs.keys.data,
          strides_of(inputs.keys),
          static_cast<int>(inputs.kv_heads()),
          static_cast<int>(inputs.keys_length()),
          books,
          codes,
          capacity};
}

/// Finds the nearest centroids for the (key, part) pairs [step * kQuantiserThreads, ...) from key `first` on.
template <class T, class Block>
RETICLE_HD void encode_keys(const Block& block, const EncodeProblem& problem, int head, int first, int step) {
  const Codebooks& books = problem.books;
  const Strides& strides = problem.key_strides;
  const T* const keys = static_cast<const T*>(problem.keys) + head / problem.kv_heads * strides.batch +
                        head % problem.kv_heads * strides.head;
  block.each([&](int thread) {
    const int number = step * kQuantiserThreads + thread, key = first + number / books.parts,
              part = number % books.parts;
    if (key >= problem.key_count) return;
    const int begin = books.begin(part), width = books.begin(part + 1) - begin;
    const T* const key_part = keys + static_cast<Index>(key) * strides.row + begin;
    const float* const centroids = books.of_part(head, part);
    const float* const lifts = books.lifts + (static_cast<Index>(head) * books.parts + part) * books.count;
    float squares = 0;
    for (int i = 0; i < width; ++i) squares += widened(key_part[i]) * widened(key_part[i]);
    const float above = books.radii[head * books.parts + part] - squares, lift = std::sqrt(above > 0 ? above : 0.0f);
    int best = 0;
    float least = std::numeric_limits<float>::infinity();
    for (int c = 0; c < books.count; ++c) {
      float distance = (lift - lifts[c]) * (lift - lifts[c]);
      for (int i = 0; i < width; ++i) {
        const float apart = widened(key_part[i]) - centroids[c * width + i];
        distance += apart * apart;
      }
      if (distance < least) {
        least = distance;
        best = c;
      }
    }
    problem.codes[(head * problem.capacity + key) * books.parts + part] = static_cast<std::uint16_t>(best);
  });
}

struct TableScoreProblem {
  const void* queries = nullptr;  // (b, hq, sq, d)
  Strides query_strides;
  int heads = 1, kv_heads = 1, rows = 1, key_count = 0;  // rows: queries of a head
  int first_key = 0;                                     // keys before it score -infinity
  bool causal = false;                                   // and so do keys after a row's own position
  Codebooks books;
  const std::uint16_t* codes = nullptr;
  Index capacity = 0;
  float* scores = nullptr;  // (b * hq * sq, sk)
};

/// The problem of scoring keys that encode_keys has encoded.
inline TableScoreProblem table_score_problem(const AttentionInputs& inputs, const EncodeProblem& encoded,
                                             Index first_key, float* scores) {
  return {inputs.queries.data,
          strides_of(inputs.queries),
          static_cast<int>(inputs.heads()),
          encoded.kv_heads,
          static_cast<int>(inputs.queries_length()),
          encoded.key_count,
          static_cast<int>(std::min<Index>(first_key, encoded.key_count)),
          inputs.causal,
          encoded.books,
          encoded.codes,
          encoded.capacity,
          scores};
}

/// Scores keys [part * kQuantisedKeys, (part + 1) * kQuantisedKeys) for row number `row`. `table` is shared memory for
/// kMaxTableEntries floats.
template <class T, class Block>
RETICLE_HD void score_by_table(const Block& block, float* table, const TableScoreProblem& problem, int row, int part) {
  const Codebooks& books = problem.books;
  const int query = row % problem.rows, head = row / problem.rows % problem.heads,
            batch = row / problem.rows / problem.heads;
  const int kv_head = batch * problem.kv_heads + head * problem.kv_heads / problem.heads;
  const Strides& strides = problem.query_strides;
  const T* const row_query =
      static_cast<const T*>(problem.queries) + batch * strides.batch + head * strides.head + query * strides.row;
  block.each([&](int thread) {
    for (int entry = thread; entry < books.parts * books.count; entry += kQuantiserThreads) {
      const int book = entry / books.count, begin = books.begin(book), width = books.begin(book + 1) - begin;
      const float* const centroid = books.of_part(kv_head, book) + static_cast<Index>(entry % books.count) * width;
      float sum = 0;
      for (int i = 0; i < width; ++i) sum += widened(row_query[begin + i]) * centroid[i];
      table[entry] = sum;
    }
  });
  block.sync();
  const int position = problem.key_count - problem.rows + query;
  const int end = (part + 1) * kQuantisedKeys < problem.key_count ? (part + 1) * kQuantisedKeys : problem.key_count;
  block.each([&](int thread) {
    for (int key = part * kQuantisedKeys + thread; key < end; key += kQuantiserThreads) {
      float sum = -std::numeric_limits<float>::infinity();
      if (key >= problem.first_key && !(problem.causal && key > position)) {
        const std::uint16_t* const code = problem.codes + (kv_head * problem.capacity + key) * books.parts;
        sum = 0;
        for (int of = 0; of < books.parts; ++of) sum += table[of * books.count + code[of]];
      }
      problem.scores[static_cast<Index>(row) * problem.key_count + key] = sum;
    }
  });
}

}  // namespace reticle::cuda
