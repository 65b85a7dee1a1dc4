"""Search over configs: which maskers reach which density at which error.

    from reticle.research import search
    from reticle.maskers import LocalConfig, OracleTopKConfig, SinkConfig

    space = [
        SinkConfig(sink_size=128),
        LocalConfig(window_size=search.choice(64, 128, 256)),
        OracleTopKConfig(heavy_size=search.choice(0.01, 0.02, 0.05, 0.1)),
    ]
    trials = search.run(space, search.TensorMeasure("attention.safetensors"), objective=search.at_density(10))
    best = trials.iloc[0]                # a DataFrame, best score first
    search.plot_pareto(trials)

Any field of any config may be a `choice`. Trials run in a local pool of processes, or on Ray Tune with `ray=True`,
which distributes them over machines; both give the same results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import pickle
import random
import time
import types
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import reticle._core as _core
from reticle import maskers

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from reticle._masker import MaskerConfig

Maskers = Sequence["MaskerConfig | Mapping[str, Any]"]
Measure = Callable[[list[dict[str, Any]]], Mapping[str, float]]
"""From the maskers of a trial, as in JSON, to at least "error" and "density". Picklable, for the pool's processes."""
Objective = Callable[[float, float], float]
"""From error and density to a score; lower is better."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The values that a field may take."""

    values: tuple[Any, ...]


def choice(*values: Any) -> Any:
    """Marks a field whose value the search chooses among `values`."""
    if not values:
        raise ValueError("choice() needs values")
    return Choice(values)


# --- objectives of sparse-attention-hub -------------------------------------------------------------------------------


def at_density(percent: float) -> Objective:
    """The error, if the density is at most `percent` %; excess density costs ten times as much as error."""

    def score(error: float, density: float) -> float:
        return 0.99 * error + 0.01 * density + 10 * max(0.0, density - percent / 100)

    return score


def balanced(error: float, density: float) -> float:
    """The error plus a tenth of the density; a density above one half is ruled out."""
    return error + 0.1 * density + (5.0 if density > 0.5 else 0.0)


# --- measures ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TensorMeasure:
    """Error against dense attention on recorded tensors: a safetensors file with layers.<N>.queries, .keys and .values,
    such as examples/data/attention_4096.safetensors, or with the same names without layers.<N>.

    The last `queries` queries are generated one by one, as in decoding (stage "generation"), or computed at once (stage
    "prefill").
    """

    path: str | Path
    queries: int = 16
    stage: str = "generation"
    causal: bool = True

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise ValueError(f"queries is {self.queries}; expected at least 1")
        if self.stage not in ("prefill", "generation"):
            raise ValueError(f'stage is {self.stage!r}; expected "prefill" or "generation"')

    def identity(self) -> str:
        """A digest of the file's content and the settings, which tells results of this measure from those of
        another."""
        content = hashlib.sha256(_core.read_file(self.path)).hexdigest()[:16]
        return f"TensorMeasure {content} {self.queries} {self.stage} {self.causal}"

    def __call__(self, trial: list[dict[str, Any]]) -> dict[str, float]:
        import numpy as np

        tensors = _core.load_tensors(str(self.path))
        layers = sorted({name.rpartition(".")[0] for name in tensors if name.endswith("queries")})
        if not layers:
            raise ValueError(f"{self.path}: has no tensor named queries; there are {', '.join(sorted(tensors)[:9])}")
        pipeline = _core.SparseAttention.from_json(json.dumps({"maskers": trial, "causal": self.causal}))
        squares, dense_squares, densities = 0.0, 0.0, []
        for layer in layers:
            q, k, v = (tensors[f"{layer}.{name}".lstrip(".")] for name in ("queries", "keys", "values"))
            last = min(self.queries, q.shape[2])
            steps = range(q.shape[2] - last, q.shape[2]) if self.stage == "generation" else [None]
            state = _core.SequenceState()
            for step in steps:
                rows = slice(-last, None) if step is None else slice(step, step + 1)
                until = None if step is None else k.shape[2] - q.shape[2] + step + 1
                own_q, own_k, own_v = q[:, :, rows], k[:, :, :until], v[:, :, :until]
                stage: Any = self.stage
                output, _, measured = pipeline.measure(own_q, own_k, own_v, state, stage=stage, compare=False)
                dense, _ = _core.attention(own_q, own_k, own_v, causal=self.causal)
                squares += float(np.square(dense.astype(np.float64) - output.astype(np.float64)).sum())
                dense_squares += float(np.square(dense.astype(np.float64)).sum())
                densities.append(measured["visible_density"])
        return {
            "error": (squares / dense_squares) ** 0.5 if dense_squares else squares**0.5,
            "density": sum(densities) / len(densities),
        }


