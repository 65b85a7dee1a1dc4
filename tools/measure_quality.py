#!/usr/bin/env python3
"""Measures what sparse patterns cost the bundled model, and writes docs/quality.md, docs/quality_tables.md and pictures.

    PYTHONPATH=build/python build/venv/bin/python tools/measure_quality.py --reticle build/tools/reticle

Runs the commands that the pages show: loss and retrieval of grids of prefill and generation patterns, needles by depth
and length, and times. Draws curves with reticle.research.curves, and the masks of a few patterns as
nano-sparse-attention's notebook does. Results are stored beside the command (quality_*.json), and a second run
continues from them. `--quick` takes a minute, its figures are too coarse for the page, and its results are stored
beside its page. Needs matplotlib and numpy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shlex
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from reticle.research import curves
from reticle.research.curves import Results, interval, patterns

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples/data/byte-llama-3m-retrieval"
GRIDS = ROOT / "tools/quality"
KEPT, OUTPUT_KEPT = "#009e73", "#e69f00"

TASKS = {"needle": "one number hidden in the prompt", "variable_tracking": "a value handed on through four names"}
#: Densities of the leaderboard, %; a pattern is compared by the variant that comes nearest to one of them.
BUDGETS = (5, 10, 20, 40)
#: The share of needles that a pattern that works finds.
ENOUGH = 0.9
#: Maskers without a row, and why.
LEFT_OUT = {
    "causal": "keeps everything",
    "a_shape": "is `sink + local`",
    "top_k, top_p": "choose as the patterns here do, by a scorer's name",
    "document, block_list": "are told what to keep",
    "dsa_top_k": "needs a trained indexer",
    "loki_top_k, double_sparsity_top_k": "need files that are calibrated for a model, and there are none for this one",
}


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    length: int = 2048
    samples: int = 24
    tokens: int = 16384
    output: int = 512
    lengths: tuple[int, ...] = (512, 2048, 4096, 8000)
    length_samples: int = 12
    depths: tuple[int, ...] = (0, 25, 50, 75, 100)
    depth_lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    depth_samples: int = 10
    windows: tuple[int, ...] = (512, 1024, 2048, 4096)
    new_tokens: int = 64
    repeats: int = 3

    def sweep(self, name: str, grid: Path) -> list[object]:
        output = ["--output-length", self.output] if name == "generation" else []
        return [
            *["evaluate", "--grid", shown_path(grid), "--window", self.length, *output, "--max-tokens", self.tokens],
            *["--tasks", ",".join(TASKS), "--lengths", self.length, "--samples", self.samples],
        ]

    def dense(self) -> list[object]:
        return [
            *["evaluate", "--window", 512, "--max-tokens", 1024],
            *["--tasks", "needle,variable_tracking,multi_needle,repeated_phrase", "--lengths", listed(self.lengths)],
            *["--samples", self.length_samples],
        ]

    def depth(self) -> list[object]:
        return [
            *["evaluate", "--grid", shown_path(GRIDS / "depth.json"), "--window", 512, "--max-tokens", 1024],
            *["--tasks", "needle", "--lengths", listed(self.depth_lengths), "--depths", listed(self.depths)],
            *["--samples", self.depth_samples],
        ]

    def times(self) -> list[object]:
        return [
            *["--lengths", self.length, "--new-tokens", self.new_tokens, "--repeats", self.repeats],
            *["--threads", 1],
        ]


QUICK = Extent(
    length=320,
    samples=2,
    tokens=320,
    output=32,
    lengths=(320,),
    length_samples=1,
    depths=(0, 100),
    depth_lengths=(320,),
    depth_samples=1,
    windows=(512,),
    new_tokens=4,
    repeats=1,
)


def listed(values: Sequence[object]) -> str:
    return ",".join(str(value) for value in values)


def shown_path(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


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

    def __init__(self, binary: Path, folder: Path, threads: int) -> None:
        self.binary = binary.resolve()
        self.folder = folder.resolve()
        self.threads = ["--threads", threads] if threads else []

    def __call__(self, *arguments: object) -> str:
        words = [str(argument) for argument in arguments]
        print("$ reticle", shlex.join(words), flush=True)
        return subprocess.run([self.binary, *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout

    def kept(self, name: str) -> Path:
        return self.folder / f"quality_{name}.json"

    def results(self, name: str, arguments: Sequence[object]) -> Results:
        document = json.loads(self(*arguments, *self.threads, "--json", "--output", self.kept(name)))
        results: Results = document["results"]
        return results

    def times(self, name: str, results: Results, arguments: Sequence[object]) -> list[dict[str, float]]:
        """What `reticle bench-model` measures of each result's config, dense attention first. Kept, too: the results'
        configs and the arguments say whether they are the same."""
        key = [[result["config"] for result in results], [str(argument) for argument in arguments]]
        if self.kept(name).exists():
            before = json.loads(self.kept(name).read_text())
            if before["key"] == key:
                rows: list[dict[str, float]] = before["rows"]
                return rows
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{i}.json" for i in range(1, len(results))]
            for file, result in zip(files, results[1:], strict=True):
                # Paths in results are relative to the root, those in a config to its folder.
                config = json.dumps(result["config"])
                file.write_text(config.replace(f'"{GRIDS.relative_to(ROOT)}/', f'"{GRIDS}/'))
            rows = json.loads(self("bench-model", *files, *arguments, "--json"))["rows"]
        self.kept(name).write_text(json.dumps({"key": key, "rows": rows}))
        return rows


def shown(arguments: Sequence[object]) -> str:
    return "reticle " + shlex.join(str(argument) for argument in arguments)


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
    data = (MODEL / "heldout.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return data[8 + size : 8 + size + count]


def draw_masks(command: Command, images: Path) -> None:
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
            mask: np.ndarray = read_masks(masks)[f"{stage}.1"][0]
            return mask

        figure, axes = plt.subplots(1, len(PICTURES["prefill"]), figsize=(12, 3.4), layout="constrained")
        for axis, (name, maskers) in zip(axes, PICTURES["prefill"].items(), strict=True):
            axis.imshow(masks_of("prefill", maskers), cmap=ListedColormap(["white", KEPT]), vmin=0, vmax=1)
            axis.set(title=name, xticks=[], yticks=[], xlabel="keys")
            axis.grid(visible=False)
        axes[0].set_ylabel("queries")
        curves.save(figure, images / "quality_prefill_masks.png")

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
        curves.save(figure, images / "quality_generation_masks.png")


# --- tables and sentences ---


def percent(stage: dict[str, float] | None) -> str:
    return "" if stage is None else f"{100 * stage['density']:.1f} %"


def answer(share: float, samples: int) -> str:
    low, high = interval(share, samples)
    return f"{100 * share:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def leaderboard(results: Results, stage: str, samples: int) -> str:
    """Each method's variant nearest to each budget, by its share of whole answers and its 95 % interval."""
    head = [f"{budget} %: {task}" for budget in BUDGETS for task in TASKS]
    lines = ["| pattern | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for method, variants in patterns(results).items():
        cells = []
        for budget in BUDGETS:
            for i in range(len(TASKS)):
                tasks = [r["retrieval"][i] for r in variants]
                nearest = min(tasks, key=lambda task: abs(math.log(100 * task[stage]["density"] / budget)))
                near = 0.66 * budget <= 100 * nearest[stage]["density"] <= 1.5 * budget
                cells.append(answer(nearest["exact"], samples) if near else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def label(result: dict[str, Any]) -> str:
    values = ", ".join(dict.fromkeys(str(value) for value in result["parameters"].values()))
    return f"{result['name']} {values}".strip()


def loss_table(results: Results, stage: str) -> str:
    dense = results[0]["loss"]
    lines = ["| pattern | density | loss | above dense | perplexity |", "|---|---|---|---|---|"]
    lines += [
        f"| {label(r)} | {percent(r[stage])} | {r['loss']:.4f} | {r['loss'] - dense:+.4f} | {r['perplexity']:.3f} |"
        for r in results
    ]
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


def depth_figure(results: Results, extent: Extent) -> Any:
    """Needles found by depth and length, one map per pattern and one of dense attention."""
    shape = len(extent.depth_lengths), len(extent.depths)
    figure, panels = plt.subplots(1, len(results), figsize=(2.2 * len(results), 2.7), sharey=True, layout="constrained")
    for axes, result in zip(panels, results, strict=True):
        shares = 100 * np.array([task["exact"] for task in result["retrieval"]]).reshape(shape).T
        axes.imshow(shares, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            colour = "black" if share > 50 else "white"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(shape[0]), labels=[str(length) for length in extent.depth_lengths], fontsize=8)
        axes.set_yticks(range(shape[1]), labels=[str(depth) for depth in extent.depths])
        axes.set_title(result["name"].replace("prefill: ", "prefill:\n"), fontsize=9)
        axes.grid(visible=False)
    panels[0].set_ylabel("depth of the needle, %")
    figure.supxlabel("length of the prompt, bytes", fontsize=10)
    return figure


def least(variants: Results, stage: str) -> dict[str, Any] | None:
    """The variant with the fewest keys from which on every denser one finds ENOUGH needles; None if there is none."""
    densest_first = sorted(variants, key=lambda r: -r["retrieval"][0][stage]["density"])
    good = list(itertools.takewhile(lambda r: r["retrieval"][0]["exact"] >= ENOUGH, densest_first))
    return good[-1] if good else None


def cost_table(results: Results, times: list[dict[str, float]], stage: str, extent: Extent) -> str:
    """Dense attention, and of each pattern the cheapest variant that finds ENOUGH needles, or that with most keys."""
    model = json.loads((MODEL / "config.json").read_text())
    cache = extent.length * 2 * 4 * model["num_hidden_layers"] * model["num_key_value_heads"] * model["head_dim"]
    step = stage == "generation"
    measure = "seconds_per_token" if step else "first_token_seconds"
    columns = ["K/V read per token", "time per token"] if step else ["first token"]
    head = ["pattern", "keys attended", *TASKS, "loss above dense", *columns, "time, dense = 1"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    rows = []
    for variants in [[results[0]], *patterns(results).values()]:
        found = least(variants, stage)
        result = found or max(variants, key=lambda r: r["retrieval"][0][stage]["density"])
        time = times[results.index(result)]
        rows.append((found is None, time[f"{stage}_density"], result, time))
    for fails, density, result, time in sorted(rows, key=lambda row: row[:2]):
        milliseconds = 1000 * time[measure]
        cells = [
            f"*{label(result)}*" if fails else label(result),
            f"{100 * density:.1f} %",
            *(f"{100 * task['exact']:.0f} %" for task in result["retrieval"]),
            f"{result['loss'] - results[0]['loss']:+.4f}",
            *([f"{density * cache / 1e6:.2f} MB"] if step else []),
            f"{milliseconds:.2f} ms" if step else f"{milliseconds:.0f} ms",
            f"{time[measure] / times[0][measure]:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def breaking(results: Results, stage: str) -> str:
    """From which density on patterns find nine needles of ten, and which never do."""
    found = {name: least(variants, stage) for name, variants in patterns(results).items()}
    enough = sorted((100 * r["retrieval"][0][stage]["density"], name) for name, r in found.items() if r is not None)
    never = [f"`{name}`" for name, r in found.items() if r is None]
    few = [f"`{name}` {density:.0f} %" for density, name in enough]
    return f"{', '.join(few)}; at no density that was tried: {', '.join(never) or 'none'}"


def first_sentences(generation: Results, prefill: Results, depth: Results, extent: Extent) -> str:
    lost = [r["loss"] - generation[0]["loss"] for r in generation[1:] if r["retrieval"][0]["exact"] < 0.5]
    later = [r for r in [*generation[1:], *prefill[1:]] if r["retrieval"][1]["exact"] < r["retrieval"][0]["exact"]]
    both = len(generation) + len(prefill) - 2
    longest = len(extent.depths) * (len(extent.depth_lengths) - 1)
    places = []
    for result in depth:
        shares = [task["exact"] for task in result["retrieval"][longest:]]
        places.append(f"`{result['name']}` {100 * min(shares):.0f} to {100 * max(shares):.0f} %")
    return (
        f"**Generation**: nine hidden numbers of ten are still found with this share of the keys: "
        f"{breaking(generation, 'generation')}.\n\n"
        f"**Prefill**: the same, when the prompt attends sparsely: {breaking(prefill, 'prefill')}.\n\n"
        f"**What breaks first**: a value handed on through names, which is lost more often than a number in {len(later)} of "
        f"{both} variants; then numbers, by their place ({extent.depth_lengths[-1]} bytes, worst and best depth: "
        f"{', '.join(places)}). Loss on plain text tells little of it: generation patterns that lose more than half of the "
        f"numbers cost {min(lost, default=0):.3f} to {max(lost, default=0):.3f} nats."
    )


def left_out() -> str:
    return "; ".join(f"{', '.join(f'`{name}`' for name in names.split(', '))} {why}" for names, why in LEFT_OUT.items())


PAGE = """# What sparsity costs in quality

{first}

You want to know what a pattern costs a model:

    $ ./bootstrap quality                      # runs the commands below and writes this page; --quick: coarse, in a minute
    $ reticle evaluate CONFIG --text FILE      # yours, also with --model FOLDER
    $ reticle evaluate --grid GRID --tasks needle --plot DIR    # curves as below, of your grid (the Python package)

Measured on the bundled byte-level Llama (3 M parameters, trained on the King James Bible and on texts in which something is hidden,
up to 4096 bytes): a small model, so figures compare patterns and do not say what they cost a large one. Tasks are generated after
RULER over held-out text: a number hidden in it (needle), a value handed on through four names (variable_tracking), one number of
eight (multi_needle), a list of words said twice (repeated_phrase). Every figure with its interval is in
[the tables](quality_tables.md); what samplers promise has [a page](sampling.md) of its own.

## Dense attention, by length and depth

Whole answers that are right and, in brackets, bytes of them that were the likeliest, given those before, by the length of the prompt
in bytes. "Nothing to find" asks the same with the hidden sentences left out. {length_samples} samples each.

    {lengths_command}

{lengths}

The model was trained up to 4096 bytes, and does not bind eight names to eight numbers, nor copy lists: what is below is measured on
the two tasks that it can do. A needle by its depth (0 %: the start of the prompt), in %, {depth_samples} samples each; patterns that
keep a fixed number of keys, here some 256, keep a smaller share of longer prompts:

    {depth_command}

![Needles found, by depth and length, for dense attention and five patterns](images/quality_depth.png)

## What is generated attends to sparsely

Prompts of {length} bytes are prefilled densely, and the answer is generated through the pattern. {samples} samples; bars are 95 %
intervals (Wilson).

    {generation_command}

![Answers that are right against density, one panel per generation pattern](images/quality_generation_retrieval.png)

What it costs: of each pattern the variant with the fewest keys that finds nine needles of ten, or, in italics, the one with the most
keys, which does not. Times are of {new_tokens} tokens at the end of {length}, medians of {repeats} interleaved runs on one thread of an AMD
EPYC (Zen 4); K and V in float32, as each query head reads them, without what choosing keys reads.

    reticle bench-model CONFIG... {times_command}

{generation_costs}

The times are this model's own: 4 heads of 64 in 4 layers have so few bytes to read per token that choosing keys often costs more
than it saves. [docs/performance.md](performance.md) has the sizes of real models. The prompt ends with the question, so `snap_kv`,
`ada_snap_kv` and `pyramid_kv`, which decide by its last queries, know what is asked; of a question that comes later they would not.
`hash_attention_top_k` has random weights here, for there are none trained for this model. `vattention` is `adaptive_sampling` after a
top-k.

## The prompt attended to sparsely

The whole prompt, its question included, goes through the pattern; the answer is generated densely.

    {prefill_command}

![Answers that are right against density, one panel per prefill pattern](images/quality_prefill_retrieval.png)

Patterns that choose blocks by the mean of their keys (`block_sparse`, `moba`, `nsa_top_k`) find little more than a window does until
they keep most blocks: four bytes weigh little in a mean of 64. `tri_shape` keeps every key for the question, `sink + local` does
not, and otherwise they are the same.

{prefill_costs}

Without a row: {left_out}.
"""

TABLES = """# The figures of quality

What [the page of quality](quality.md) shows as pictures. `./bootstrap quality` writes both.

## What is generated attends to sparsely

Whole answers that are right, %, with 95 % intervals (Wilson, {samples} samples), of the variant of each pattern whose density comes
nearest to a budget; empty: none is near.

{generation_leaders}

Loss on held-out text: windows of {length} bytes, of which the last {output} count and are generated, but for the first of them.

![Loss above dense against density, one panel per generation pattern](images/quality_generation.png)

{generation_table}

![What three patterns keep over 128 decode steps after 640 bytes, layer 1, head 0](images/quality_generation_masks.png)

## The prompt attended to sparsely

{prefill_leaders}

Loss: windows of {length} bytes, every byte counted, all through the prefill pipeline.

![Loss above dense against density, one panel per prefill pattern](images/quality_prefill.png)

{prefill_table}

![What four patterns keep of a prompt of 640 bytes, layer 1, head 0](images/quality_prefill_masks.png)

## Dense attention

Loss over the first 32768 held-out bytes, which tests hold to the model's own figures:

| window | loss |
|---|---|
{dense}
"""


def quick_grid(name: str, folder: Path) -> Path:
    """The grid with the first and the last variant of each pattern."""
    sweeps = json.loads((GRIDS / f"{name}.json").read_text())
    path = folder / f"quick_{name}.json"
    weights = str(ROOT / "examples/data")
    text = json.dumps([{**sweep, "variants": sweep["variants"][:: len(sweep["variants"]) - 1]} for sweep in sweeps])
    path.write_text(text.replace("../../examples/data", weights))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reticle", type=Path, default=ROOT / "build/tools/reticle")
    parser.add_argument("--quick", action="store_true", help="few samples of short prompts")
    parser.add_argument("--threads", type=int, default=0, help="threads of retrieval and loss; 0: all cores")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder for the pages and images/")
    options = parser.parse_args()
    extent = QUICK if options.quick else Extent()
    curves.use_style()
    images = options.output / "images"
    images.mkdir(parents=True, exist_ok=True)
    command = Command(options.reticle, options.output if options.quick else options.reticle.parent, options.threads)

    commands = {}
    for name in curves.STAGES:
        grid = quick_grid(name, options.output.resolve()) if options.quick else GRIDS / f"{name}.json"
        commands[name] = extent.sweep(name, grid)
    sweeps = {name: command.results(name, arguments) for name, arguments in commands.items()}
    times = {name: command.times(f"times_{name}", results, extent.times()) for name, results in sweeps.items()}
    lengths = command.results("lengths", extent.dense())[0]
    depth = command.results("depth", extent.depth())
    dense = []
    for window in extent.windows:
        loss = command.results(f"dense_{window}", ["evaluate", "--window", window])[0]["loss"]
        dense.append(f"| {window} | {loss:.5f} |")

    for name, results in sweeps.items():
        curves.save(curves.loss_figure(results, name), images / f"quality_{name}.png")
        figure = curves.retrieval_figure(results, name, extent.samples)
        curves.save(figure, images / f"quality_{name}_retrieval.png")
    curves.save(depth_figure(depth, extent), images / "quality_depth.png")
    draw_masks(command, images)

    values = {
        "first": first_sentences(sweeps["generation"], sweeps["prefill"], depth, extent),
        **vars(extent),
        "lengths_command": shown(extent.dense()),
        "depth_command": shown(extent.depth()),
        "times_command": shlex.join(str(word) for word in extent.times()),
        "lengths": lengths_table(lengths),
        "left_out": left_out(),
        "dense": "\n".join(dense),
    }
    for name, results in sweeps.items():
        values[f"{name}_command"] = shown(commands[name])
        values[f"{name}_costs"] = cost_table(results, times[name], name, extent)
        values[f"{name}_leaders"] = leaderboard(results, name, extent.samples)
        values[f"{name}_table"] = loss_table(results, name)
    (options.output / "quality.md").write_text(PAGE.format(**values))
    (options.output / "quality_tables.md").write_text(TABLES.format(**values))


if __name__ == "__main__":
    main()
