"""sparse-attention-hub's MicroMetricLogger: one logger per process, which writes micro_metrics.jsonl in a folder."""

from __future__ import annotations

import atexit
import inspect
import json
import os
import random
import time
from collections import deque
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

FILE = "micro_metrics.jsonl"
MAX_WAITING = 10000
"""Events that wait at most; they are written before one is lost."""


@dataclass
class LogEvent:
    """A line of the log."""

    timestamp: datetime
    metric: str
    value: Any
    metadata: dict[str, Any]
    location: str
    """Who logged: "module.Class.function"."""


class MicroMetricLogger:
    """Writes the enabled metrics once a folder is configured; every `MicroMetricLogger()` is the same object.

    `reticle.research.metrics.records` and `summary` read its file. Nothing is dropped: events are written after every
    `flush_every` events, after `flush_interval` seconds, by `flush`, and when the process ends.
    """

    _instance: ClassVar[MicroMetricLogger | None] = None
    _registered_metrics: ClassVar[dict[str, type]] = {}

    log_path: str | None
    flush_every: int
    flush_interval: float
    enabled_metrics: set[str]
    log_queue: deque[LogEvent]
    """What waits to be written."""
    max_records: int | None
    sampling_factor: float

    def __new__(cls, *args: Any, **kwargs: Any) -> MicroMetricLogger:
        if cls._instance is None:
            made = super().__new__(cls)
            made.log_queue, made.enabled_metrics = deque(maxlen=MAX_WAITING), set()
            made._written, made._random, made.last_flush_time = 0, random.Random(0), time.time()
            made.log_path, made.max_records, made.sampling_factor = None, None, 1.0
            made.flush_every, made.flush_interval = 1000, 60.0
            cls._instance = made
        return cls._instance

    def __init__(
        self,
        log_path: str | Path | None = None,
        flush_every: int | None = None,
        flush_interval: float | None = None,
        enabled_metrics: Iterable[str] | Literal["all"] | None = None,
        max_records: int | None = None,
        sampling_factor: float = 1.0,
    ) -> None:
        """Configures the logger of the process. A log_path makes it log there from now on, unless another folder is
        configured already: then it only warns.

        Args:
            flush_every, flush_interval: number of events, and seconds, after which the next event writes all pending
                ones.
            enabled_metrics, max_records, sampling_factor: as `configure_logging` takes them.
        """
        self._written: int
        self._random: random.Random
        self.last_flush_time: float
        if log_path is not None and self.log_path not in (None, str(log_path)):
            _warn(f"logs to {self.log_path} already, not to {log_path}; call configure_logging to change it")
            return
        self.flush_every = self.flush_every if flush_every is None else flush_every
        self.flush_interval = self.flush_interval if flush_interval is None else flush_interval
        if log_path is not None:
            self.configure_logging(log_path, enabled_metrics, max_records, sampling_factor)

    @classmethod
    def register_metric(cls, identifier: str, dtype: type) -> None:
        """Registers a metric; `log` refuses values that are neither of type `dtype` nor None."""
        before = cls._registered_metrics.get(identifier, dtype)
        if before is not dtype:
            _warn(f"Metric '{identifier}' is being re-registered, as {dtype.__name__}; it was {before.__name__}")
        cls._registered_metrics[identifier] = dtype

    @classmethod
    def get_registered_metrics(cls) -> dict[str, type]:
        """All registered metrics and their types."""
        return dict(cls._registered_metrics)

    def configure_logging(
        self,
        log_path: str | Path,
        enabled_metrics: Iterable[str] | Literal["all"] | None = None,
        max_records: int | None = None,
        sampling_factor: float = 1.0,
    ) -> None:
        """Logs to a folder, which is created, from now on; pending events go to the previous folder.

        Args:
            enabled_metrics: "all" registered metrics, or names; None: none.
            max_records: the largest number of records to write.
            sampling_factor: share of the events that are kept; below 0 none are, above 1 all.

        Raises:
            ValueError: for a sampling_factor that is not a number.
        """
        share = min(max(0.0, float(sampling_factor)), 1.0)
        if share != sampling_factor:
            _warn(f"sampling_factor is {sampling_factor}; it is taken for {share}")
        self.flush()
        Path(log_path).mkdir(parents=True, exist_ok=True)
        self.log_path, self.max_records, self.sampling_factor = str(log_path), max_records, share
        self._written = 0
        self.enable_metrics(enabled_metrics)

    def enable_metrics(self, metrics: Iterable[str] | Literal["all"] | None = None) -> None:
        """Sets the metrics to log from now on; unregistered ones are ignored with a warning."""
        wanted = set(self._registered_metrics) if metrics == "all" else set(metrics or ())
        unknown = sorted(wanted - set(self._registered_metrics))
        if unknown:
            there = ", ".join(sorted(self._registered_metrics)) or "none"
            _warn(f"Attempting to enable unregistered metrics: {', '.join(unknown)}; registered: {there}")
        self.enabled_metrics = wanted.difference(unknown)

    def is_metric_enabled(self, identifier: str) -> bool:
        """True if the metric will be logged, so that computing it is worthwhile."""
        return identifier in self.enabled_metrics

    def get_enabled_metrics(self) -> set[str]:
        """A copy of the set of enabled metrics."""
        return set(self.enabled_metrics)

    def is_logging_configured(self) -> bool:
        """True if a folder is configured."""
        return self.log_path is not None

    def get_max_records(self) -> int | None:
        """The largest number of records to write; None: no limit."""
        return self.max_records

    def get_total_records_logged(self) -> int:
        """The number of records since logging was configured."""
        return self._written

    def get_records_remaining(self) -> int | None:
        """The number of records until the limit; None: no limit."""
        return None if self.max_records is None else max(0, self.max_records - self._written)

    def is_max_records_reached(self) -> bool:
        """True if the limit is reached and nothing more is written."""
        return self.get_records_remaining() == 0

    def get_sampling_factor(self) -> float:
        """The share of the events that are kept."""
        return self.sampling_factor

    def log(self, identifier: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        """Logs one event; warns if no folder is configured or the metric is not enabled."""
        if self.log_path is None:
            _warn(f"Cannot log metric '{identifier}' - log_path not defined")
            return
        if identifier not in self.enabled_metrics:
            _warn(f"Attempting to log metric '{identifier}' which is not enabled")
            return
        expected = self._registered_metrics[identifier]
        fits = (float, int) if expected is float else expected
        logged, known = _plain(identifier, value), _plain(identifier, metadata or {})
        if value is not None and not (isinstance(value, fits) or isinstance(logged, fits)):
            raise TypeError(f"metric {identifier!r} is {type(value).__name__}; it is registered as {expected.__name__}")
        if self.is_max_records_reached() or self._random.random() >= self.sampling_factor:
            return
        self._written += 1
        self.log_queue.append(LogEvent(datetime.now(), identifier, logged, known, _caller()))
        waited = time.time() - self.last_flush_time
        if len(self.log_queue) >= min(self.flush_every, MAX_WAITING) or waited >= self.flush_interval:
            self.flush()

    def flush(self) -> None:
        """Writes all pending events."""
        self.last_flush_time = time.time()
        if not self.log_queue or self.log_path is None:
            return
        events = [asdict(event) for event in self.log_queue]
        lines = [json.dumps({**event, "timestamp": event["timestamp"].isoformat()}) + "\n" for event in events]
        with Path(self.log_path, FILE).open("a", encoding="utf-8") as file:
            file.write("".join(lines))
        self.log_queue.clear()


def _plain(identifier: str, value: Any) -> Any:
    """A copy that JSON can hold, with numpy's and torch's numbers as Python's; later changes of `value` do not affect
    it."""

    def number(given: Any) -> Any:
        if hasattr(given, "item") and getattr(given, "ndim", 0) == 0:
            return given.item()
        raise TypeError(f"a {type(given).__name__}")

    try:
        return json.loads(json.dumps(value, default=number))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"metric {identifier!r} holds what JSON does not: {error}; expected numbers, text, lists, dicts"
        ) from None


def _warn(message: str) -> None:
    """Prints to standard output, as sparse-attention-hub's warnings do."""
    print(f"Warning: {message}")


def _caller() -> str:
    """ "module.function" of the caller of `log`; "module.Class.function" if Python knows the class."""
    frame = inspect.currentframe()
    for _ in range(2):
        frame = frame.f_back if frame is not None else None
    if frame is None:
        return "unknown"
    function = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
    return f"{frame.f_globals.get('__name__', 'unknown')}.{function}"


def _forget_what_waits() -> None:
    """Drops a forked child's copies of pending events, which the parent will write."""
    if MicroMetricLogger._instance is not None:
        MicroMetricLogger._instance.log_queue.clear()


os.register_at_fork(after_in_child=_forget_what_waits)
atexit.register(lambda: MicroMetricLogger().flush())