# --- trials -----------------------------------------------------------------------------------------------------------


def _plain(space: Maskers) -> list[dict[str, Any]]:
    return [entry.to_dict() if hasattr(entry, "to_dict") else dict(entry) for entry in space]


def _choices(space: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """ "<place>.<masker>.<field>" -> values."""
    return {
        f"{place}.{entry['type']}.{name}": value.values
        for place, entry in enumerate(space)
        for name, value in entry.items()
        if isinstance(value, Choice)
    }


def _chosen(space: list[dict[str, Any]], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {name: values.get(f"{place}.{entry['type']}.{name}", value) for name, value in entry.items()}
        for place, entry in enumerate(space)
    ]


def candidates(space: Maskers, samples: int | None = None, seed: int = 0) -> list[list[dict[str, Any]]]:
    """Every combination of a space's choices, or a random sample of `samples` of them without repetition.

    Raises:
        ConfigError: for a combination that a masker refuses, with its place; no combination is skipped silently.
    """
    plain = _plain(space)
    choices = _choices(plain)
    grid = list(itertools.product(*choices.values()))
    if samples is not None and samples < 1:
        raise ValueError(f"samples is {samples}; expected at least 1, or None for all")
    if samples is not None and samples < len(grid):
        grid = random.Random(seed).sample(grid, samples)
    trials = [_chosen(plain, dict(zip(choices, values, strict=True))) for values in grid]
    for trial in trials:
        _core.SparseAttention.from_json(json.dumps({"maskers": trial}))
    return trials


def _measured(measure: Measure, trial: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of a measure, or the reason of its failure: one bad trial does not end a search."""
    began = time.perf_counter()
    try:
        found: dict[str, Any] = {key: float(value) for key, value in measure(trial).items()}
        missing = {"error", "density"} - set(found)
        if missing:
            raise ValueError(f"the measure gave no {' and no '.join(sorted(missing))}")
    except Exception as failure:
        found = {"failure": f"{type(failure).__name__}: {failure}"}
    return {**found, "seconds": time.perf_counter() - began}


def _with_ray(
    measure: Measure, trials: list[list[dict[str, Any]]], keep: Callable[[int, dict[str, Any]], None]
) -> None:
    from ray import tune

    def trainable(config: dict[str, Any]) -> dict[str, Any]:
        return {"index": config["index"], "result": json.dumps(_measured(measure, trials[config["index"]]))}

    tuner = tune.Tuner(trainable, param_space={"index": tune.grid_search(list(range(len(trials))))})
    for result in tuner.fit():
        keep(result.metrics["index"], json.loads(result.metrics["result"]))


def _with_pool(
    measure: Measure,
    trials: list[list[dict[str, Any]]],
    keep: Callable[[int, dict[str, Any]], None],
    workers: int,
) -> None:
    if workers <= 1:
        for index, trial in enumerate(trials):
            keep(index, _measured(measure, trial))
        return
    # Spawned, because a forked child would inherit the library's thread pool without its threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(_measured, measure, trial): index for index, trial in enumerate(trials)}
        for done in as_completed(running):
            keep(running[done], done.result())


_BEGINNING = '{"maskers": '
"""The beginning of every line of a search's file."""


def _identity(measure: Measure) -> str:
    """A name and a digest of a measure: its `identity()` if it has one, else from a function's code, or its pickle."""
    identity = getattr(measure, "identity", None)
    if identity is not None:
        return str(identity())
    content: bytes
    if isinstance(measure, types.FunctionType):
        code = measure.__code__
        plain = (int, float, str, bool, type(None))
        held = [cell.cell_contents for cell in measure.__closure__ or ()]
        shown = [repr(value) if isinstance(value, plain) else type(value).__qualname__ for value in held]
        constants = [repr(value) for value in code.co_consts if isinstance(value, plain)]
        content = code.co_code + repr((measure.__qualname__, code.co_names, constants, shown)).encode()
    else:
        content = pickle.dumps(measure)
    return f"{type(measure).__qualname__} {hashlib.sha256(content).hexdigest()[:16]}"


def _kept(output: Path, measure: str) -> dict[str, dict[str, Any]]:
    """Results of earlier runs with this measure, by maskers. A last line that a stopped run left incomplete is removed.

    Raises:
        ValueError: for a file that a search did not write, or that belongs to another measure.
    """
    if not output.exists():
        return {}
    try:
        lines = _core.read_file(output).decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{output}: is not a file of a search; choose another output") from None
    found: dict[str, dict[str, Any]] = {}
    whole: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            key, result, measured = json.dumps(record["maskers"], sort_keys=True), record["result"], record["measure"]
        except (ValueError, KeyError, TypeError) as error:
            was_cut = line.startswith(_BEGINNING) or _BEGINNING.startswith(line)
            if number == len(lines) and was_cut:
                _core.write_file(output, "".join(whole).encode())
                break
            raise ValueError(f"{output}, line {number}: is not a result of a search: {error}") from error
        if measured != measure:
            raise ValueError(f"{output}: holds results of another measure; choose another output")
        found[key] = result
        whole.append(line + "\n")
    return found


def run(
    space: Maskers,
    measure: Measure,
    *,
    objective: Objective = balanced,
    samples: int | None = None,
    seed: int = 0,
    workers: int = 1,
    ray: bool = False,
    output: str | Path | None = None,
    progress: bool = True,
) -> pandas.DataFrame:
    """Measures every candidate of a space; a DataFrame, best score first, failures last.

    Args:
        space: masker configs, whose fields may be `choice`s, or the same as dicts.
        measure: a Measure: TensorMeasure, or your own, for instance of a model.
        objective: at_density(percent), balanced, or your own.
        samples: the number of combinations to measure, drawn at random; None: all.
        workers: the number of processes in the local pool; 1: run in this process.
        ray: run the trials on Ray Tune, which distributes them over its cluster.
        output: a JSON-lines file for one measure, to which trials are appended as they end; trials that it contains are
            not repeated.

    Columns: score, error, density, other results of the measure, seconds, failure (None, or why there is no score), the
    chosen values by "<place>.<masker>.<field>", and maskers, the config as JSON.
    """
    import pandas
    from tqdm.auto import tqdm

    trials = candidates(space, samples, seed)
    keys = [json.dumps(trial, sort_keys=True) for trial in trials]
    found: dict[str, dict[str, Any]] = {}
    identity = _identity(measure)
    if output is not None:
        found = _kept(Path(output), identity)
    # Failed trials are repeated.
    missing = [i for i, key in enumerate(keys) if key not in found or "failure" in found[key]]
    with tqdm(total=len(trials), initial=len(trials) - len(missing), desc="search", disable=not progress) as bar:

        def keep(index: int, result: dict[str, Any]) -> None:
            trial = trials[missing[index]]
            found[keys[missing[index]]] = result
            if output is not None:
                Path(output).parent.mkdir(parents=True, exist_ok=True)
                with Path(output).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"maskers": trial, "result": result, "measure": identity}) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            bar.update()

        left = [trials[i] for i in missing]
        if ray:
            _with_ray(measure, left, keep)
        else:
            _with_pool(measure, left, keep, workers)
    choices = _choices(_plain(space))
    rows = []
    for trial, key in zip(trials, keys, strict=True):
        result = found[key]
        failed = "failure" in result
        chosen = {name: trial[int(name.split(".")[0])][name.split(".")[2]] for name in choices}
        score = float("inf") if failed else objective(result["error"], result["density"])
        rows.append({"score": score, "failure": None, **result, **chosen, "maskers": json.dumps(trial)})
    return pandas.DataFrame(rows).sort_values("score", kind="stable", ignore_index=True)


