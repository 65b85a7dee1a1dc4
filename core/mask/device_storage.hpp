// The interface to masks stored in another device's memory. core/cuda implements it; builds without CUDA throw.
#pragma once

#include <memory>

#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// The entries of a mask in a device's memory. Immutable; work is queued on context.stream.
class RETICLE_API DeviceStorage {
 public:
  DeviceStorage() = default;
  DeviceStorage(const DeviceStorage&) = delete;
  DeviceStorage& operator=(const DeviceStorage&) = delete;
  virtual ~DeviceStorage();

  virtual Device device() const = 0;
  virtual const MaskShape& shape() const = 0;
  virtual MaskKind kind() const = 0;
  virtual bool weighted() const = 0;
  virtual Index bytes() const = 0;
  /// nnz and to_host wait for the stream.
  virtual Index nnz(const Context& context) const = 0;
  virtual Mask to_host(const Context& context) const = 0;
  /// The combination with a mask of the same logical shape on the same device.
  virtual std::shared_ptr<const DeviceStorage> combine(const DeviceStorage& other, SetOp op,
                                                       const Context& context) const = 0;
};

/// Copies a mask from the host to the current GPU. DeviceError if there is no GPU.
RETICLE_API std::shared_ptr<const DeviceStorage> store_on_gpu(const Mask& mask, const Context& context);

}  // namespace reticle
