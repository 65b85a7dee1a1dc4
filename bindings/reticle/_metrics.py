"""The metrics that attention logs, and the interface of a logger. `reticle.research.metrics` has one that writes files."""

from __future__ import annotations

from typing import Any, Protocol

DENSITY = "density"
OUTPUT_ERROR = "output_error"


class MetricLog(Protocol):
    """What attention calls of a logger, such as `reticle.research.metrics.MetricLogger`."""

    def wants(self, metric: str, /) -> bool:
        """True if this metric should be computed and logged for the current call."""
        ...

    def log(self, metric: str, value: float, /, **metadata: Any) -> None:
        """Logs one value."""
        ...
