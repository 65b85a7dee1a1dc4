#include <pybind11/stl.h>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>

#include "module.hpp"
#include "tensor.hpp"

namespace reticle::bindings {
namespace {

MaskShape shape_from(const std::array<Index, 4>& shape) { return {shape[0], shape[1], shape[2], shape[3]}; }

Mask from_dense(const py::handle& array) {
  const auto p = py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(array);
  if (!p || p.ndim() != 4) throw ShapeError("dense: needed is an array (batch, heads, queries, keys)");
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

Mask from_runs(const std::array<Index, 4>& shape, const py::handle& row_ptr, const py::handle& intervals,
               const py::object& p) {
  auto pointers = to_buffer<Index>(row_ptr, "row_ptr");
  const auto pairs = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>::ensure(intervals);
  if (!pairs || pairs.ndim() != 2 || pairs.shape(1) != 2)
    throw ShapeError("intervals: needed is an array (n, 2) of [begin, end)");
  Array<Interval> ends(static_cast<std::size_t>(pairs.shape(0)));
  for (py::ssize_t i = 0; i < pairs.shape(0); ++i)
    ends[static_cast<std::size_t>(i)] = {pairs.data()[2 * i], pairs.data()[2 * i + 1]};
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
  const auto copy = []<class T>(const Buffer<T>& buffer) {
    return to_numpy(Array<T>(buffer.span().begin(), buffer.span().end()), {buffer.size()});
  };
  return py::make_tuple(copy(csr.row_ptr), copy(csr.indices), csr.p.empty() ? py::object(py::none()) : copy(csr.p));
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

}  // namespace

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
          "__or__", [](const Mask& a, const Mask& b) { return a | b; }, Released())
      .def(
          "__and__", [](const Mask& a, const Mask& b) { return a & b; }, Released())
      .def(
          "__sub__", [](const Mask& a, const Mask& b) { return a - b; }, Released())
      .def(
          "__invert__", [](const Mask& mask) { return ~mask; }, Released())
      .def(
          "__eq__", [](const Mask& a, const Mask& b) { return a == b; }, Released())
      .def(
          "__hash__", [](const Mask& mask) { return hash(mask); }, Released())
      .def("__repr__", [](const Mask& mask) { return describe(mask); })
      .def_property_readonly(
          "shape",
          [](const Mask& mask) {
            const MaskShape& s = mask.shape();
            return py::make_tuple(s.batch, s.heads, s.queries, s.keys);
          },
          "(batch, heads, queries, keys)")
      .def_property_readonly(
          "kind", [](const Mask& mask) { return name_of(mask.kind()); },
          "How it is stored: empty, full, bits, dense, csr or runs.")
      .def_property_readonly("nnz", &Mask::nnz, "Attended positions.")
      .def_property_readonly("density", &Mask::density, "nnz over all positions.")
      .def_property_readonly("weighted", &Mask::weighted, "Whether some p is below 1.")
      .def_property_readonly("nbytes", &Mask::bytes, "Bytes of the storage, which copies share.")
      .def("to_dense", &as_dense, "p of every position as a float32 array (batch, heads, queries, keys).")
      .def("to_csr", &as_csr, "(row_ptr, indices, p) over batch * heads * queries rows; p is None when all are 1.");
}

}  // namespace reticle::bindings
