#include <reticle/core/base/error.hpp>

namespace reticle {

Error::~Error() = default;
ConfigError::~ConfigError() = default;
ShapeError::~ShapeError() = default;
PluginError::~PluginError() = default;
FormatError::~FormatError() = default;
ValueError::~ValueError() = default;
DeviceError::~DeviceError() = default;
Cancelled::~Cancelled() = default;

}  // namespace reticle
