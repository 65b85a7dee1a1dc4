#!/usr/bin/env python3
"""Measures what sparse patterns cost the bundled model, and writes docs/quality.md and its pictures.

    tools/measure_quality.py --reticle build/tools/reticle

Runs the commands that the page shows: sweeps of prefill and generation patterns, retrieval, and times. Draws loss
against sparsity, and the masks of a few patterns as nano-sparse-attention's notebook does. Results are stored beside
the command (quality_*.json), and a second run continues from them. Needs matplotlib and numpy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs/images"
plt.style.use(ROOT / "bindings/reticle/pictures.mplstyle")
KEPT, OUTPUT_KEPT = "#009e73", "#e69f00"
Results = list[dict[str, Any]]

TASKS = {"needle": "one number hidden in the prompt", "variable_tracking": "a value handed on through four names"}
SAMPLES = 24
LENGTH_SAMPLES = 12
RETRIEVAL = ["--tasks", ",".join(TASKS), "--lengths", "2048", "--samples", str(SAMPLES)]
SWEEPS = {
    "generation": [
        *["evaluate", "--grid", "tools/quality/generation.json", "--window", "2048", "--output-length", "512"],
        *["--max-tokens", "16384", *RETRIEVAL],
    ],
    "prefill": [
        *["evaluate", "--grid", "tools/quality/prefill.json", "--window", "2048", "--max-tokens", "16384"],
    ],
}
LENGTHS = [
    *["evaluate", "--window", "512", "--max-tokens", "1024"],
    *["--tasks", "needle,variable_tracking,multi_needle,repeated_phrase", "--lengths", "512,2048,4096,8000"],
    *["--samples", str(LENGTH_SAMPLES)],
]
#: Densities of the leaderboard, %; a pattern is compared by the variant that comes nearest to one of them.
BUDGETS = (5, 10, 20, 40)
TIMES = ["bench-model", "configs/sink_local.json", "configs/sink_local_oracle_top_k.json", "configs/quest.json"]

PROMPT_BYTES = 640
# Drawn as in the notebook: the masks of some patterns in both stages, layer 1, head 0.
PICTURES = {
    "prefill": {
        "dense": [],
        "local 128": [{"type": "sink", "sink_size": 16}, {"type": "local", "window_size": 128}],
        "vertical_slash 64": [
            {"type": "vertical_slash", "vertical_size": 64, "slash_size": 64, "approximation_window": 64}
            | {"attention_sinks": 16, "window_size": 32}
        ],
        "block_sparse 4 of 20": [
            {"type": "local", "window_size": 32},
            {"type": "block_sparse", "chunk_size": 32, "top_chunks": 4},
        ],
    },
    "generation": {
        "local 128": [{"type": "sink", "sink_size": 16}, {"type": "local", "window_size": 128}],
        "snap_kv 128": [{"type": "snap_kv", "token_capacity": 128, "approximation_window": 32}],
        "tova 128": [{"type": "tova", "token_capacity": 128}],
    },
}


class Command:
    """The reticle command, run from the root of the repository so that pages can show what was run."""

    def __init__(self, binary: Path) -> None:
        self.binary = binary.resolve()

    def __call__(self, *arguments: object) -> str:
        words = [str(argument) for argument in arguments]
        print("$ reticle", shlex.join(words), flush=True)
        return subprocess.run([self.binary, *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout

    def results(self, name: str, arguments: Sequence[str]) -> Results:
        kept = self.binary.parent / f"quality_{name}.json"
        document = json.loads(self(*arguments, "--json", "--output", kept))
        results: Results = document["results"]
        return results


def shown(arguments: Sequence[str]) -> str:
    return "reticle " + shlex.join(arguments)


def draw_losses(name: str, results: Results, stage: str, path: Path) -> None:
    dense = results[0]["loss"]
    figure, axes = plt.subplots(figsize=(8, 4.6))
    methods = list(dict.fromkeys(result["name"] for result in results[1:]))
    for method in methods:
        points = sorted((r[stage]["density"], r["loss"]) for r in results[1:] if r["name"] == method)
        axes.plot([100 * (1 - x) for x, _ in points], [y - dense for _, y in points], marker="o", label=method)
    axes.axhline(0, color="grey", linestyle="--", linewidth=1, label=f"dense ({dense:.3f} nats)")
    axes.set_xlabel("sparsity: entries left out, % of what causality leaves")
    axes.set_ylabel("loss above dense, nats per byte")
    axes.set_title(f"{name}: what sparsity costs")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def interval(share: float, samples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `samples` answers."""
    z = 1.959964
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * ((share * (1 - share) / samples + z * z / (4 * samples**2)) ** 0.5)
    return centre - half, centre + half


