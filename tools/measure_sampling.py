#!/usr/bin/env python3
"""Measures what estimators that sample keys promise, and writes docs/sampling.md and its pictures.

    PYTHONPATH=build/python build/venv/bin/python tools/measure_sampling.py

Every draw samples keys for each query of each head of the bundled tensors, with another seed. Attention over the sample
is compared with dense attention: `adaptive_sampling` promises that a denominator is off by more than epsilon with a
probability of at most delta, and each estimator that the expected numerator and denominator are the dense ones.
Needs matplotlib and numpy. `--quick` takes seconds, and its figures are too coarse for the page.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import reticle
from numpy.typing import NDArray
from reticle.research.curves import error_bars, interval, save, use_style

ROOT = Path(__file__).resolve().parent.parent
TENSORS = ROOT / "examples/data/attention_4096.safetensors"
Maskers = list[dict[str, Any]]
Array = NDArray[np.float64]

PROMISES = ((0.2, 0.1), (0.1, 0.1), (0.05, 0.1), (0.1, 0.01))  # (epsilon, delta)
#: What adaptive_sampling samples after.
WINDOW, HEAVY, BASE = "sinks, window", "sinks, window, 2 % heaviest", "the same, base sample of 10 %"
#: Standard errors beyond which a mean counts as biased: by chance, 1 head in 370.
LIMIT = 3


def maskers_of(config: str) -> Maskers:
    maskers: Maskers = json.loads((ROOT / "configs" / config).read_text())["maskers"]
    return maskers


def changed(maskers: Maskers, **parameters: object) -> Maskers:
    """The same pipeline with other parameters of its last masker."""
    return [*maskers[:-1], {**maskers[-1], **parameters}]


def without_top_k(maskers: Maskers) -> Maskers:
    return [masker for masker in maskers if masker["type"] != "oracle_top_k"]


@dataclass
class Dense:
    """Dense attention of one layer, and what it was computed from."""

    tensors: tuple[Any, Any, Any]
    output: Array  # (heads, queries, head_dim)
    lse: Array  # (heads, queries)


@dataclass
class Measured:
    """One pattern over (draws, layers * heads, queries): relative errors, signed but for `distance`."""

    density: float
    denominator: Array
    numerator: Array  # along the dense numerator
    output: Array  # along the dense output
    distance: Array  # ||output - dense|| / ||dense||

    def per_head(self, name: str, epsilon: float) -> Array:
        """The share of rows, by head, whose error is larger than epsilon."""
        share: Array = (np.abs(getattr(self, name)) > epsilon).mean(axis=(0, 2))
        return share

    @property
    def rows_per_head(self) -> int:
        return len(self.distance) * len(self.distance[0, 0])

    def bias(self, name: str) -> tuple[Array, Array]:
        """Each head's mean error and its standard error. Draws are independent; the queries of a draw need not be, as
        magic_pig's share their hyperplanes, so a draw's mean over them counts as one observation."""
        means = getattr(self, name).mean(axis=2)
        return means.mean(axis=0), means.std(axis=0, ddof=1) / math.sqrt(len(means))


def attend(maskers: Maskers, seed: int, layer: int, tensors: tuple[Any, Any, Any]) -> tuple[Array, Array, float]:
    config = {"causal": True, "seed": seed, "maskers": maskers}
    sparse = reticle.SparseAttention.from_json(json.dumps(config))
    output, lse = sparse.attend(*tensors, layer=layer)
    density = sparse.mask(*tensors, layer=layer).density if seed == 0 else 0.0
    return output[0].astype(np.float64), lse[0].astype(np.float64), density


def dense_layers(layers: int, queries: int) -> list[Dense]:
    data = reticle.load_tensors(TENSORS)
    found = []
    for layer in range(layers):
        q, k, v = (data[f"layers.{layer}.{name}"] for name in ("queries", "keys", "values"))
        tensors = (np.ascontiguousarray(q[:, :, -queries:]), k, v)
        output, lse, _ = attend([], 0, layer, tensors)
        found.append(Dense(tensors, output, lse))
    return found


def measure(name: str, maskers: Maskers, layers: Sequence[Dense], draws: int) -> Measured:
    print(f"{name}: {draws} draws", flush=True)
    errors: dict[str, list[Array]] = {key: [] for key in ("denominator", "numerator", "output", "distance")}
    densities = []
    for draw in range(draws):
        # magic_pig's hyperplanes have a seed of their own.
        drawn = [{**m, "seed": draw} if m["type"] == "magic_pig" else m for m in maskers]
        parts: dict[str, list[Array]] = {key: [] for key in errors}
        for layer, dense in enumerate(layers):
            output, lse, density = attend(drawn, draw, layer, dense.tensors)
            ratio = np.exp(lse - dense.lse)
            squares = (dense.output**2).sum(axis=-1)
            along = (output * dense.output).sum(axis=-1) / squares
            parts["denominator"].append(ratio - 1)
            parts["numerator"].append(ratio * along - 1)
            parts["output"].append(along - 1)
            parts["distance"].append(np.sqrt(((output - dense.output) ** 2).sum(axis=-1) / squares))
            if draw == 0:
                densities.append(density)
        for key, values in parts.items():
            errors[key].append(np.concatenate(values))
    return Measured(float(np.mean(densities)), **{key: np.stack(values) for key, values in errors.items()})


# --- the page ---


def percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.1f} %"


def with_interval(share: float, rows: int) -> str:
    low, high = interval(share, rows)
    return f"{percent(share)} ({100 * low:.2f} to {100 * high:.2f})"


def promise_figure(promises: dict[tuple[str, float, float], Measured], heads: int) -> Any:
    figure, panels = plt.subplots(1, len(PROMISES), figsize=(12, 3.6), sharey=True, layout="constrained")
    for axes, (epsilon, delta) in zip(panels, PROMISES, strict=True):
        for shift, before in ((-0.2, WINDOW), (0, HEAVY), (0.2, BASE)):
            measured = promises[before, epsilon, delta]
            shares = measured.per_head("denominator", epsilon)
            axes.errorbar(
                np.arange(len(shares)) + shift,
                100 * shares,
                yerr=error_bars(shares.tolist(), measured.rows_per_head),
                fmt="o",
                elinewidth=0.8,
                label=before,
            )
        axes.axhline(100 * delta, color="0.3", linestyle="--", linewidth=1, label="delta")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(0, 100)
        axes.set_yticks([0, 0.1, 1, 10, 100], labels=["0", "0.1", "1", "10", "100"])
        axes.set_xticks(range(0, len(shares), heads), labels=[f"layer {i}" for i in range(len(shares) // heads)])
        axes.set_title(f"epsilon {epsilon}, delta {delta}", fontsize=10)
    panels[0].set_ylabel("rows off by more than epsilon, %")
    figure.supxlabel("heads", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def bias_figure(estimators: dict[str, Measured], heads: int) -> Any:
    columns = 3
    rows = math.ceil(len(estimators) / columns)
    figure, panels = plt.subplots(rows, columns, figsize=(12, 2.6 * rows), squeeze=False, layout="constrained")
    for axes, (name, measured) in zip(panels.flat, estimators.items(), strict=False):
        for shift, quantity in ((-0.15, "denominator"), (0.15, "output")):
            mean, error = measured.bias(quantity)
            axes.errorbar(
                np.arange(len(mean)) + shift, 100 * mean, yerr=196 * error, fmt="o", elinewidth=0.8, label=quantity
            )
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.set_xticks(range(0, len(mean), heads), labels=[f"layer {i}" for i in range(len(mean) // heads)])
        axes.set_title(name, fontsize=10)
    for axes in panels.flat[len(estimators) :]:
        axes.set_visible(False)
    for row in panels:
        row[0].set_ylabel("sampled - dense, %")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def above(measured: Measured, epsilon: float, delta: float) -> int:
    """The number of heads that break the promise: whose whole interval is above delta."""
    shares = measured.per_head("denominator", epsilon)
    return sum(interval(share, measured.rows_per_head)[0] > delta for share in shares)


def promise_table(promises: dict[tuple[str, float, float], Measured]) -> str:
    lines = [
        "| sampled after | epsilon | delta | density | denominators off by more | of the worst head | broken in heads | outputs off by more |",
        "|---" * 8 + "|",
    ]
    for (before, epsilon, delta), measured in promises.items():
        shares = measured.per_head("denominator", epsilon)
        rows = measured.rows_per_head
        cells = [
            *(before, epsilon, percent(delta), percent(measured.density)),
            *(with_interval(shares.mean(), rows * len(shares)), with_interval(shares.max(), rows)),
            f"{above(measured, epsilon, delta)} of {len(shares)}",
            percent(measured.per_head("distance", epsilon).mean()),
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def biased(measured: Measured, quantity: str) -> tuple[float, float, int]:
    """The mean error of the head that is furthest from zero in standard errors, that distance, and the number of heads
    beyond LIMIT of them. A head without any spread is exact."""
    mean, error = measured.bias(quantity)
    distance = np.divide(np.abs(mean), error, out=np.zeros_like(mean), where=error > 0)
    worst = int(distance.argmax())
    return float(mean[worst]), float(distance[worst]), int((distance > LIMIT).sum())


def bias_table(estimators: dict[str, Measured]) -> str:
    head = [
        "estimator",
        "density",
        "denominators",
        "numerators",
        "outputs",
        "error of an output, median",
        "99th percentile",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, measured in estimators.items():
        cells = [name, percent(measured.density)]
        for quantity in ("denominator", "numerator", "output"):
            mean, distance, count = biased(measured, quantity)
            cells.append(f"{count} heads; {100 * mean:+.3f} % ({distance:.1f})")
        cells += [percent(float(np.quantile(measured.distance, q))) for q in (0.5, 0.99)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def first_sentences(
    promises: dict[tuple[str, float, float], Measured], estimators: dict[str, Measured], replaced: Sequence[str]
) -> str:
    def broken(before: str) -> str:
        found = [(*key[1:], measured) for key, measured in promises.items() if key[0] == before]
        count = sum(above(measured, epsilon, delta) for epsilon, delta, measured in found)
        heads = sum(measured.denominator.shape[1] for *_, measured in found)
        ratios = [measured.per_head("denominator", epsilon).max() / delta for epsilon, delta, measured in found]
        return f"{count} of {heads} cases (the worst head: {max(ratios):.1f} times delta)"

    honest = [name for name in estimators if name not in replaced]
    counts = {q: sum(biased(estimators[n], q)[2] for n in honest) for q in ("denominator", "numerator", "output")}
    heads = sum(estimators[n].denominator.shape[1] for n in honest)
    largest = max(float(np.abs(estimators[n].bias("output")[0]).max()) for n in honest)
    wrong = ", ".join(
        f"`{n}` by up to {100 * np.abs(estimators[n].bias('denominator')[0]).max():.0f} %" for n in replaced
    )
    return (
        f"**The (epsilon, delta) promise** of `adaptive_sampling` is broken in {broken(HEAVY)} where a top-k took the heaviest "
        f"keys before it, and in {broken(BASE)} with a larger base sample, too.\n\n"
        f"**After sinks and a window alone** it is broken in {broken(WINDOW)}: weights have heavy tails, and a base sample "
        f"that misses the few large ones shows too small a spread, from which too small a budget follows.\n\n"
        f"**Denominators and numerators are unbiased** ({counts['denominator']} and {counts['numerator']} of {heads} heads are "
        f"beyond {LIMIT} standard errors), but an output, their quotient, is biased by up to {100 * largest:.1f} % "
        f"({counts['output']} heads), as are the denominators of the rules of sparse-attention-hub: {wrong}."
    )


PAGE = """# What samplers promise

