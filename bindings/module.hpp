// What the extension module is put together from.
#pragma once

#include <pybind11/pybind11.h>

namespace reticle::bindings {

void add_errors(pybind11::module_& module);
void add_mask(pybind11::module_& module);
void add_attention(pybind11::module_& module);
void add_masker(pybind11::module_& module);
void add_nsa(pybind11::module_& module);
void add_cuda(pybind11::module_& module);

}  // namespace reticle::bindings
