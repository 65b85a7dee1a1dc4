#include <algorithm>
#include <bit>
#include <cstdio>
#include <variant>

#include <reticle/core/mask/builder.hpp>
#include <reticle/core/mask/device_storage.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle {

struct Mask::Storage {
  MaskShape shape;
  Representation representation;
  Index stored_nnz = 0;
  bool weighted = false;
  std::shared_ptr<const DeviceStorage> device = nullptr;  // if set, replaces the representation
};

DeviceStorage::~DeviceStorage() = default;

namespace {

[[noreturn]] void reject(const MaskShape& shape, const std::string& what) {
  throw ShapeError("mask " + shape.describe() + ": " + what);
}

/// p as text. std::to_string would print small values as 0.
std::string p_text(float p) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", static_cast<double>(p));
  return text;
}

void require_p(const MaskShape& shape, std::span<const float> p) {
  for (const float value : p) {
    if (!is_probability(value)) reject(shape, "p is " + p_text(value) + "; expected a p in [2^-126, 1]");
  }
}

void require_row_ptr(const MaskShape& shape, const Buffer<Index>& row_ptr, Index entries) {
  if (row_ptr.size() != shape.stored_rows() + 1)
    reject(shape, "row_ptr has " + std::to_string(row_ptr.size()) + " entries; expected " +
                      std::to_string(shape.stored_rows() + 1) + " (stored rows + 1)");
  if (row_ptr[0] != 0 || row_ptr[row_ptr.size() - 1] != entries)
    reject(shape, "row_ptr goes from " + std::to_string(row_ptr[0]) + " to " +
                      std::to_string(row_ptr[row_ptr.size() - 1]) + "; expected 0 to " + std::to_string(entries));
  if (!std::is_sorted(row_ptr.span().begin(), row_ptr.span().end())) reject(shape, "row_ptr descends");
}

bool any_below_one(std::span<const float> p) {
  return std::any_of(p.begin(), p.end(), [](float value) { return value < 1; });
}

}  // namespace

Mask::Mask(std::shared_ptr<const Storage> storage) : storage_(std::move(storage)) {}

Mask Mask::make(MaskShape shape, Representation representation, Index stored_nnz, bool weighted) {
  return Mask(std::make_shared<const Storage>(Storage{shape, std::move(representation), stored_nnz, weighted}));
}

Mask::Mask() : Mask(empty({0, 0, 0, 0})) {}

Mask Mask::empty(const MaskShape& shape) {
  shape.validate();
  return make(shape.one_row(), Empty{}, 0, false);
}

Mask Mask::full(const MaskShape& shape) {
  shape.validate();
  return make(shape.one_row(), Full{}, shape.keys, false);
}

Mask Mask::bits(const MaskShape& shape, Buffer<std::uint64_t> words) {
  shape.validate();
  const Index per_row = BitDense::words_per_row(shape.keys);
  if (words.size() != shape.stored_rows() * per_row)
    reject(shape, "has " + std::to_string(words.size()) + " words of bits; expected " +
                      std::to_string(shape.stored_rows() * per_row) + " (stored rows x ceil(keys / 64))");
  Index entries = 0;
  for (const std::uint64_t word : words.span()) entries += std::popcount(word);
  if (const Index tail = shape.keys % 64; tail != 0) {
    const std::uint64_t padding = ~std::uint64_t{0} << tail;
    for (Index row = 0; row < shape.stored_rows(); ++row) {
      if ((words[(row + 1) * per_row - 1] & padding) != 0) reject(shape, "bits beyond the last key are set");
    }
  }
  return make(shape, BitDense{std::move(words)}, entries, false);
}

Mask Mask::csr(const MaskShape& shape, Buffer<Index> row_ptr, Buffer<std::int32_t> indices, Buffer<float> p) {
  shape.validate();
  require_row_ptr(shape, row_ptr, indices.size());
  if (!p.empty() && p.size() != indices.size())
    reject(shape, "has " + std::to_string(indices.size()) + " indices and " + std::to_string(p.size()) +
                      " p; expected as many, or no p");
  require_p(shape, p.span());
  for (Index row = 0; row < shape.stored_rows(); ++row) {
    Index last = -1;
    for (Index i = row_ptr[row]; i < row_ptr[row + 1]; ++i) {
      if (indices[i] <= last || indices[i] >= shape.keys)
        reject(shape, "row " + std::to_string(row) + " has column " + std::to_string(indices[i]) + " after " +
                          std::to_string(last) + "; expected strictly ascending columns below " +
                          std::to_string(shape.keys));
      last = indices[i];
    }
  }
  const Index entries = indices.size();
  const bool weighted = any_below_one(p.span());
  if (!weighted) p = {};
  return make(shape, Csr{std::move(row_ptr), std::move(indices), std::move(p)}, entries, weighted);
}

