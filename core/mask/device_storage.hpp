// What a mask needs of another device's memory that it is stored in. The device's own code implements it (core/cuda),
// or says that there is none.
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
  /// Both wait for the stream.
  virtual Index nnz(const Context& context) const = 0;
  virtual Mask to_host(const Context& context) const = 0;
  /// With another of one logical shape, there too.
  virtual std::shared_ptr<const DeviceStorage> combine(const DeviceStorage& other, SetOp op,
                                                       const Context& context) const = 0;
};

/// A copy of a mask of the host in the current GPU's memory. DeviceError where there is none.
RETICLE_API std::shared_ptr<const DeviceStorage> store_on_gpu(const Mask& mask, const Context& context);

}  // namespace reticle
