"""sparse-attention-hub's plots of attention."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_MAX_ANNOTATED = 16  # cells per side up to which numbers are written into them


class Granularity(enum.Enum):
    """The meaning of one point in a plot."""

    PER_TOKEN = "per_token"
    PER_HEAD = "per_head"
    PER_LAYER = "per_layer"

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return f"Granularity.{self.name}"


class PlotGenerator:
    """Draws PNG files into a folder, which is created. Needs matplotlib.

    Line plots take {name: numbers}, one line each, over tokens or layers; the heat map takes
    {"attention_matrix": (queries, keys)}. This draws the given data, unlike sparse-attention-hub, which draws invented
    numbers when it is given none, and no lines when it is given some. A file is named after its content.
    """

    def __init__(self, storage_path: str | Path = "./plots") -> None:
        self.storage_path = ""
        self.set_storage_path(storage_path)

    def set_storage_path(self, path: str | Path) -> None:
        """Sets the folder for plots from now on, creating it if missing."""
        Path(path).mkdir(parents=True, exist_ok=True)
        self.storage_path = str(path)

    def generate_plot(
        self, granularity: Granularity, data: Mapping[str, Any] | None = None, plot_type: str = "default"
    ) -> str:
        """A picture of `data`: lines over tokens or layers, or for PER_HEAD the heat map of an attention matrix.

        Returns:
            The path of the file.

        Raises:
            ValueError: when the data are empty or do not have the form of this granularity.
        """
        import matplotlib.pyplot as plt

        if not isinstance(granularity, Granularity):
            raise ValueError(f"Unsupported granularity: {granularity!r}; expected a Granularity")
        if plot_type != "default":
            raise ValueError(f'plot_type: {plot_type!r} is not supported; expected "default"')
        if not data:
            raise ValueError('data: expected {name: numbers}, or {"attention_matrix": (queries, keys)} for PER_HEAD')
        if granularity is not Granularity.PER_HEAD:
            return self._lines("plot", "Sparse attention", data, granularity)
        if data.get("attention_matrix") is None:
            raise ValueError("attention_matrix required in data for heatmap")
        matrix = _numbers("attention_matrix", data["attention_matrix"], 2)
        figure, axis = plt.subplots(figsize=(8, 8), layout="constrained")
        image = axis.imshow(matrix, cmap="viridis", interpolation="nearest")
        figure.colorbar(image, ax=axis, label="Attention weight", shrink=0.8)
        if max(matrix.shape) <= _MAX_ANNOTATED:
            _write_cells(axis, matrix)
        axis.set(title="Attention matrix, per head", xlabel="Key position", ylabel="Query position")
        return self._save(figure, "heatmap", granularity, {"attention_matrix": matrix})

    def generate_comparison_plot(self, data_dict: Mapping[str, Any], granularity: Granularity) -> str:
        """Draws lines of {name: numbers} over tokens, heads or layers in one plot; returns its path."""
        if not data_dict:
            raise ValueError("data_dict: expected {name: numbers}")
        return self._lines("comparison", "Comparison", data_dict, granularity)

    def _lines(self, kind: str, title: str, data: Mapping[str, Any], granularity: Granularity) -> str:
        import matplotlib.pyplot as plt

        lines = {str(name): _numbers(str(name), values, 1) for name, values in data.items()}
        figure, axis = plt.subplots(figsize=(10, 6), layout="constrained")
        for name, values in lines.items():
            axis.plot(values, marker="." if len(values) <= 64 else "", label=name)
        what = granularity.value.removeprefix("per_")
        axis.set(title=f"{title}, per {what}", xlabel=what.capitalize(), ylabel="Value")
        axis.grid(alpha=0.3)
        axis.legend()
        return self._save(figure, kind, granularity, lines)

    def _save(self, figure: Any, kind: str, granularity: Granularity, shown: Mapping[str, NDArray[np.float64]]) -> str:
        import matplotlib.pyplot as plt

        content = hashlib.sha256()
        for name, values in shown.items():
            content.update(f"{name}\0{values.shape}\0".encode())
            content.update(values.tobytes())
        path = Path(self.storage_path) / f"{kind}_{granularity.value}_{content.hexdigest()[:12]}.png"
        figure.savefig(path, dpi=150)
        plt.close(figure)
        return str(path)


def _numbers(name: str, values: Any, rank: int) -> NDArray[np.float64]:
    given = values.detach().cpu().double().numpy() if hasattr(values, "detach") else values
    try:
        numbers = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers; {error}") from None
    if numbers.ndim != rank or numbers.size == 0:
        raise ValueError(f"{name}: expected numbers of {rank} dimension{'s' * (rank > 1)}, given shape {numbers.shape}")
    return numbers


def _write_cells(axis: Axes, matrix: NDArray[np.float64]) -> None:
    middle = (matrix.min() + matrix.max()) / 2
    for (row, column), value in np.ndenumerate(matrix):
        color = "black" if value > middle else "white"
        axis.text(column, row, f"{value:.2g}", ha="center", va="center", color=color, fontsize=8)