Mask Mask::runs(const MaskShape& shape, Buffer<Index> row_ptr, Buffer<Interval> intervals, Buffer<float> p) {
  shape.validate();
  require_row_ptr(shape, row_ptr, intervals.size());
  if (!p.empty() && p.size() != intervals.size())
    reject(shape, "has " + std::to_string(intervals.size()) + " runs and " + std::to_string(p.size()) +
                      " p; expected as many, or no p");
  require_p(shape, p.span());
  Index entries = 0;
  for (Index row = 0; row < shape.stored_rows(); ++row) {
    Index last = 0;
    for (Index i = row_ptr[row]; i < row_ptr[row + 1]; ++i) {
      const auto [begin, end] = intervals[i];
      if (begin < last || begin >= end || end > shape.keys)
        reject(shape, "row " + std::to_string(row) + " has run [" + std::to_string(begin) + ", " + std::to_string(end) +
                          ") after column " + std::to_string(last) +
                          "; expected non-empty, ascending, disjoint runs within " + std::to_string(shape.keys) +
                          " keys");
      entries += end - begin;
      last = end;
    }
  }
  const bool weighted = any_below_one(p.span());
  if (!weighted) p = {};
  return make(shape, Runs{std::move(row_ptr), std::move(intervals), std::move(p)}, entries, weighted);
}

Mask Mask::dense(const MaskShape& shape, std::span<const float> p, const Context& context) {
  shape.validate();
  const Index size = shape.stored_rows() * shape.keys;
  if (static_cast<Index>(p.size()) != size)
    reject(shape, "has " + std::to_string(p.size()) + " dense values; expected " + std::to_string(size) +
                      " (stored rows x keys)");
  for (const float value : p) {
    if (value != 0 && !is_probability(value))
      reject(shape, "p is " + p_text(value) + "; expected 0 or a p in [2^-126, 1]");
  }
  return from_runs(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        RunJoiner join(emit);
        const float* values = p.data() + shape.stored_row(row) * shape.keys;
        for (Index k = 0; k < shape.keys; ++k) {
          if (values[k] > 0) join(static_cast<std::int32_t>(k), static_cast<std::int32_t>(k + 1), values[k]);
        }
        join.flush();
      },
      context);
}

Mask Mask::from_row_indices(const MaskShape& shape, Index width, std::span<const Index> columns,
                            std::span<const float> p, const Context& context) {
  shape.validate();
  const Index size = checked_product({shape.stored_rows(), width}, "row indices");
  if (static_cast<Index>(columns.size()) != size || (!p.empty() && p.size() != columns.size()))
    reject(shape, "has " + std::to_string(columns.size()) + " columns and " + std::to_string(p.size()) +
                      " p; expected " + std::to_string(size) + " columns, " + std::to_string(width) + " for each of " +
                      std::to_string(shape.stored_rows()) +
                      " rows (of every batch, head and query), and as many p or none");
  for (const Index column : columns) {
    if (column < -1 || column >= shape.keys)
      reject(shape, "column " + std::to_string(column) + " is out of range; expected 0 to " +
                        std::to_string(shape.keys - 1) + ", or -1 for padding");
  }
  for (const float value : p) {
    if (value != 0 && !is_probability(value))
      reject(shape, "p is " + p_text(value) + "; expected 0 or a p in [2^-126, 1]");
  }
  return from_selections(
      shape,
      [&](RowId row, Selection& selection) {
        const Index first = shape.stored_row(row) * width;
        std::vector<Index> order;
        for (Index i = 0; i < width; ++i) {
          if (columns[static_cast<std::size_t>(first + i)] >= 0) order.push_back(first + i);
        }
        const auto column = [&](Index i) { return columns[static_cast<std::size_t>(i)]; };
        std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return column(a) < column(b); });
        for (std::size_t i = 0; i < order.size(); ++i) {
          if (i + 1 < order.size() && column(order[i]) == column(order[i + 1])) continue;  // the last wins
          const float value = p.empty() ? 1.0f : p[static_cast<std::size_t>(order[i])];
          if (value == 0) continue;
          selection.indices.push_back(static_cast<std::int32_t>(column(order[i])));
          selection.p.push_back(value);
        }
      },
      context);
}

