"""Logs of the density and the output error of sparse attention, layer by layer, as JSON lines.

    from reticle.research import metrics

    with metrics.MetricLogger("run/metrics.jsonl") as log, reticle.hf.attach(model, generation=config, metrics=log):
        model.generate(**inputs)
    metrics.summary("run/metrics.jsonl")  # {"density": 0.12, "output_error": 0.03}

A line is {"timestamp", "metric", "value", "metadata"}, the format of sparse-attention-hub's micro_metrics.jsonl.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reticle._metrics import DENSITY as DENSITY
from reticle._metrics import OUTPUT_ERROR as OUTPUT_ERROR

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import TextIO


class MetricLogger:
    """Appends to a file, one line per value; closed by the `with` block or `close`."""

    def __init__(
        self, path: str | Path, metrics: Sequence[str] = (DENSITY, OUTPUT_ERROR), *, sampling: float = 1.0
    ) -> None:
        """Logs `metrics` to `path`, whose folder is created.

        Args:
            metrics: "density" (attended keys over visible keys) and "output_error" (||dense - sparse|| / ||dense|| of
                the whole output, which costs a dense attention per call).
            sampling: share of the calls that are logged, in [0, 1].
        """
        unknown = set(metrics) - {DENSITY, OUTPUT_ERROR}
        if unknown:
            raise ValueError(f"metrics {sorted(unknown)} are not known; there are {DENSITY!r} and {OUTPUT_ERROR!r}")
        if not 0 <= sampling <= 1:
            raise ValueError(f"sampling is {sampling}; expected a share in [0, 1]")
        self.metrics = tuple(metrics)
        self._sampling = sampling
        self._random = random.Random(0)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = Path(path).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open until close()

    def wants(self, metric: str) -> bool:
        """True if this metric should be computed and logged for the current call."""
        return metric in self.metrics and self._random.random() < self._sampling

    def log(self, metric: str, value: float, **metadata: Any) -> None:
        """Appends one value."""
        now = datetime.now(timezone.utc).isoformat()
        line = {"timestamp": now, "metric": metric, "value": float(value), "metadata": metadata}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Closes the file; logging afterwards is an error."""
        self._file.close()

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def records(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log as dicts, of which pandas.json_normalize makes a table."""
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def summary(path: str | Path, by: str | None = None) -> dict[Any, Any]:
    """Means over a log: {metric: mean}, or with `by` (a metadata key such as "layer") {metric: {value of the key:
    mean}}."""
    values: dict[Any, list[float]] = defaultdict(list)
    for record in records(path):
        values[record["metric"], record["metadata"].get(by) if by else None].append(record["value"])
    means: dict[Any, Any] = {}
    for (metric, key), logged in values.items():
        mean = sum(logged) / len(logged)
        if by:
            means.setdefault(metric, {})[key] = mean
        else:
            means[metric] = mean
    return means
