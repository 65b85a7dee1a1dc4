// Masks as safetensors files: the stored buffers as tensors, shape and representation as metadata.
#pragma once

#include <filesystem>

#include <reticle/core/mask/mask.hpp>

namespace reticle {

RETICLE_API void save(const Mask& mask, const std::filesystem::path& path);
/// FormatError when the file is not a mask, or its buffers break a mask's rules.
RETICLE_API Mask load_mask(const std::filesystem::path& path);

}  // namespace reticle