const MaskShape& Mask::shape() const { return storage_->shape; }

Mask Mask::stored(std::shared_ptr<const DeviceStorage> storage) {
  const MaskShape shape = storage->shape();
  return Mask(std::make_shared<const Storage>(Storage{shape, Empty{}, 0, storage->weighted(), std::move(storage)}));
}

const DeviceStorage* Mask::on_device() const { return storage_->device.get(); }
Device Mask::device() const { return on_device() == nullptr ? Device() : on_device()->device(); }

Mask Mask::to(Device device, const Context& context) const {
  if (device == this->device()) return *this;
  if (on_device() != nullptr) {
    const Mask host = on_device()->to_host(context);
    return device.kind == Device::Kind::cpu ? host : host.to(device, context);
  }
  if (kind() == MaskKind::empty || kind() == MaskKind::full) return *this;
  Mask moved = stored(store_on_gpu(*this, context));
  if (moved.device() != device)
    throw DeviceError("mask: to " + device.describe() + ", and the current device is " + moved.device().describe());
  return moved;
}

const Representation& Mask::representation() const {
  if (on_device() != nullptr)
    throw DeviceError("mask " + shape().describe() + ": its entries lie on " + device().describe() +
                      ", where there are merge, intersect, subtract and attention; to() brings it to the host");
  return storage_->representation;
}

MaskKind Mask::kind() const {
  return on_device() != nullptr ? on_device()->kind() : static_cast<MaskKind>(storage_->representation.index());
}

std::string_view name_of(MaskKind kind) {
  constexpr std::string_view kNames[] = {"empty", "full", "bits", "dense", "csr", "runs"};
  return kNames[static_cast<std::size_t>(kind)];
}

Index Mask::nnz(const Context& context) const {
  if (on_device() != nullptr) return on_device()->nnz(context);
  return storage_->stored_nnz * storage_->shape.rows_per_stored_row();
}

double Mask::density(const Context& context) const {
  const Index positions = shape().positions();
  return positions == 0 ? 0.0 : static_cast<double>(nnz(context)) / static_cast<double>(positions);
}

bool Mask::weighted() const { return storage_->weighted && shape().positions() > 0; }

namespace {

struct Bytes {
  Index operator()(const Empty&) const { return 0; }
  Index operator()(const Full&) const { return 0; }
  Index operator()(const BitDense& rep) const { return rep.words.bytes(); }
  Index operator()(const WeightedDense& rep) const { return rep.p.bytes(); }
  Index operator()(const Csr& rep) const { return rep.row_ptr.bytes() + rep.indices.bytes() + rep.p.bytes(); }
  Index operator()(const Runs& rep) const { return rep.row_ptr.bytes() + rep.intervals.bytes() + rep.p.bytes(); }
};

void stored_row_runs(const Mask& mask, Index stored_row, std::vector<Run>& runs) {
  std::visit(
      [&](const auto& rep) { for_each_run(rep, stored_row, mask.shape().keys, [&](Run run) { runs.push_back(run); }); },
      mask.representation());
}

}  // namespace

Index Mask::bytes() const {
  return on_device() != nullptr ? on_device()->bytes() : std::visit(Bytes{}, representation());
}

void Mask::row(RowId row, std::vector<Run>& runs) const {
  const MaskShape& s = shape();
  if (row.batch < 0 || row.batch >= s.batch || row.head < 0 || row.head >= s.heads || row.query < 0 ||
      row.query >= s.queries)
    reject(s, "has no row (" + std::to_string(row.batch) + ", " + std::to_string(row.head) + ", " +
                  std::to_string(row.query) + ")");
  stored_row_runs(*this, s.stored_row(row), runs);
}

float Mask::at(Index batch, Index head, Index query, Index key) const {
  if (key < 0 || key >= shape().keys) reject(shape(), "has no key " + std::to_string(key));
  std::vector<Run> runs;
  row({batch, head, query}, runs);
  for (const Run& run : runs) {
    if (run.begin <= key && key < run.end) return run.p;
  }
  return 0;
}

