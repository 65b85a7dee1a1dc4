"""Logs of the density and the output error of sparse attention, layer by layer: as JSON lines, to TensorBoard or to
Weights & Biases.

    from reticle.research import metrics

    with metrics.MetricLogger("run/metrics.jsonl") as log, reticle.hf.attach(model, generation=config, metrics=log):
        model.generate(**inputs)
    metrics.summary("run/metrics.jsonl")  # {"density": 0.12, "output_error": 0.03}
    with metrics.TensorBoardLogger("run") as log:  # or attach(..., metrics=log), as above
        metrics.replay("run/metrics.jsonl", log)

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
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import TextIO

    from typing_extensions import Self


class Logger:
    """What the loggers of this module have in common: the metrics that are logged, sampling, and closing."""

    def __init__(self, metrics: Sequence[str] = (DENSITY, OUTPUT_ERROR), *, sampling: float = 1.0) -> None:
        """Logs `metrics` of attention.

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

    def wants(self, metric: str) -> bool:
        """True if this metric should be computed and logged for the current call."""
        return metric in self.metrics and self._random.random() < self._sampling

    def log(self, metric: str, value: float, **metadata: Any) -> None:
        """Logs one value."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the log; logging afterwards is an error."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MetricLogger(Logger):
    """Appends to a file of JSON lines, one line per value; closed by the `with` block or `close`."""

    def __init__(
        self, path: str | Path, metrics: Sequence[str] = (DENSITY, OUTPUT_ERROR), *, sampling: float = 1.0
    ) -> None:
        """Logs to `path`, whose folder is created. The other arguments are those of Logger."""
        super().__init__(metrics, sampling=sampling)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = Path(path).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open until close()

    def log(self, metric: str, value: float, **metadata: Any) -> None:
        """Appends one value."""
        now = datetime.now(timezone.utc).isoformat()
        line = {"timestamp": now, "metric": metric, "value": float(value), "metadata": metadata}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Closes the file; logging afterwards is an error."""
        self._file.close()


def _tag(metric: str, metadata: Mapping[str, Any]) -> str:
    """The name of a curve, such as density/generation/layer_3, without what differs from call to call."""
    layer = [f"layer_{metadata['layer']}"] if "layer" in metadata else []
    return "/".join([metric, *(str(metadata[key]) for key in ("stage", "task") if metadata.get(key)), *layer])


class TensorBoardLogger(Logger):
    """Writes event files for TensorBoard, with its own writer: a curve to each metric, stage and layer, whose steps are
    the calls."""

    def __init__(
        self, folder: str | Path, metrics: Sequence[str] = (DENSITY, OUTPUT_ERROR), *, sampling: float = 1.0
    ) -> None:
        """Logs to a folder, which is created. The other arguments are those of Logger.

        Raises:
            ImportError: without the packages tensorboard and torch.
        """
        super().__init__(metrics, sampling=sampling)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"{error}; TensorBoardLogger needs torch and tensorboard: pip install tensorboard"
            ) from None
        self._writer: Any = SummaryWriter(str(folder))
        self._steps: dict[str, int] = defaultdict(int)

    def log(self, metric: str, value: float, **metadata: Any) -> None:
        """Adds one point to a curve."""
        tag = _tag(metric, metadata)
        self._writer.add_scalar(tag, float(value), self._steps[tag])
        self._steps[tag] += 1

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class WandbLogger(Logger):
    """Logs to a run of Weights & Biases, with its own client: a curve to each metric, stage and layer."""

    def __init__(
        self, metrics: Sequence[str] = (DENSITY, OUTPUT_ERROR), *, sampling: float = 1.0, **options: Any
    ) -> None:
        """Starts a run by wandb.init(**options). The other arguments are those of Logger.

        Raises:
            ImportError: without the package wandb.
        """
        super().__init__(metrics, sampling=sampling)
        try:
            import wandb
        except ImportError as error:
            raise ImportError(f"{error}; WandbLogger needs it: pip install wandb") from None
        self._run: Any = wandb.init(**options)

    def log(self, metric: str, value: float, **metadata: Any) -> None:
        """Logs one value."""
        self._run.log({_tag(metric, metadata): float(value)})

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


def replay(path: str | Path, logger: Logger) -> None:
    """Logs every line of a file of JSON lines to another logger, for instance a finished run to TensorBoard."""
    for record in records(path):
        logger.log(record["metric"], record["value"], **record["metadata"])


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


if __name__ == "__main__":
    from reticle.research import _explain

    _explain(__doc__)
