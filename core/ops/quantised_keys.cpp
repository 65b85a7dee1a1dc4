#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include <reticle/core/ops/quantised_keys.hpp>

namespace reticle {
namespace {

void check_recorded(const TensorView& centroids, const TensorView& codes, const AttentionInputs& inputs, Index count) {
  require_rank(centroids, 5, "centroids");
  require_rank(codes, 4, "codes");
  if (centroids.dtype != DType::f32 || codes.dtype != DType::i64 || centroids.size(0) != inputs.batch() ||
      centroids.size(1) != inputs.kv_heads() || codes.size(0) != inputs.batch() || codes.size(1) < count ||
      codes.size(2) != inputs.kv_heads() || codes.size(3) != centroids.size(2))
    throw ShapeError("centroids and codes: " + centroids.describe() + " and " + codes.describe() +
                     "; expected F32 (b, hkv, parts, count, width) and I64 (b, " + std::to_string(count) +
                     " keys, hkv, parts)");
  for (Index b = 0; b < codes.size(0); ++b) {
    for (Index k = 0; k < count; ++k) {
      for (Index h = 0; h < codes.size(2); ++h) {
        for (Index u = 0; u < codes.size(3); ++u) {
          const Index code = *codes.at<Index>(b, k, h, u);
          if (code < 0 || code >= centroids.size(3) || code > UINT16_MAX)
            throw ShapeError("codes: holds " + std::to_string(code) + "; there are " +
                             std::to_string(centroids.size(3)) + " centroids");
        }
      }
    }
  }
}

TensorView recorded_book(const TensorView& centroids, Index batch, Index kv_head) {
  const TensorView head_centroids = centroids.slice(0, batch, batch + 1).slice(1, kv_head, kv_head + 1);
  TensorView book = head_centroids.permute({2, 3, 4, 0, 1});
  book.rank = 3;
  return book;
}

}  // namespace

void QuantisedKeys::update(const AttentionInputs& inputs, const PqRecipe& recipe, const Context& context) {
  const Index heads = inputs.batch() * inputs.kv_heads();
  const Index count = std::max<Index>(0, inputs.keys_length() - recipe.init_offset);
  if (!books_.empty() && !(recipe == recipe_))
    throw ShapeError("quantised keys: the layer's state holds codes of another recipe; reset it");
  seen_.continue_with(inputs);
  recipe_ = recipe;
  if (count == 0) return;
  const bool first = books_.empty();
  if (first) {
    books_.resize(static_cast<std::size_t>(heads));
    codes_.resize(static_cast<std::size_t>(heads));
  }
  const Index trained = train_on_ > recipe_.init_offset ? train_on_ : inputs.keys_length();
  const std::optional<TensorView> centroids = inputs.extra("centroids"), codes = inputs.extra("codes");
  const bool recorded = centroids && codes;
  if (recorded) check_recorded(*centroids, *codes, inputs, count);
  context.for_each_chunk(heads, 1, [&](Index, Index begin, Index end) {
    for (Index head = begin; head < end; ++head) {
      const Index batch = head / inputs.kv_heads(), kv_head = head % inputs.kv_heads();
      ProductQuantiser& book = books_[static_cast<std::size_t>(head)];
      const TensorView keys = head_matrix(inputs.keys, batch, kv_head);
      if (first && recorded) {
        book = ProductQuantiser(recorded_book(*centroids, batch, kv_head), inputs.head_dim());
      } else if (first) {
        book = recipe.train(keys.slice(0, 0, trained), inputs.layer, head, ReachableKeys(inputs, batch, kv_head));
      }
      std::vector<std::uint16_t>& head_codes = codes_[static_cast<std::size_t>(head)];
      head_codes.resize(static_cast<std::size_t>(count * book.parts()));
      std::vector<float> key(static_cast<std::size_t>(inputs.head_dim()));
      for (Index k = coded_; k < count; ++k) {
        std::uint16_t* code = head_codes.data() + k * book.parts();
        if (recorded) {
          for (Index u = 0; u < book.parts(); ++u)
            code[u] = static_cast<std::uint16_t>(*codes->at<Index>(batch, k, kv_head, u));
          continue;
        }
        load_row(keys, recipe_.init_offset + k, 1, key);
        book.encode(key, {code, static_cast<std::size_t>(book.parts())});
      }
    }
  });
  if (first) {
    first_query_ = inputs.position(0);
    trained_ = trained;
  }
  coded_ = count;
  seen_.finish(inputs);
}

void QuantisedKeys::truncate(Index keys) {
  seen_.truncate(keys);
  if (keys < trained_) {
    books_.clear();
    codes_.clear();
    train_on_ = keys > first_query_ ? keys : 0;
    trained_ = coded_ = 0;
  }
  // An upper bound, since keys before init_offset have no codes; coding a key again changes nothing.
  coded_ = std::min(coded_, keys);
}

void QuantisedKeys::select(std::span<const Index> rows) {
  select_rows(books_, rows, seen_.batch());
  select_rows(codes_, rows, seen_.batch());
  seen_.select(rows);
}

void QuantisedKeys::score(const AttentionInputs& inputs, RowId row, float* scores) const {
  const auto head = static_cast<std::size_t>(row.batch * inputs.kv_heads() + inputs.kv_head(row.head));
  const ProductQuantiser& book = books_[head];
  std::vector<float> query(static_cast<std::size_t>(inputs.head_dim()));
  load_row(head_matrix(inputs.queries, row.batch, row.head), row.query, 1, query);
  const std::vector<float> table = book.table(query);
  const std::uint16_t* code = codes_[head].data();
  std::fill(scores, scores + recipe_.init_offset, -std::numeric_limits<float>::infinity());
  for (Index key = recipe_.init_offset; key < inputs.visible_keys(row.query); ++key) {
    float sum = 0;
    for (Index u = 0; u < book.parts(); ++u) sum += table[static_cast<std::size_t>(u * book.centroids() + *code++)];
    scores[key] = sum;
  }
  add_attention_mask(inputs, row, scores);
}

}  // namespace reticle
