#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/mask/apply.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/device_storage.hpp>
#include <reticle/core/mask/io.hpp>
#include <reticle/core/mask/picture.hpp>
#include <reticle/core/mask/reshape.hpp>
#include <reticle/core/registry.hpp>

#include "fields.hpp"
#include "module.hpp"
#include "tensor.hpp"

namespace reticle::bindings {
namespace {

MaskShape shape_from(const std::array<Index, 4>& shape) { return {shape[0], shape[1], shape[2], shape[3]}; }

Mask from_dense(const py::handle& array) {
  const py::array_t<float> p = floats_of(array, "p");
  if (p.ndim() != 4)
    throw ShapeError("p: has " + std::to_string(p.ndim()) + " dimensions; expected 4 (batch, heads, queries, keys)");
  const MaskShape shape{p.shape(0), p.shape(1), p.shape(2), p.shape(3)};
  const std::span<const float> values(p.data(), static_cast<std::size_t>(p.size()));
  const py::gil_scoped_release released;
  return Mask::dense(shape, values);
}

Mask from_csr(const std::array<Index, 4>& shape, const py::handle& row_ptr, const py::handle& indices,
              const py::object& p) {
  auto pointers = to_buffer<Index>(row_ptr, "row_ptr");
  auto columns = to_buffer<std::int32_t>(indices, "indices");
  auto weights = p.is_none() ? Buffer<float>() : to_buffer<float>(p, "p");
  const py::gil_scoped_release released;
  return Mask::csr(shape_from(shape), std::move(pointers), std::move(columns), std::move(weights));
}

/// Intervals from a flat list of begin, end, begin, end, ...
Array<Interval> intervals_from(const Buffer<std::int32_t>& columns) {
  if (columns.size() % 2 != 0)
    throw ShapeError("intervals: " + std::to_string(columns.size()) + " columns; expected pairs of [begin, end)");
  Array<Interval> intervals(static_cast<std::size_t>(columns.size() / 2));
  for (std::size_t i = 0; i < intervals.size(); ++i) intervals[i] = {columns.span()[2 * i], columns.span()[2 * i + 1]};
  return intervals;
}

Mask from_runs(const std::array<Index, 4>& shape, const py::handle& row_ptr, const py::handle& intervals,
               const py::object& p) {
  auto pointers = to_buffer<Index>(row_ptr, "row_ptr");
  const py::array_t<Index> pairs = integers_of(intervals, "intervals");
  if (pairs.ndim() != 2 || pairs.shape(1) != 2) throw ShapeError("intervals: expected an array (n, 2) of [begin, end)");
  Array<Interval> ends = intervals_from(to_buffer<std::int32_t>(pairs.attr("reshape")(-1), "intervals"));
  auto weights = p.is_none() ? Buffer<float>() : to_buffer<float>(p, "p");
  const py::gil_scoped_release released;
  return Mask::runs(shape_from(shape), std::move(pointers), std::move(ends), std::move(weights));
}

py::tuple as_csr(const Mask& mask) {
  Csr csr;
  {
    const py::gil_scoped_release released;
    csr = to_csr(mask);
  }
  return py::make_tuple(copied(csr.row_ptr), copied(csr.indices),
                        csr.p.empty() ? py::object(py::none()) : copied(csr.p));
}

py::array_t<float> as_dense(const Mask& mask) {
  const MaskShape& shape = mask.shape();
  Array<float> dense;
  {
    const py::gil_scoped_release released;
    dense = to_dense(mask);
  }
  return to_numpy(std::move(dense), {shape.batch, shape.heads, shape.queries, shape.keys});
}

Mask from_rows(const std::array<Index, 4>& shape, const py::handle& columns, const py::object& p) {
  const py::array_t<Index> indices = integers_of(columns, "indices");
  if (indices.ndim() < 1) throw ShapeError("indices: expected an array (..., width) of key columns");
  const Index width = indices.shape(indices.ndim() - 1);
  const py::array_t<float> weights = p.is_none() ? py::array_t<float>() : floats_of(p, "p");
  const std::span<const Index> all(indices.data(), static_cast<std::size_t>(indices.size()));
  const std::span<const float> all_p(weights.data(), p.is_none() ? 0 : static_cast<std::size_t>(weights.size()));
  const py::gil_scoped_release released;
  return Mask::from_row_indices(shape_from(shape), width, all, all_p);
}

py::tuple as_flat(const Mask& mask) {
  FlatCsr flat;
  {
    const py::gil_scoped_release released;
    flat = to_flat_csr(mask);
  }
  const auto length = [](const auto& array) { return static_cast<py::ssize_t>(array.size()); };
  const py::ssize_t rows = length(flat.ptr), entries = length(flat.indices), weights = length(flat.data);
  return py::make_tuple(to_numpy(std::move(flat.ptr), {rows}), to_numpy(std::move(flat.indices), {entries}),
                        to_numpy(std::move(flat.data), {weights}));
}

Mask from_flat(const std::array<Index, 4>& shape, const py::handle& ptr, const py::handle& indices,
               const py::object& data) {
  const auto pointers = to_buffer<Index>(ptr, "ptr"), columns = to_buffer<Index>(indices, "indices");
  const auto weights = data.is_none() ? Buffer<float>() : to_buffer<float>(data, "data");
  const py::gil_scoped_release released;
  return from_flat_csr(shape_from(shape), pointers.span(), columns.span(), weights.span());
}

py::tuple as_blocks(const Mask& mask, Index block_q, Index block_k) {
  BlockLists blocks;
  {
    const py::gil_scoped_release released;
    blocks = to_blocks(unshare(mask), block_q, block_k);
  }
  return py::make_tuple(copied(blocks.row_ptr), copied(blocks.indices), copied(blocks.full).attr("astype")("bool"));
}

/// numpy's basic slicing, with steps of 1. An integer index keeps its dimension, because every mask has four.
Mask sliced(Mask mask, const py::object& index) {
  const py::tuple items = py::isinstance<py::tuple>(index) ? py::tuple(index) : py::make_tuple(index);
  const MaskShape shape = mask.shape();
  const Index extents[] = {shape.batch, shape.heads, shape.queries, shape.keys};
  const auto ellipses =
      std::count_if(items.begin(), items.end(), [](const py::handle& item) { return item.is(py::ellipsis()); });
  if (ellipses > 1 || items.size() - static_cast<std::size_t>(ellipses) > 4)
    throw py::index_error("a mask has four dimensions: batch, heads, queries, keys");
  std::size_t dim = 0;
  for (const py::handle& item : items) {
    if (item.is(py::ellipsis())) {
      dim += 4 - (items.size() - 1);
      continue;
    }
    Index begin = 0, end = extents[dim];
    if (py::isinstance<py::slice>(item)) {
      py::ssize_t start = 0, stop = 0, step = 0, length = 0;
      if (!py::reinterpret_borrow<py::slice>(item).compute(extents[dim], &start, &stop, &step, &length))
        throw py::error_already_set();
      if (step != 1) throw py::index_error("masks are sliced in steps of 1");
      begin = start;
      end = start + length;
    } else {
      const bool is_index = PyIndex_Check(item.ptr()) != 0 && !py::isinstance<py::bool_>(item);
      const auto number = py::reinterpret_steal<py::object>(is_index ? PyNumber_Index(item.ptr()) : nullptr);
      PyErr_Clear();
      if (!number)
        throw py::index_error("a mask is indexed by integers, slices and an ellipsis; got " +
                              std::string(py::repr(item)));
      int overflow = 0;
      begin = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
      if (overflow != 0) throw py::index_error("index " + std::string(py::repr(item)) + " is out of range for a mask");
      if (begin < -extents[dim] || begin >= extents[dim])
        throw py::index_error("index " + std::to_string(begin) + " is out of range for dimension " +
                              std::to_string(dim) + " of size " + std::to_string(extents[dim]));
      begin += begin < 0 ? extents[dim] : 0;
      end = begin + 1;
    }
    mask = slice(mask, static_cast<Dim>(dim), begin, end);
    ++dim;
  }
  return mask;
}

py::array_t<float> applied(const Mask& mask, const py::handle& x,
                           Array<float> (*function)(const Mask&, std::span<const float>, const Context&)) {
  const py::array_t<float> values = floats_of(x, "x");
  const MaskShape& shape = mask.shape();
  if (values.size() != shape.positions())
    throw ShapeError("x: expected an array of the mask's shape, " + shape.describe());
  const std::span<const float> all(values.data(), static_cast<std::size_t>(values.size()));
  Array<float> result;
  {
    const py::gil_scoped_release released;
    result = function(mask, all, {});
  }
  return to_numpy(std::move(result), {shape.batch, shape.heads, shape.queries, shape.keys});
}

py::array_t<float> pictured(const Mask& mask, Index batch, Index head, Index width, Index height) {
  const Picture picture = reticle::picture(mask, batch, head, width, height);
  return to_numpy(Array<float>(picture.cells.begin(), picture.cells.end()), {picture.height, picture.width});
}

/// The color of each masker type in pictures, as "#rrggbb".
std::vector<std::string> hex_colors(const std::vector<std::string>& types) {
  std::vector<std::string> colors;
  for (const Color& color : masker_colors(types)) {
    char text[8];
    std::snprintf(text, sizeof text, "#%02x%02x%02x", static_cast<unsigned>(color.red),
                  static_cast<unsigned>(color.green), static_cast<unsigned>(color.blue));
    colors.emplace_back(text);
  }
  return colors;
}

/// Returns (height, width, 3) uint8.
py::array_t<std::uint8_t> overlaid(const std::vector<std::pair<std::string, Mask>>& contributions, Index batch,
                                   Index head, Index width, Index height,
                                   std::tuple<std::uint8_t, std::uint8_t, std::uint8_t> ground) {
  std::vector<std::string> types;
  std::vector<Mask> masks;
  for (const auto& [type, mask] : contributions) {
    types.push_back(type);
    masks.push_back(mask);
  }
  const auto [red, green, blue] = ground;
  const ColorPicture picture = overlay(masks, masker_colors(types), batch, head, width, height, {red, green, blue});
  py::array_t<std::uint8_t> pixels({picture.height, picture.width, Index{3}});
  std::uint8_t* to = pixels.mutable_data();
  for (const Color& cell : picture.cells) {
    *to++ = cell.red;
    *to++ = cell.green;
    *to++ = cell.blue;
  }
  return pixels;
}

/// A context with torch's stream if one of the masks is on a GPU.
Context context_of(const Mask& a, const Mask& b = {}) {
  Context context;
  if (a.on_device() != nullptr || b.on_device() != nullptr) context.stream = current_stream();
  return context;
}

Mask combined(const Mask& a, const Mask& b, SetOp op) {
  const Context context = context_of(a, b);
  const py::gil_scoped_release released;
  return combine(a, b, op, context);
}

/// Mask::to for `device` "cpu", "cuda" or "cuda:1", or a torch device with such a name.
Mask moved(const Mask& mask, const py::object& device) {
  const std::string name = py::str(device);
  Device to;
  if (name != "cpu") {
    const bool numbered = name.size() > 5 && name.size() < 9 && name.starts_with("cuda:") &&
                          name.find_first_not_of("0123456789", 5) == std::string::npos;
    if (name != "cuda" && !numbered)
      throw py::value_error("device is " + std::string(py::repr(device)) +
                            R"(; expected "cpu", "cuda" or "cuda:<number>")");
    to = {Device::Kind::cuda, numbered ? std::stoi(name.substr(5)) : cuda::current_device()};
  }
  Context context;
  context.stream = to.kind == Device::Kind::cuda || mask.on_device() != nullptr ? current_stream() : nullptr;
  const py::gil_scoped_release released;
  return mask.to(to, context);
}

/// The pickled form of a mask: extents and sharing, kind, and the stored arrays.
py::tuple pickled(const Mask& mask) {
  const MaskShape& s = mask.shape();
  const py::tuple shape =
      py::make_tuple(s.batch, s.heads, s.queries, s.keys, s.shared_batch, s.shared_heads, s.shared_queries);
  const auto with = [&](auto&&... arrays) -> py::tuple {
    return py::make_tuple(shape, static_cast<int>(mask.kind()), py::make_tuple(arrays...));
  };
  return std::visit(
      [&]<class R>(const R& rep) -> py::tuple {
        if constexpr (std::is_same_v<R, BitDense>) {
          return with(copied(rep.words));
        } else if constexpr (std::is_same_v<R, WeightedDense>) {
          return with(copied(rep.p));
        } else if constexpr (std::is_same_v<R, Csr>) {
          return with(copied(rep.row_ptr), copied(rep.indices), copied(rep.p));
        } else if constexpr (std::is_same_v<R, Runs>) {
          Array<std::int32_t> ends;
          for (const Interval& interval : rep.intervals.span()) {
            ends.push_back(interval.begin);
            ends.push_back(interval.end);
          }
          const auto count = static_cast<py::ssize_t>(ends.size());
          return with(copied(rep.row_ptr), to_numpy(std::move(ends), {count}), copied(rep.p));
        } else {
          return with();
        }
      },
      mask.representation());
}

Buffer<std::uint64_t> words_from(const py::handle& object) {
  if (!py::isinstance<py::array_t<std::uint64_t>>(object)) throw FormatError("pickled mask: words are not uint64");
  const auto words = py::array_t<std::uint64_t, py::array::c_style | py::array::forcecast>::ensure(object);
  return Buffer<std::uint64_t>(Array<std::uint64_t>(words.data(), words.data() + words.size()));
}

Mask unpickled(const py::tuple& state) {
  if (state.size() != 3) throw FormatError("pickled mask: expected (shape, kind, arrays)");
  const auto e = state[0].cast<std::tuple<Index, Index, Index, Index, bool, bool, bool>>();
  const MaskShape shape{std::get<0>(e), std::get<1>(e), std::get<2>(e), std::get<3>(e),
                        std::get<4>(e), std::get<5>(e), std::get<6>(e)};
  shape.validate();
  const auto arrays = state[2].cast<py::tuple>();
  const auto kind = static_cast<MaskKind>(state[1].cast<int>());
  const std::size_t count = kind == MaskKind::empty || kind == MaskKind::full   ? 0
                            : kind == MaskKind::bits || kind == MaskKind::dense ? 1
                                                                                : 3;
  if (arrays.size() != count)
    throw FormatError("pickled mask: " + std::to_string(arrays.size()) + " arrays; expected " + std::to_string(count));
  switch (kind) {
    case MaskKind::empty:
      return Mask::empty(shape);
    case MaskKind::full:
      return Mask::full(shape);
    case MaskKind::bits:
      return Mask::bits(shape, words_from(arrays[0]));
    case MaskKind::dense:
      return Mask::dense(shape, to_buffer<float>(arrays[0], "p").span());
    case MaskKind::csr:
      return Mask::csr(shape, to_buffer<Index>(arrays[0], "row_ptr"), to_buffer<std::int32_t>(arrays[1], "indices"),
                       to_buffer<float>(arrays[2], "p"));
    case MaskKind::runs:
      return Mask::runs(shape, to_buffer<Index>(arrays[0], "row_ptr"),
                        intervals_from(to_buffer<std::int32_t>(arrays[1], "intervals")),
                        to_buffer<float>(arrays[2], "p"));
  }
  throw FormatError("pickled mask: kind is " + std::to_string(static_cast<int>(kind)) + "; expected 0 to 5");
}

}  // namespace

py::tuple extents_of(const MaskShape& shape) {
  return py::make_tuple(shape.batch, shape.heads, shape.queries, shape.keys);
}

void add_mask(py::module_& module) {
  using Released = py::call_guard<py::gil_scoped_release>;
  py::class_<Mask>(module, "Mask",
                   "Which key each query attends to, and the probability p in (0, 1] with which it was included.\n\n"
                   "A value: operations return new masks. Shapes are (batch, heads, queries, keys).")
      .def_static(
          "empty", [](const std::array<Index, 4>& shape) { return Mask::empty(shape_from(shape)); }, py::arg("shape"),
          "The mask that attends to nothing.")
      .def_static(
          "full", [](const std::array<Index, 4>& shape) { return Mask::full(shape_from(shape)); }, py::arg("shape"),
          "The mask that attends to everything.")
      .def_static("dense", &from_dense, py::arg("p"),
                  "From an array (batch, heads, queries, keys) of booleans or of p in [0, 1]; 0 is not attended.")
      .def_static("csr", &from_csr, py::arg("shape"), py::arg("row_ptr"), py::arg("indices"), py::arg("p") = py::none(),
                  "From CSR over batch * heads * queries rows: ascending key columns of each row, and optionally p.")
      .def_static(
          "runs", &from_runs, py::arg("shape"), py::arg("row_ptr"), py::arg("intervals"), py::arg("p") = py::none(),
          "From runs over batch * heads * queries rows: an array (n, 2) of [begin, end), ascending and disjoint "
          "in each row, and optionally p of each.")
      .def(
          "__or__", [](const Mask& a, const Mask& b) { return combined(a, b, SetOp::add); }, py::is_operator())
      .def(
          "__and__", [](const Mask& a, const Mask& b) { return combined(a, b, SetOp::intersect); }, py::is_operator())
      .def(
          "__sub__", [](const Mask& a, const Mask& b) { return combined(a, b, SetOp::subtract); }, py::is_operator())
      .def("__invert__",
           [](const Mask& mask) {
             const Context context = context_of(mask);
             const py::gil_scoped_release released;
             return complement(mask, context);
           })
      .def(
          "__eq__", [](const Mask& a, const Mask& b) { return a == b; }, py::is_operator(), Released())
      .def(
          "__hash__", [](const Mask& mask) { return hash(mask); }, Released())
      .def("__repr__", [](const Mask& mask) { return describe(mask); })
      .def_property_readonly(
          "shape", [](const Mask& mask) { return extents_of(mask.shape()); }, "(batch, heads, queries, keys)")
      .def_property_readonly(
          "kind", [](const Mask& mask) { return name_of(mask.kind()); },
          "How it is stored: empty, full, bits, dense, csr or runs.")
      .def_property_readonly(
          "device",
          [](const Mask& mask) {
            const Device device = mask.device();
            return device.kind == Device::Kind::cpu ? std::string("cpu") : "cuda:" + std::to_string(device.index);
          },
          "Where the entries lie: \"cpu\" or \"cuda:<number>\".")
      .def("to", &moved, py::arg("device"),
           "The same mask on \"cpu\" or on \"cuda\" (the current GPU, or \"cuda:<number>\"): a copy on torch's stream. "
           "To the "
           "CPU it waits. On a GPU there are |, &, -, ~, merge and attention; == brings masks to the CPU.")
      .def_property_readonly(
          "nnz",
          [](const Mask& mask) {
            const Context context = context_of(mask);
            const py::gil_scoped_release released;
            return mask.nnz(context);
          },
          "Attended positions. On a GPU it waits.")
      .def_property_readonly(
          "density",
          [](const Mask& mask) {
            const Context context = context_of(mask);
            const py::gil_scoped_release released;
            return mask.density(context);
          },
          "nnz over all positions. On a GPU it waits.")
      .def_property_readonly("weighted", &Mask::weighted, "Whether some p is below 1.")
      .def_property_readonly("nbytes", &Mask::bytes, "Bytes of the storage, which copies share.")
      .def("to_dense", &as_dense, "p of every position as a float32 array (batch, heads, queries, keys).")
      .def(
          "compact", [](const Mask& mask) { return compact(mask); }, Released(),
          "The same mask, in the representation that is smallest for what it holds.")
      .def_static("from_row_indices", &from_rows, py::arg("shape"), py::arg("indices"), py::arg("p") = py::none(),
                  "From (batch, heads, queries, width) key columns in any order; -1 is padding. p is aligned or None.")
      .def_static("from_flat_indices", &from_flat, py::arg("shape"), py::arg("ptr"), py::arg("indices"),
                  py::arg("data") = py::none(),
                  "From CSR whose indices count over the whole tensor, row * keys + key: sparse-attention-hub's form.")
      .def("to_flat_indices", &as_flat, "(ptr, indices, data): sparse-attention-hub's form; data is p.")
      .def("to_blocks", &as_blocks, py::arg("block_q"), py::arg("block_k"),
           "(row_ptr, indices, full) over batch * heads * ceil(queries / block_q) block rows: the blocks that hold any "
           "entry, and whether every position of each is attended with p = 1.")
      .def("__getitem__", &sliced, py::arg("index"))
      .def(
          "merge",
          [](const Mask& a, const Mask& b, const std::string& rule) {
            return combined(a, b, op_of(enum_from<MergeRule>(rule, "rule")));
          },
          py::arg("other"), py::arg("rule") = "add",
          "The union; p of positions in both is min(1, a + b), max(a, b) or 1 - (1-a)(1-b): add, max, independent.")
      .def(
          "restrict_causal", [](const Mask& mask) { return restrict_causal(mask); }, Released(),
          "What lies at or before each query's own position; the last query is aligned with the last key.")
      .def(
          "transpose", [](const Mask& mask) { return transpose(mask); }, Released(),
          "(batch, heads, keys, queries): for each key the queries that attend to it.")
      .def(
          "append_keys", [](const Mask& mask, Index count) { return append_keys(mask, count); }, py::arg("count"),
          Released(), "More keys at the end, attended by none.")
      .def(
          "append_queries", [](const Mask& mask, const Mask& rows) { return append_queries(mask, rows); },
          py::arg("rows"), Released(), "The queries of this mask, then those of another.")
      .def(
          "broadcast_to",
          [](const Mask& mask, const std::array<Index, 4>& shape) { return broadcast_to(mask, shape_from(shape)); },
          py::arg("shape"), "numpy's rule, at no cost in storage.")
      .def(
          "apply", [](const Mask& mask, const py::object& x) { return applied(mask, x, &apply); }, py::arg("x"),
          "x * p, of an array of the mask's shape.")
      .def(
          "apply_inverse", [](const Mask& mask, const py::object& x) { return applied(mask, x, &apply_inverse); },
          py::arg("x"), "x / p where attended, else 0: the Horvitz-Thompson weighting.")
      .def("picture", &pictured, py::arg("batch") = 0, py::arg("head") = 0, py::arg("width") = 512,
           py::arg("height") = 512, "One head averaged into at most height x width cells, in [0, 1].")
      .def(
          "save", [](const Mask& mask, const std::filesystem::path& path) { save(mask, path); }, py::arg("path"),
          Released(), "Writes a safetensors file.")
      .def_static(
          "load", [](const std::filesystem::path& path) { return load_mask(existing(path)); }, py::arg("path"),
          Released(), "Reads a file that save wrote.")
      .def(py::pickle(&pickled, &unpickled))
      .def("to_csr", &as_csr, "(row_ptr, indices, p) over batch * heads * queries rows; p is None when all are 1.");
  module.def("masker_colors", &hex_colors, py::arg("types"),
             "\"#rrggbb\" of each masker in pictures: sinks blue, windows orange, dense grey, others as they come.");
  module.def("overlay", &overlaid, py::arg("contributions"), py::arg("batch") = 0, py::arg("head") = 0,
             py::arg("width") = 512, py::arg("height") = 512,
             py::arg("ground") = std::tuple<std::uint8_t, std::uint8_t, std::uint8_t>(255, 255, 255),
             "(height, width, 3) uint8: one head of [(type, mask)], each masker in its color.");
}

}  // namespace reticle::bindings