def pareto(trials: pandas.DataFrame) -> pandas.DataFrame:
    """The trials that no other trial beats in both error and density, by density."""
    whole = trials[trials["failure"].isna()].sort_values(["density", "error"])
    return whole[whole["error"] < whole["error"].cummin().shift(fill_value=float("inf"))]


def plot_pareto(trials: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """Plots error against density for every trial, with a line through those that no other beats."""
    import matplotlib.pyplot as plt

    axes = plt.subplots()[1] if ax is None else ax
    front = pareto(trials)
    axes.scatter(100 * trials["density"], trials["error"], color="0.7", label="trials")
    axes.plot(100 * front["density"], front["error"], "o-", label="Pareto front")
    axes.set_xlabel("keys attended, %")
    axes.set_ylabel("relative output error")
    axes.legend()
    return axes


def best_pipeline(trials: pandas.DataFrame, *, causal: bool = False) -> _core.SparseAttention:
    """The pipeline of the best trial; ValueError when none succeeded."""
    if trials.empty or isinstance(trials.iloc[0]["failure"], str):
        raise ValueError("no trial succeeded; see the column failure")
    return maskers.pipeline(
        [maskers.from_dict(entry) for entry in json.loads(trials.iloc[0]["maskers"])], causal=causal
    )


if __name__ == "__main__":
    from reticle.research import _explain

    _explain(__doc__)
