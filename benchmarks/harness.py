"""Timing by interleaved repeats, and the table and chart in docs/performance.md."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Work = Callable[[], object]


class Median(float):
    """A median of repeats, with their spread: half of the interquartile range, as a share of the median."""

    spread: float = 0.0

    @classmethod
    def of(cls, taken: list[float]) -> Median:
        median = cls(statistics.median(taken))
        low, _, high = statistics.quantiles(taken, n=4)
        median.spread = (high - low) / 2 / median
        return median


@dataclasses.dataclass
class Row:
    """One comparison: `ours` and `peer` are seconds, `reach` the target ratio, `limit` a share of a machine limit."""

    section: str
    workload: str
    peer_name: str
    ours: float
    peer: float
    reach: float
    limit: float | None = None
    limit_name: str = ""

    @property
    def ratio(self) -> float:
        return self.peer / self.ours

    @property
    def noise(self) -> float:
        """The share by which the ratio varies between repeats."""
        return sum(getattr(taken, "spread", 0.0) for taken in (self.ours, self.peer))

    @property
    def name(self) -> str:
        return f"{self.section}: {self.workload}, {self.peer_name}"


def once(work: Work, loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        work()
    return (time.perf_counter() - start) / loops


def interleaved(works: list[Work], *, repeats: int = 7, least: float = 0.02, budget: float = 12.0) -> list[Median]:
    """Median seconds of each piece of work. Repeats alternate, so that a slow phase of the machine slows all of them.

    Fast work is looped until a repeat takes `least` seconds; slow work has fewer repeats, to stay within `budget`
    seconds.
    """
    loops = []
    spent = 0.0
    for work in works:
        first = once(work, 1)
        spent += first
        loops.append(max(1, min(10_000, int(least / max(first, 1e-7)))))
    repeats = max(3, min(repeats, int(budget / max(spent, least * len(works)))))
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, count, taken in zip(works, loops, times, strict=True):
            taken.append(once(work, count))
    return [Median.of(taken) for taken in times]


def limits(folder: Path) -> dict[str, object]:
    """The machine's limits, from benchmarks/machine_limits, and a "row_reader", from benchmarks/row_reader.cpp."""
    printed = subprocess.run([folder / "benchmarks" / "machine_limits"], capture_output=True, text=True, check=True)
    return {**json.loads(printed.stdout), "row_reader": RowReader(folder)}


