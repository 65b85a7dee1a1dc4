// Product quantisation (Jegou et al. 2011): a vector is cut into parts, each replaced by the nearest of a few
// centroids; the inner product with a query is then a sum of table look-ups.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <reticle/core/base/function_ref.hpp>
#include <reticle/core/base/random.hpp>
#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle {

enum class PqMetric : std::uint8_t { euclidean, ip };

/// The codebook of one KV head. Part u of a vector of d is [u * d / parts, (u + 1) * d / parts).
class RETICLE_API ProductQuantiser {
 public:
  ProductQuantiser() = default;
  /// Lloyd's k-means over rows [begin, end) of `keys` (n, d), at most `iterations`; the first centroids are rows drawn
  /// without replacement, an empty cluster gets a row at random. With `ip`, vectors are lifted onto a sphere first, so
  /// that near vectors have large inner products (Neyshabur and Srebro 2015).
  ProductQuantiser(const TensorView& keys, Index begin, Index parts, Index centroids, Index iterations, PqMetric metric,
                   Philox& random);
  /// Uses recorded centroids, (parts, count, columns) F32 with at least as many columns as a part is wide; further
  /// columns are ignored.
  ProductQuantiser(const TensorView& centroids, Index dim);

  bool trained() const { return dim_ > 0; }
  Index parts() const { return static_cast<Index>(books_.size()); }
  Index dim() const { return dim_; }
  /// The nearest centroid of each part.
  void encode(std::span<const float> vector, std::span<std::uint16_t> codes) const;
  /// table[u * stride + c] = query's part u . centroid c; stride is centroids().
  std::vector<float> table(std::span<const float> query) const;
  Index centroids() const { return centroids_; }
  /// The codebook of one part.
  struct Book {
    Index begin = 0, width = 0;    // the part's elements
    std::vector<float> centroids;  // (count, width)
    std::vector<float> lift;       // (count): the extra coordinate of `ip`, else zeros
    float radius = 0;              // squared; 0 for euclidean
  };
  std::span<const Book> books() const { return books_; }

 private:
  Index nearest(const Book& book, const float* part) const;
  void train(Book& book, const TensorView& keys, Index begin, Index iterations, PqMetric metric, Philox& random);

  Index dim_ = 0, centroids_ = 0;
  std::vector<Book> books_;
};

/// Parameters for training the codebooks of a sequence.
struct RETICLE_API PqRecipe {
  Index parts = 1, centroids = 1, iterations = 1;
  Index init_offset = 0;  // first keys that are neither clustered nor candidates
  PqMetric metric = PqMetric::euclidean;
  std::uint64_t seed = 0;

  /// The codebook of (batch, KV head) number `head` at a layer, trained on the keys with counts(key), out of keys (n,
  /// d), n > init_offset.
  ProductQuantiser train(const TensorView& keys, int layer, Index head, FunctionRef<bool(Index key)> counts) const;
  bool operator==(const PqRecipe&) const = default;
};

}  // namespace reticle