def draw_retrieval(results: Results, stage: str, path: Path) -> None:
    figure, panels = plt.subplots(1, len(TASKS), figsize=(11, 4.8), sharey=True, layout="constrained")
    for i, (axes, (task, what)) in enumerate(zip(panels, TASKS.items(), strict=True)):
        for number, method in enumerate(dict.fromkeys(result["name"] for result in results[1:])):
            points = sorted(
                (r["retrieval"][i][stage]["density"], r["retrieval"][i]["exact"])
                for r in results[1:]
                if r["name"] == method
            )
            shares = [y for _, y in points]
            bounds = [interval(y, SAMPLES) for y in shares]
            errors = [[y - low for y, (low, _) in zip(shares, bounds, strict=True)]]
            errors.append([high - y for y, (_, high) in zip(shares, bounds, strict=True)])
            axes.errorbar(
                [100 * x for x, _ in points],
                [100 * y for y in shares],
                yerr=[[max(0.0, 100 * e) for e in side] for side in errors],
                marker="o",
                linestyle="--" if number >= 8 else "-",
                elinewidth=0.6,
                label=method,
            )
        axes.set_xscale("log")
        axes.set_xticks([5, 10, 20, 50], labels=["5", "10", "20", "50"])
        axes.minorticks_off()
        axes.set(xlabel="density of what is attended to, %", title=f"{task}: {what}")
    panels[0].set_ylabel("whole answers that are right, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(path)
    plt.close(figure)


def leaderboard(results: Results, stage: str) -> str:
    """Each method's variant nearest to each budget, by its share of whole answers and its 95 % interval."""
    head = [f"{budget} %: {task}" for budget in BUDGETS for task in TASKS]
    lines = ["| pattern | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for method in dict.fromkeys(result["name"] for result in results[1:]):
        cells = []
        for budget in BUDGETS:
            for i in range(len(TASKS)):
                tasks = [r["retrieval"][i] for r in results[1:] if r["name"] == method]
                nearest = min(tasks, key=lambda task: abs(np.log(100 * task[stage]["density"] / budget)))
                density = 100 * nearest[stage]["density"]
                low, high = interval(nearest["exact"], SAMPLES)
                near = 0.66 * budget <= density <= 1.5 * budget
                cells.append(f"{100 * nearest['exact']:.0f} ({100 * low:.0f} to {100 * high:.0f})" if near else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_masks(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    masks = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        masks[name] = np.frombuffer(data[begin:end], dtype=np.uint8).reshape(entry["shape"])
    return masks


def held_out(count: int) -> bytes:
    data = (ROOT / "examples/data/byte-llama-3m-retrieval/heldout.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return data[8 + size : 8 + size + count]


def draw_masks(command: Command) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prompt, config, masks = Path(folder) / "prompt", Path(folder) / "config.json", Path(folder) / "masks"
        prompt.write_bytes(held_out(PROMPT_BYTES))

        def masks_of(stage: str, maskers: list[dict[str, object]]) -> np.ndarray:
            config.write_text(json.dumps({"maskers": maskers}))
            new = 1 if stage == "prefill" else 128
            command(
                *["generate", "--prompt-file", prompt, f"--{stage}", config, "--masks", masks],
                *["--max-new-tokens", new, "--json"],
            )
            return read_masks(masks)[f"{stage}.1"][0]

        figure, axes = plt.subplots(1, len(PICTURES["prefill"]), figsize=(12, 3.4), layout="constrained")
        for axis, (name, maskers) in zip(axes, PICTURES["prefill"].items(), strict=True):
            axis.imshow(masks_of("prefill", maskers), cmap=ListedColormap(["white", KEPT]), vmin=0, vmax=1)
            axis.set(title=name, xticks=[], yticks=[], xlabel="keys")
            axis.grid(visible=False)
        axes[0].set_ylabel("queries")
        figure.savefig(IMAGES / "quality_prefill_masks.png")
        plt.close(figure)

        colours = ListedColormap(["white", KEPT, OUTPUT_KEPT])
        figure, axes = plt.subplots(len(PICTURES["generation"]), 1, figsize=(10, 6.5), layout="constrained")
        for axis, (name, maskers) in zip(axes, PICTURES["generation"].items(), strict=True):
            kept = masks_of("generation", maskers).astype(int)
            kept[:, PROMPT_BYTES:] *= 2
            axis.imshow(kept, cmap=colours, vmin=0, vmax=2, aspect="auto")
            axis.set(title=f"{name}: keys of the prompt in green, of the output in orange", xticks=[], yticks=[])
            axis.set_ylabel("steps")
            axis.grid(visible=False)
        axes[-1].set_xlabel("keys")
        figure.savefig(IMAGES / "quality_generation_masks.png")
        plt.close(figure)


def percent(stage: dict[str, float] | None) -> str:
    return "" if stage is None else f"{100 * stage['density']:.1f} %"


def loss_table(results: Results, stage: str) -> str:
    dense = results[0]["loss"]
    lines = ["| pattern | density | loss | above dense | perplexity |", "|---|---|---|---|---|"]
    for r in results:
        values = ", ".join(dict.fromkeys(str(value) for value in r["parameters"].values()))
        label = f"{r['name']} {values}".strip()
        lines.append(
            f"| {label} | {percent(r[stage])} | {r['loss']:.4f} | {r['loss'] - dense:+.4f} | {r['perplexity']:.3f} |"
        )
    return "\n".join(lines)


def lengths_table(dense: dict[str, Any]) -> str:
    """Dense attention: whole answers and, in brackets, bytes of them, by task and length; then with nothing to find."""
    tasks = list(dict.fromkeys(task["task"] for task in dense["retrieval"]))
    lengths = list(dict.fromkeys(task["length"] for task in dense["retrieval"]))
    lines = [
        "| task | " + " | ".join(str(n) for n in lengths) + " | nothing to find |",
        "|---" * (len(lengths) + 2) + "|",
    ]
    for name in tasks:
        found = [task for task in dense["retrieval"] if task["task"] == name]
        cells = [f"{100 * task['exact']:.0f} % ({100 * task['accuracy']:.0f} %)" for task in found]
        chance = sorted(100 * task["unaided_accuracy"] for task in found)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | ({chance[0]:.0f} to {chance[-1]:.0f} %) |")
    return "\n".join(lines)


PAGE = """# What sparsity costs in quality

{first}

You want to know what a pattern costs a model:

    $ ./bootstrap quality                      # runs the commands below and writes this page
    $ reticle evaluate CONFIG --text FILE      # yours, also with --model FOLDER

Measured on the bundled byte-level Llama (3 M parameters, trained on the King James Bible and on texts in which something is hidden,
up to 4096 bytes): a small model, so figures compare patterns and do not say what they cost a large one. Tasks are generated after
RULER over held-out text: a number hidden in it (needle), a value handed on through four names (variable_tracking), one number of
eight (multi_needle), a list of words said twice (repeated_phrase).

Dense attention, by the length of the prompt in bytes: whole answers that are right and, in brackets, bytes of them that were the
likeliest, given those before. "Nothing to find" asks the same with the hidden sentences left out. {samples} samples each.

    {lengths_command}

{lengths}

The model was trained up to 4096 bytes, and does not bind eight names to eight numbers, nor copy lists: what is below is measured on
the two tasks that it can do.

## What is generated attends to sparsely

Prompts of 2048 bytes are prefilled densely, and the answer is generated through the pattern. Whole answers that are right, %, with
95 % intervals (Wilson), of the variant of each pattern whose density comes nearest to a budget; empty: none is near.

    {generation_command}

{generation_leaders}

![Answers that are right against density, one line per generation pattern](images/quality_generation_retrieval.png)

Loss on held-out text: windows of 2048 bytes, of which 1537 are prefilled densely and the last 512 count.

![Loss above dense against sparsity, one line per generation pattern](images/quality_generation.png)

{generation_table}

![What three patterns keep over 128 decode steps after 640 bytes, layer 1, head 0](images/quality_generation_masks.png)

`hash_attention_top_k` has random weights here, for there are none trained for this model: sinks, the window and chance.

## The prompt attended to sparsely

Loss: windows of 2048 bytes, every byte counted, all through the prefill pipeline.

    {prefill_command}

![Loss above dense against sparsity, one line per prefill pattern](images/quality_prefill.png)

{prefill_table}

![What four patterns keep of a prompt of 640 bytes, layer 1, head 0](images/quality_prefill_masks.png)

Dense loss over the first 32768 held-out bytes, which tests hold to the model's own figures:

| window | loss |
|---|---|
{dense}

## Time and memory

    {times_command}

{times}

The model has 4 heads of 64 in 4 layers: with so few bytes to read per token, choosing keys costs more than it saves
until a few thousand keys. [docs/performance.md](performance.md) has the sizes of real models.
"""


def first_sentences(results: Results) -> str:
    """From which density on each pattern finds nine needles of ten, and which ones never do."""
    enough, never = [], []
    for method in dict.fromkeys(result["name"] for result in results[1:]):
        needles = [r["retrieval"][0] for r in results[1:] if r["name"] == method]
        densest_first = sorted(needles, key=lambda task: -task["generation"]["density"])
        good = list(itertools.takewhile(lambda task: task["exact"] >= 0.9, densest_first))
        if good:
            enough.append((100 * good[-1]["generation"]["density"], f"`{method}`"))
        else:
            never.append(f"`{method}`")
    found = ", ".join(f"{name} {density:.0f} %" for density, name in sorted(enough))
    return (
        f"Nine hidden numbers of ten are still found when what is generated attends to this share of the keys: {found}. "
        f"At none that was tried: {', '.join(never)}. Loss on plain text shows little of it."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reticle", type=Path, default=ROOT / "build/tools/reticle")
    command = Command(parser.parse_args().reticle)
    dense = []
    for window in (512, 1024, 2048, 4096):
        loss = json.loads(command("evaluate", "--window", window, "--json"))["results"][0]["loss"]
        dense.append(f"| {window} | {loss:.5f} |")
    sweeps = {name: command.results(name, arguments) for name, arguments in SWEEPS.items()}
    lengths = command.results("lengths", LENGTHS)[0]
    for name, results in sweeps.items():
        draw_losses(name, results, name, IMAGES / f"quality_{name}.png")
    draw_retrieval(sweeps["generation"], "generation", IMAGES / "quality_generation_retrieval.png")
    draw_masks(command)
    times = command(*TIMES)
    page = PAGE.format(
        first=first_sentences(sweeps["generation"]),
        samples=LENGTH_SAMPLES,
        lengths_command=shown(LENGTHS),
        lengths=lengths_table(lengths),
        dense="\n".join(dense),
        **{f"{name}_command": shown(arguments) for name, arguments in SWEEPS.items()},
        generation_leaders=leaderboard(sweeps["generation"], "generation"),
        **{f"{name}_table": loss_table(results, name) for name, results in sweeps.items()},
        times_command=shown(TIMES),
        times="\n".join("    " + line for line in times.rstrip().splitlines()),
    )
    (ROOT / "docs/quality.md").write_text(page)


if __name__ == "__main__":
    main()
