// The parts of the extension module.
#pragma once

#include <filesystem>
#include <pybind11/pybind11.h>
#include <string>

#include <reticle/core/mask/combine.hpp>

namespace reticle::bindings {

void add_errors(pybind11::module_& module);
void add_mask(pybind11::module_& module);
void add_attention(pybind11::module_& module);
void add_masker(pybind11::module_& module);
void add_nsa(pybind11::module_& module);
void add_quantised(pybind11::module_& module);
void add_cuda(pybind11::module_& module);

/// Returns the path if it exists; else raises MissingFileError, a subclass of Python's FileNotFoundError.
std::filesystem::path existing(const std::filesystem::path& path);
/// Returns (batch, heads, queries, keys).
pybind11::tuple extents_of(const MaskShape& shape);

}  // namespace reticle::bindings
