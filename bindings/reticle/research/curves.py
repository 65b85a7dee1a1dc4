"""Draws loss and retrieval against density, from the results of a grid.

    reticle evaluate --grid GRID --tasks needle --output results.json --plot DIR

runs the C++ command and `write`, which takes its results as parsed JSON. A second run with the same `--output` only
draws. docs/quality.md is drawn by the same functions. Needs matplotlib, and no torch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = list[dict[str, Any]]
STAGES = ("prefill", "generation")
_COLUMNS = 5
_DENSITIES = (5, 10, 20, 50, 100)


def use_style() -> None:
    """From here on, this process draws to files only, in the look of Reticle's pictures."""
    matplotlib.use("Agg")
    plt.style.use("reticle.pictures")


def interval(share: float, samples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was counted over `samples` independent answers."""
    z = 1.959964
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2))
    # Without rounding, the interval of nothing begins at 0, and that of everything ends at 1.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def error_bars(shares: Sequence[float], samples: int) -> list[list[float]]:
    """The distances, in %, from shares to the ends of their intervals, as matplotlib's `yerr` expects them."""
    bounds = [interval(share, samples) for share in shares]
    return [
        [100 * (share - low) for share, (low, _) in zip(shares, bounds, strict=True)],
        [100 * (high - share) for share, (_, high) in zip(shares, bounds, strict=True)],
    ]


def patterns(results: Results) -> dict[str, Results]:
    """The variants of each pattern by its name, in the order of the grid, without dense attention."""
    found: dict[str, Results] = {}
    for result in results:
        if result["config"] is not None:
            found.setdefault(result["name"], []).append(result)
    return found


def sparse_stages(results: Results) -> list[str]:
    """The stages that some pattern leaves keys out of; a window without an output has no generation."""
    return [s for s in STAGES if any(r[s] is not None and r[s]["density"] < 1 for r in results)]


def tasks_of(results: Results) -> list[tuple[str, int]]:
    """The (task, length) of each retrieval that was measured; the same for every result."""
    return [(task["task"], task["length"]) for task in results[0]["retrieval"]]


def _panels(results: Results, draw: Callable[[Axes, Results], None]) -> Figure:
    """One panel per pattern on shared axes: some twenty lines in one panel cannot be told apart."""
    found = patterns(results)
    columns = min(_COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(2.3 * columns + 0.4, 1.7 * rows + 0.8),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    panels: Iterator[Axes] = iter(grid.flat)
    for (name, variants), axes in zip(found.items(), panels, strict=False):
        draw(axes, variants)
        axes.set_title(name if len(name) < 28 else name.replace(", ", ",\n"), fontsize=9)
    for axes in panels:
        axes.set_visible(False)
    first: Axes = grid[0, 0]
    first.set_xscale("log")
    first.set_xticks(_DENSITIES, labels=[str(density) for density in _DENSITIES])
    first.minorticks_off()
    return figure


def loss_figure(results: Results, stage: str) -> Figure:
    """Loss above dense against the stage's density; every panel has the other patterns in grey."""
    dense = results[0]["loss"]

    def points(variants: Results) -> tuple[list[float], list[float]]:
        pairs = sorted((100 * r[stage]["density"], r["loss"] - dense) for r in variants)
        return [x for x, _ in pairs], [y for _, y in pairs]

    def draw(axes: Axes, variants: Results) -> None:
        for others in patterns(results).values():
            axes.plot(*points(others), color="0.85", linewidth=0.7, zorder=1)
        axes.plot(*points(variants), marker="o", zorder=2)

    figure = _panels(results, draw)
    figure.supxlabel(f"density of the {stage}, % of the keys that causality leaves", fontsize=10)
    figure.supylabel(f"loss above dense ({dense:.3f}), nats per token", fontsize=10)
    return figure


def retrieval_figure(results: Results, stage: str, samples: int) -> Figure:
    """Whole answers that are right against the stage's density, with 95 % intervals, one line per task and length."""
    tasks = tasks_of(results)
    lengths = {length for _, length in tasks}

    def draw(axes: Axes, variants: Results) -> None:
        for i, (task, length) in enumerate(tasks):
            points = sorted((100 * r["retrieval"][i][stage]["density"], r["retrieval"][i]["exact"]) for r in variants)
            axes.errorbar(
                [x for x, _ in points],
                [100 * y for _, y in points],
                yerr=error_bars([y for _, y in points], samples),
                # Lines often coincide, at 100 %: the first shows below the dashes of the next.
                linestyle=("-", "--")[i % 2],
                marker="os^D"[i % 4],
                elinewidth=0.6,
                label=task if len(lengths) == 1 else f"{task}, {length} bytes",
            )

    figure = _panels(results, draw)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    figure.supxlabel(f"density of the {stage}, % of the keys that causality leaves", fontsize=10)
    figure.supylabel("whole answers that are right, %", fontsize=10)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Writes and closes a figure."""
    figure.savefig(path)
    plt.close(figure)
    return path


def write(document: dict[str, Any], folder: str | Path) -> list[Path]:
    """Writes loss_<stage>.png and, where tasks were measured, retrieval_<stage>.png of each stage that is sparse.

    Raises:
        ValueError: when no pattern leaves anything out, so that there is nothing to draw.
    """
    use_style()
    results, target = document["results"], Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = [save(loss_figure(results, stage), target / f"loss_{stage}.png") for stage in sparse_stages(results)]
    for stage in STAGES if results[0]["retrieval"] else ():
        tasks: Sequence[Any] = [task for result in results for task in result["retrieval"]]
        if any(task[stage] is not None and task[stage]["density"] < 1 for task in tasks):
            samples = document["settings"]["samples"]
            paths.append(save(retrieval_figure(results, stage, samples), target / f"retrieval_{stage}.png"))
    if not paths:
        raise ValueError("every pattern kept all keys, or only dense attention was measured; there is nothing to draw")
    return paths


if __name__ == "__main__":
    from reticle.research import _explain

    _explain(__doc__)