bool operator==(const Mask& a, const Mask& b) {
  if (a.on_device() != nullptr || b.on_device() != nullptr) return a.to(Device()) == b.to(Device());
  if (!a.shape().same_logical(b.shape()) || a.nnz() != b.nnz() || a.weighted() != b.weighted()) return false;
  const MaskShape shape = a.shape().sharing_both(b.shape());
  std::vector<Run> left, right;
  for (Index row = 0; row < shape.stored_rows(); ++row) {
    if (shape.rows() == 0) break;
    const RowId id = shape.row_of_stored(row);
    left.clear();
    right.clear();
    stored_row_runs(a, a.shape().stored_row(id), left);
    stored_row_runs(b, b.shape().stored_row(id), right);
    if (left != right) return false;
  }
  return true;
}

std::uint64_t hash(const Mask& mask) {
  if (mask.on_device() != nullptr) return hash(mask.to(Device()));
  const MaskShape& shape = mask.shape();
  const auto mix = [](std::uint64_t state, std::uint64_t value) { return derive_seed(state ^ value, 1); };
  std::uint64_t state = 0;
  for (const Index extent : {shape.batch, shape.heads, shape.queries, shape.keys, mask.nnz()})
    state = mix(state, static_cast<std::uint64_t>(extent));
  // Hashes an evenly spaced sample of rows: shared dimensions can make the number of logical rows huge.
  constexpr Index kRows = 1024;
  const Index rows = shape.rows(), step = std::max<Index>(1, rows / kRows);
  std::vector<Run> runs;
  for (Index row = 0; row < rows; row += step) {
    runs.clear();
    stored_row_runs(mask, shape.stored_row(shape.row_of_logical(row)), runs);
    state = mix(state, runs.size());
    for (const Run& run : runs) {
      state = mix(state, (static_cast<std::uint64_t>(run.begin) << 32) | static_cast<std::uint32_t>(run.end));
      state = mix(state, std::bit_cast<std::uint32_t>(run.p));
    }
  }
  return state;
}

std::string describe(const Mask& mask) {
  char tail[96];
  if (mask.on_device() != nullptr) {  // no density: that would wait for the stream
    std::snprintf(tail, sizeof tail, ", %.1f kB%s", static_cast<double>(mask.bytes()) / 1000,
                  mask.weighted() ? ", weighted" : "");
    return "Mask " + mask.shape().describe() + ", " + std::string(name_of(mask.kind())) + " on " +
           mask.device().describe() + tail;
  }
  std::snprintf(tail, sizeof tail, ", density %.4g %%, %.1f kB%s", 100 * mask.density(),
                static_cast<double>(mask.bytes()) / 1000, mask.weighted() ? ", weighted" : "");
  return "Mask " + mask.shape().describe() + ", " + std::string(name_of(mask.kind())) + tail;
}

std::vector<Index> row_counts(const Mask& mask, const Context& context) {
  const MaskShape& shape = mask.shape();
  std::vector<Index> counts(static_cast<std::size_t>(shape.rows()));
  context.for_each_chunk(shape.rows(), rows_per_chunk(shape.rows()), [&](Index, Index begin, Index end) {
    std::visit(
        [&](const auto& rep) {
          for (Index row = begin; row < end; ++row) {
            Index count = 0;
            for_each_run(rep, shape.stored_row(shape.row_of_logical(row)), shape.keys,
                         [&](Run run) { count += run.end - run.begin; });
            counts[static_cast<std::size_t>(row)] = count;
          }
        },
        mask.representation());
  });
  return counts;
}

std::vector<Index> head_counts(const Mask& mask, const Context& context) {
  const MaskShape& shape = mask.shape();
  std::vector<Index> counts(static_cast<std::size_t>(shape.batch * shape.heads));
  // If queries share a row, count one query and multiply.
  const Index rows = shape.shared_queries ? std::min<Index>(1, shape.queries) : shape.queries;
  const Index times = shape.shared_queries ? shape.queries : 1;
  context.for_each_chunk(static_cast<Index>(counts.size()), 1, [&](Index, Index begin, Index end) {
    std::visit(
        [&](const auto& rep) {
          for (Index head = begin; head < end; ++head) {
            Index count = 0;
            for (Index q = 0; q < rows; ++q) {
              for_each_run(rep, shape.stored_row({head / shape.heads, head % shape.heads, q}), shape.keys,
                           [&](Run run) { count += run.end - run.begin; });
            }
            counts[static_cast<std::size_t>(head)] = count * times;
          }
        },
        mask.representation());
  });
  return counts;
}

}  // namespace reticle
