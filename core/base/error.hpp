// Errors say what was given, what was expected and where. They cross shared-object boundaries, hence the exported,
// out-of-line destructors.
#pragma once

#include <stdexcept>
#include <string>

#include <reticle/core/base/export.hpp>

namespace reticle {

class RETICLE_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  Error(const Error&) = default;
  Error& operator=(const Error&) = default;
  ~Error() override;
};

/// A configuration is wrong; the message starts with the JSON pointer of the offending value.
class RETICLE_API ConfigError : public Error {
 public:
  using Error::Error;
  ConfigError(const ConfigError&) = default;
  ConfigError& operator=(const ConfigError&) = default;
  ~ConfigError() override;
};

/// Tensors or masks do not fit together; the message names them and their shapes.
class RETICLE_API ShapeError : public Error {
 public:
  using Error::Error;
  ShapeError(const ShapeError&) = default;
  ShapeError& operator=(const ShapeError&) = default;
  ~ShapeError() override;
};

/// A plugin was refused; the registry is unchanged.
class RETICLE_API PluginError : public Error {
 public:
  using Error::Error;
  PluginError(const PluginError&) = default;
  PluginError& operator=(const PluginError&) = default;
  ~PluginError() override;
};

/// A file is not what it claims to be; the message starts with its path.
class RETICLE_API FormatError : public Error {
 public:
  using Error::Error;
  FormatError(const FormatError&) = default;
  FormatError& operator=(const FormatError&) = default;
  ~FormatError() override;
};

/// A computation met values it cannot use (NaN or infinite inputs).
class RETICLE_API ValueError : public Error {
 public:
  using Error::Error;
  ValueError(const ValueError&) = default;
  ValueError& operator=(const ValueError&) = default;
  ~ValueError() override;
};

/// A device is absent, failed, or holds data that this operation needs elsewhere.
class RETICLE_API DeviceError : public Error {
 public:
  using Error::Error;
  DeviceError(const DeviceError&) = default;
  DeviceError& operator=(const DeviceError&) = default;
  ~DeviceError() override;
};

/// The caller asked a running operation to stop; nothing was changed.
class RETICLE_API Cancelled : public Error {
 public:
  Cancelled() : Error("cancelled") {}
  Cancelled(const Cancelled&) = default;
  Cancelled& operator=(const Cancelled&) = default;
  ~Cancelled() override;
};

}  // namespace reticle
