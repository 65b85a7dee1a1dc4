#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/ops/product_quantiser.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle {
namespace {

float squares(const float* x, Index width) {
  float sum = 0;
  for (Index i = 0; i < width; ++i) sum += x[i] * x[i];
  return sum;
}

}  // namespace

ProductQuantiser::ProductQuantiser(const TensorView& keys, Index begin, Index parts, Index centroids, Index iterations,
                                   PqMetric metric, Philox& random)
    : dim_(keys.size(1)), centroids_(std::min(centroids, keys.size(0) - begin)) {
  for (Index u = 0; u < parts; ++u) {
    Book& book = books_.emplace_back();
    book.begin = u * dim_ / parts;
    book.width = (u + 1) * dim_ / parts - book.begin;
    train(book, keys, begin, iterations, metric, random);
  }
}

ProductQuantiser::ProductQuantiser(const TensorView& centroids, Index dim) : dim_(dim), centroids_(centroids.size(1)) {
  const Index parts = centroids.size(0);
  for (Index u = 0; u < parts; ++u) {
    Book& book = books_.emplace_back();
    book.begin = u * dim / parts;
    book.width = (u + 1) * dim / parts - book.begin;
    if (book.width > centroids.size(2))
      throw ShapeError("centroids: " + centroids.describe() + " are narrower than a part of head_dim " +
                       std::to_string(dim));
    for (Index c = 0; c < centroids_; ++c) {
      for (Index i = 0; i < book.width; ++i) book.centroids.push_back(*centroids.at<float>(u, c, i));
    }
    book.lift.assign(static_cast<std::size_t>(centroids_), 0.0f);
  }
}

void ProductQuantiser::train(Book& book, const TensorView& keys, Index begin, Index iterations, PqMetric metric,
                             Philox& random) {
  const Index count = keys.size(0) - begin, width = book.width;
  std::vector<float> row(static_cast<std::size_t>(dim_)), rows, lifts(static_cast<std::size_t>(count), 0.0f);
  for (Index k = 0; k < count; ++k) {
    load_row(keys, begin + k, 1, row);
    rows.insert(rows.end(), row.begin() + book.begin, row.begin() + book.begin + width);
  }
  if (metric == PqMetric::ip) {
    for (Index k = 0; k < count; ++k) book.radius = std::max(book.radius, squares(rows.data() + k * width, width));
    for (Index k = 0; k < count; ++k)
      lifts[static_cast<std::size_t>(k)] =
          std::sqrt(std::max(0.0f, book.radius - squares(rows.data() + k * width, width)));
  }
  const auto copy_row = [&](Index from, Index to) {
    std::copy_n(rows.begin() + from * width, width, book.centroids.begin() + to * width);
    book.lift[static_cast<std::size_t>(to)] = lifts[static_cast<std::size_t>(from)];
  };
  book.centroids.resize(static_cast<std::size_t>(centroids_ * width));
  book.lift.resize(static_cast<std::size_t>(centroids_));
  std::vector<std::int32_t> first;
  sample_without_replacement(count, centroids_, random, first);
  for (std::size_t c = 0; c < first.size(); ++c) copy_row(first[c], static_cast<Index>(c));

  std::vector<Index> assigned(static_cast<std::size_t>(count), -1);
  for (Index iteration = 0; iteration < iterations; ++iteration) {
    bool moved = false;
    std::vector<double> sums(book.centroids.size(), 0.0), lift_sums(book.lift.size(), 0.0);
    std::vector<Index> sizes(book.lift.size(), 0);
    for (Index k = 0; k < count; ++k) {
      const Index c = nearest(book, rows.data() + k * width);
      moved |= std::exchange(assigned[static_cast<std::size_t>(k)], c) != c;
      for (Index i = 0; i < width; ++i)
        sums[static_cast<std::size_t>(c * width + i)] +=
            static_cast<double>(rows[static_cast<std::size_t>(k * width + i)]);
      lift_sums[static_cast<std::size_t>(c)] += static_cast<double>(lifts[static_cast<std::size_t>(k)]);
      ++sizes[static_cast<std::size_t>(c)];
    }
    if (!moved) break;
    for (Index c = 0; c < centroids_; ++c) {
      const auto size = static_cast<double>(sizes[static_cast<std::size_t>(c)]);
      if (size == 0) {
        copy_row(random.below(static_cast<std::uint32_t>(count)), c);
        continue;
      }
      for (Index i = c * width; i < (c + 1) * width; ++i)
        book.centroids[static_cast<std::size_t>(i)] = static_cast<float>(sums[static_cast<std::size_t>(i)] / size);
      book.lift[static_cast<std::size_t>(c)] = static_cast<float>(lift_sums[static_cast<std::size_t>(c)] / size);
    }
  }
}

ProductQuantiser PqRecipe::train(const TensorView& keys, int layer, Index head, FunctionRef<bool(Index)> counts) const {
  Philox random(derive_seed(seed, static_cast<std::uint64_t>(layer) + 1), 0, 0, 0, static_cast<std::uint32_t>(head));
  std::vector<Index> counted;
  for (Index key = init_offset; key < keys.size(0); ++key) {
    if (counts(key)) counted.push_back(key);
  }
  const Index candidates = keys.size(0) - init_offset;
  if (static_cast<Index>(counted.size()) == candidates)
    return {keys, init_offset, parts, centroids, iterations, metric, random};
  // The number of centroids does not depend on how many keys count: keys repeat where too few count, and the rows are
  // zeros where none does.
  const std::size_t rows = std::max(counted.size(), static_cast<std::size_t>(std::min(centroids, candidates)));
  const auto width = static_cast<std::size_t>(keys.size(1));
  std::vector<float> clustered(rows * width, 0.0f);
  for (std::size_t row = 0; row < rows && !counted.empty(); ++row)
    load_row(keys, counted[row % counted.size()], 1, std::span(clustered).subspan(row * width, width));
  return {TensorView(clustered.data(), DType::f32, {static_cast<Index>(rows), keys.size(1)}),
          0,
          parts,
          centroids,
          iterations,
          metric,
          random};
}

Index ProductQuantiser::nearest(const Book& book, const float* part) const {
  const float lift = std::sqrt(std::max(0.0f, book.radius - squares(part, book.width)));
  Index best = 0;
  float least = std::numeric_limits<float>::infinity();
  for (Index c = 0; c < centroids_; ++c) {
    const float* centroid = book.centroids.data() + c * book.width;
    const float apart = lift - book.lift[static_cast<std::size_t>(c)];
    float distance = apart * apart;
    for (Index i = 0; i < book.width; ++i) distance += (part[i] - centroid[i]) * (part[i] - centroid[i]);
    if (distance < least) {
      least = distance;
      best = c;
    }
  }
  return best;
}

void ProductQuantiser::encode(std::span<const float> vector, std::span<std::uint16_t> codes) const {
  for (std::size_t u = 0; u < books_.size(); ++u)
    codes[u] = static_cast<std::uint16_t>(nearest(books_[u], vector.data() + books_[u].begin));
}

std::vector<float> ProductQuantiser::table(std::span<const float> query) const {
  std::vector<float> table;
  table.reserve(books_.size() * static_cast<std::size_t>(centroids_));
  for (const Book& book : books_) {
    for (Index c = 0; c < centroids_; ++c) {
      float sum = 0;
      for (Index i = 0; i < book.width; ++i)
        sum += query[static_cast<std::size_t>(book.begin + i)] *
               book.centroids[static_cast<std::size_t>(c * book.width + i)];
      table.push_back(sum);
    }
  }
  return table;
}

}  // namespace reticle