class RowReader:
    """Reads rows of torch tensors with all threads, without computing anything."""

    # Prefetch distances in bytes; the fastest one is the machine's limit.
    AHEAD = (4096, 16384, 65536)

    def __init__(self, folder: Path) -> None:
        self._read = ctypes.CDLL(str(folder / "benchmarks" / "libbench_row_reader.so")).reticle_bench_read_rows

    def works(self, tensors: list[Any], chosen: Any) -> list[Work]:
        """One piece of work per distance, which reads the rows selected by a bool array (groups, n) of contiguous
        tensors (1, groups, n, width)."""
        lists = [np.flatnonzero(rows).astype(np.int32) for rows in chosen] * len(tensors)
        row_bytes = tensors[0].shape[-1] * tensors[0].element_size()
        bases = [group.data_ptr() for tensor in tensors for group in tensor[0]]
        pointers = (ctypes.c_void_p * len(lists))(*bases)
        indices = (ctypes.c_void_p * len(lists))(*(each.ctypes.data for each in lists))
        counts = (ctypes.c_int64 * len(lists))(*map(len, lists))
        sizes = (ctypes.c_int64(len(lists)), ctypes.c_int64(row_bytes))

        def read(ahead: int, kept: object = (lists, tensors)) -> None:
            self._read(pointers, indices, counts, *sizes, ctypes.c_int64(max(1, ahead // row_bytes)))

        return [lambda ahead=ahead: read(ahead) for ahead in self.AHEAD]


def machine(measured: dict[str, object]) -> str:
    """One line with the machine's name and the peers' versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    read = measured["read"]
    assert isinstance(read, list)
    versions = ", ".join(
        f"{name} {sys.modules[name].__version__}"
        for name in ("numpy", "scipy", "torch", "onnxruntime", "graphblas", "pyroaring")
        if name in sys.modules
    )
    return (
        f"{model}, {measured['threads']} cores; reads {read[0] / 1e9:.0f} GB/s with one thread and {read[1] / 1e9:.0f} with "
        f"all, copies {float(str(measured['copy'])) / 1e9:.0f} GB/s, {float(str(measured['multiply_add'])) / 1e9:.0f} "
        f"Gflop/s of float32 multiply-adds a core. Python {platform.python_version()}, {versions}."
    )


def seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def line(row: Row) -> str:
    limit = "" if row.limit is None else f"{100 * row.limit:.0f} % of {row.limit_name}"
    return (
        f"| {row.workload} | {seconds(row.ours)} | {row.peer_name} | {seconds(row.peer)} | {row.ratio:.3g}x | {limit} |"
    )


def save(rows: list[Row], about: str, path: Path) -> None:
    """Writes the ratios of rows and their noise, for a later `fallen`."""
    ratios = {row.name: {"ratio": row.ratio, "noise": row.noise} for row in rows}
    path.write_text(json.dumps({"machine": about, "rows": ratios}, indent=1) + "\n")


#: The least fall that counts: medians of interleaved repeats vary by about this from run to run. However noisy the rows,
#: a fall by half counts.
LEAST_FALL, SURE_FALL = 0.1, 0.5


def saved_ratios(path: Path) -> dict[str, tuple[float, float]]:
    """(ratio, noise) of each row of a saved run."""
    try:
        saved = json.loads(path.read_text())["rows"]
        ratios = {name: (float(row["ratio"]), float(row["noise"])) for name, row in saved.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path}: {error!r}; expected a file that --save has written") from error
    for name, numbers in ratios.items():
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise SystemExit(f"{path}: {name}: ratio {numbers[0]} and noise {numbers[1]}; expected finite numbers")
    return ratios


def fallen(rows: list[Row], path: Path) -> list[str]:
    """A line for each row whose ratio is below that of a saved run by more than the noise of both, and for each row
    that the saved run has and this one lacks. Times are not compared: they differ between machines."""
    before = saved_ratios(path)
    now = {row.name: row for row in rows}
    sections = {row.section for row in rows}
    lines = []
    for name, (ratio, noise) in before.items():
        if name not in now:
            if name.split(": ")[0] in sections:
                lines.append(f"{name}: was {ratio:.3g}x and was not measured now")
            continue
        allowed = min(SURE_FALL, max(LEAST_FALL, 2 * (noise + now[name].noise)))
        if now[name].ratio < ratio * (1 - allowed):
            lines.append(f"{name}: {ratio:.3g}x fell to {now[name].ratio:.3g}x, more than the noise of {allowed:.0%}")
    return lines


def by_section(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by section, in the order of the sections' first rows."""
    sections: dict[str, list[Row]] = {}
    for row in rows:
        sections.setdefault(row.section, []).append(row)
    return sections


def table(rows: list[Row]) -> str:
    """A Markdown table per section."""
    text = []
    for section, section_rows in by_section(rows).items():
        text += [
            "",
            f"### {section}",
            "",
            "| workload | Reticle | peer | its time | times as fast | share of the limit |",
        ]
        text += ["|---|---|---|---|---|---|", *map(line, section_rows)]
    return "\n".join(text) + "\n"


def lines(series: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Draws seconds against keys, both logarithmic, a line per name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.style.use(Path(__file__).parents[1] / "bindings/reticle/pictures.mplstyle")
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for (name, points), marker in zip(series.items(), "os^vDPX*<>", strict=False):
        axes.plot([keys for keys, _ in points], [1e3 * taken for _, taken in points], marker=marker, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("keys")
    axes.set_ylabel("ms per step")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def chart(rows: list[Row], path: Path) -> None:
    """Draws speed-ups on a logarithmic axis: a line per section and peer, a dot per row, a bar at the median."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.style.use(Path(__file__).parents[1] / "bindings/reticle/pictures.mplstyle")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row.section} / {row.peer_name}", []).append(row)
    figure, axes = plt.subplots(figsize=(9, 0.28 * len(groups) + 1))
    for i, group in enumerate(groups.values()):
        colours = ["#009e73" if row.ratio >= 1 else "#d55e00" for row in group]
        axes.scatter([row.ratio for row in group], [i] * len(group), c=colours, s=14, alpha=0.7)
        axes.scatter(statistics.median(row.ratio for row in group), i, marker="|", color="black", s=160)
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("times as fast as the peer (orange: slower); bar: the median")
    figure.tight_layout()
    figure.savefig(path)
