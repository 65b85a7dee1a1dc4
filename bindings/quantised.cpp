// Keys and values as codes of 8 or 4 bits.
#include <memory>
#include <pybind11/pybind11.h>
#include <string>

#include <reticle/core/tensor/quantised_rows.hpp>

#include "module.hpp"
#include "tensor.hpp"

namespace reticle::bindings {

void add_quantised(py::module_& module) {
  module.def(
      "quantise",
      [](const py::object& tensor, Index bits) {
        const Borrowed given(tensor, "tensor");
        const DType dtype = quantised_dtype(bits);
        Tensor rows = [&] {
          const py::gil_scoped_release released;
          return Tensor::copy(given.view(), dtype);
        }();
        TensorView codes = rows.view();
        codes.dtype = DType::u8;
        codes.shape[static_cast<std::size_t>(codes.rank) - 1] = row_bytes(dtype, codes.size(codes.rank - 1));
        auto memory = std::make_shared<Tensor>(std::move(rows));
        return given.hand_over(Tensor(codes, memory));
      },
      py::arg("tensor"), py::arg("bits"),
      "The codes (..., rows, bytes) uint8 of a tensor (..., rows, channels) of float32, float16 or bfloat16.");
  module.def(
      "dequantise",
      [](const py::object& tensor) {
        const Borrowed given(tensor, "tensor");
        if (!is_quantised(given.view().dtype))
          throw ShapeError("tensor: " + given.view().describe() + "; expected a QuantisedTensor");
        Tensor floats = [&] {
          const py::gil_scoped_release released;
          return Tensor::copy(given.view(), DType::f32);
        }();
        return given.hand_over(std::move(floats));
      },
      py::arg("tensor"), "What the codes of a QuantisedTensor stand for, float32.");
  module.def(
      "bytes_of_quantised_row",
      [](Index width, Index bits) {
        if (width < 1 || width > kMaxQuantisedWidth)
          throw ShapeError("width is " + std::to_string(width) + "; expected 1 to " +
                           std::to_string(kMaxQuantisedWidth) + " channels");
        return row_bytes(quantised_dtype(bits), width);
      },
      py::arg("width"), py::arg("bits"), "Bytes that a row of `width` channels takes in 8 or 4 bits.");
}

}  // namespace reticle::bindings