{first}

You want to know whether a sampled attention can be trusted on your tensors: compare it with dense attention, row by row, as this
page does for the bundled ones.

    {command}

{rows} rows per pattern: {queries} queries of each of {heads} heads in {layers} layers of `{tensors}` (4096 keys, recorded in a small
language model), drawn {draws} times with other seeds. Dense denominators and outputs are computed once. Figures are counts and do not
depend on the processor; this took {minutes:.0f} minutes on an AMD EPYC (Zen 4).

## Off by more than epsilon

`adaptive_sampling` takes a base sample of {base}, estimates from it the spread of the weights, and draws as many keys as
a normal distribution of the estimate needs to be within epsilon of the denominator but for a share delta of rows
([its rule](maskers.md#adaptive_sampling)). Intervals are Wilson's, of 95 %; a head breaks the promise if its whole interval is above
delta. A case, above, is a head with one epsilon and delta.

![Share of rows whose denominator is off by more than epsilon, by head](images/sampling_promise.png)

{promise_table}

The promise is about denominators. An output is a quotient whose numerator has an error of its own: the last column is what the
choice of epsilon means for it, and no promise.

## Unbiased or not

For each estimator: heads whose mean error is more than {limit} standard errors from zero, then the mean of the head that is
furthest, and in brackets how many standard errors that is. Numerators and outputs are measured along the dense ones. A standard
error is that of the {draws} draws. By chance 1 head in 370 is beyond {limit}, and some more here, below zero: these errors are skewed,
a few draws that hit a heavy key make up for many that miss it, and draws without a hit have a small spread, too.

![Mean error of denominators and outputs by head, with 95 % intervals](images/sampling_bias.png)

{bias_table}

The denominator of a sample is a sum of weights over p, whose expectation is the dense sum whatever the weights are
(`adaptive_sampling` draws anew after its base sample, so that the size of a sample does not depend on what is in it); the output
divides one such sum by another, so its bias falls with the variance of the denominator, and vanishes where a top-k took what is heavy.
`"replacement": true` draws as sparse-attention-hub does ([deviations](deviations.md)), where a key that is drawn
twice counts once.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=64, help="samples of every query, 64")
    parser.add_argument("--quick", action="store_true", help="few draws of few queries, in two layers")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder for sampling.md and images/")
    options = parser.parse_args()
    begun = time.monotonic()
    use_style()
    draws, depth, queries = (4, 2, 32) if options.quick else (options.draws, 4, 512)
    layers = dense_layers(depth, queries)
    heads = layers[0].lse.shape[0]

    full = maskers_of("vattention.json")
    pipelines = {WINDOW: without_top_k(full), HEAVY: full, BASE: changed(full, base_rate_sampling=0.1)}
    promises = {
        (before, epsilon, delta): measure(
            f"adaptive_sampling after {before}, {epsilon}, {delta}",
            changed(maskers, epsilon=epsilon, delta=delta),
            layers,
            draws,
        )
        for before, maskers in pipelines.items()
        for epsilon, delta in PROMISES
    }
    uniform = maskers_of("sink_local_random_sampling.json")
    replaced = {"random_sampling, replacement": uniform, "adaptive_sampling, replacement": without_top_k(full)}
    estimators = {
        "random_sampling": measure("random_sampling", uniform, layers, draws),
        "adaptive_sampling": promises[WINDOW, 0.1, 0.1],
        "vattention": promises[HEAVY, 0.1, 0.1],
        "magic_pig": measure("magic_pig", maskers_of("magic_pig.json"), layers, draws),
        **{
            name: measure(name, changed(maskers, replacement=True), layers, draws) for name, maskers in replaced.items()
        },
    }
    images = options.output / "images"
    images.mkdir(parents=True, exist_ok=True)
    save(promise_figure(promises, heads), images / "sampling_promise.png")
    save(bias_figure(estimators, heads), images / "sampling_bias.png")
    page = PAGE.format(
        first=first_sentences(promises, estimators, list(replaced)),
        command="PYTHONPATH=build/python build/venv/bin/python tools/measure_sampling.py",
        rows=f"{draws * queries * heads * depth:,}".replace(",", " "),
        **{"queries": queries, "heads": heads, "layers": depth, "draws": draws, "limit": LIMIT},
        tensors=TENSORS.relative_to(ROOT),
        minutes=(time.monotonic() - begun) / 60,
        base=f"{100 * full[-1]['base_rate_sampling']:.0f} % of the candidates",
        promise_table=promise_table(promises),
        bias_table=bias_table(estimators),
    )
    (options.output / "sampling.md").write_text(page)


if __name__ == "__main__":
    main()
