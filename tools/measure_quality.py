#!/usr/bin/env python3
"""Measures what sparse patterns cost the bundled model, and writes docs/quality.md and its pictures.

    tools/measure_quality.py --reticle build/tools/reticle

Runs the commands that the page shows: sweeps of prefill and generation patterns, retrieval, and times. Draws loss
against sparsity, and the masks of a few patterns as nano-sparse-attention's notebook does. Results are stored beside
the command (quality_*.json), and a second run continues from them. Needs matplotlib and numpy.
"""

from __future__ import annotations

import argparse
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

SWEEPS = {
    "prefill": ["evaluate", "--grid", "tools/quality/prefill.json", "--window", "2048", "--max-tokens", "16384"],
    "generation": [
        *["evaluate", "--grid", "tools/quality/generation.json", "--window", "2048", "--output-length", "512"],
        *["--max-tokens", "16384"],
    ],
}
RETRIEVAL_CONFIGS = ["sink_local", "streaming_llm", "sink_local_oracle_top_k", "quest", "snap_kv", "minference"]
RETRIEVAL = [
    *["evaluate", *(f"configs/{name}.json" for name in RETRIEVAL_CONFIGS), "--window", "2048", "--max-tokens", "16384"],
    *["--tasks", "repeated_phrase,needle,multi_needle,variable_tracking", "--lengths", "512,2048"],
    *["--samples", "24"],
]
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
    data = (ROOT / "examples/data/byte-llama-3m/heldout.safetensors").read_bytes()
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


def retrieval_table(results: Results) -> str:
    tasks = [(task["task"], task["length"]) for task in results[0]["retrieval"]]
    lines = [
        "| task | length | nothing to find | " + " | ".join(r["name"] for r in results) + " |",
        "|---|---|---" + "|---" * len(results) + "|",
    ]
    for i, (task, length) in enumerate(tasks):
        unaided = results[0]["retrieval"][i]["unaided_accuracy"]
        cells = [f"{100 * x:.0f} %" for x in (unaided, *(r["retrieval"][i]["accuracy"] for r in results))]
        lines.append(f"| {task} | {length} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


PAGE = """# What sparsity costs in quality

You want to know what a pattern costs a model in loss, and which pattern costs least:

    $ ./bootstrap quality                      # runs the commands below and writes this page
    $ reticle evaluate CONFIG --text FILE      # yours, also with --model FOLDER

Measured on the bundled byte-level Llama (3 M parameters, trained on the King James Bible) over held-out text. A small model of one
book: curves show how patterns compare on it, not what they cost a large one.

Dense loss over the first 32768 held-out bytes, which tests hold to the model's own figures:

| window | loss |
|---|---|
{dense}

## The prompt attended to sparsely

Windows of 2048 bytes, every byte counted, all through the prefill pipeline.

    {prefill_command}

![Loss above dense against sparsity, one line per prefill pattern](images/quality_prefill.png)

{prefill_table}

![What four patterns keep of a prompt of 640 bytes, layer 1, head 0](images/quality_prefill_masks.png)

## What is generated attends to sparsely

Windows of 2048 bytes: 1537 are prefilled densely, the last 512 count and go through the generation pipeline.

    {generation_command}

![Loss above dense against sparsity, one line per generation pattern](images/quality_generation.png)

{generation_table}

![What three patterns keep over 128 decode steps after 640 bytes, layer 1, head 0](images/quality_generation_masks.png)

`hash_attention_top_k` has random weights here, for there are none trained for this model: sinks, the window and chance.

## Retrieval

Generated tasks after RULER: a list of words said twice, one number hidden in text, one of eight, and a value handed on
through four names. Shares of the answers' bytes that were the likeliest, given those before; 24 samples each. "Nothing
to find" asks dense attention the same with the hidden sentences left out: what language and chance alone give. This
model finds nothing in any of them, with dense attention or without, so here they cannot tell patterns apart; they are
for models that can.

    {retrieval_command}

{retrieval}

Configs by stages, as `snap_kv`, prefill as they say and generate the answer.

## Time and memory

    {times_command}

{times}

The model has 4 heads of 64 in 4 layers: with so few bytes to read per token, choosing keys costs more than it saves
until a few thousand keys. [docs/performance.md](performance.md) has the sizes of real models.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reticle", type=Path, default=ROOT / "build/tools/reticle")
    command = Command(parser.parse_args().reticle)
    dense = []
    for window in (512, 1024, 2048, 4096):
        loss = json.loads(command("evaluate", "--window", window, "--json"))["results"][0]["loss"]
        dense.append(f"| {window} | {loss:.5f} |")
    sweeps = {name: command.results(name, arguments) for name, arguments in SWEEPS.items()}
    for name, results in sweeps.items():
        draw_losses(name, results, name, IMAGES / f"quality_{name}.png")
    draw_masks(command)
    times = command(*TIMES)
    page = PAGE.format(
        dense="\n".join(dense),
        prefill_command=shown(SWEEPS["prefill"]),
        prefill_table=loss_table(sweeps["prefill"], "prefill"),
        generation_command=shown(SWEEPS["generation"]),
        generation_table=loss_table(sweeps["generation"], "generation"),
        retrieval_command=shown(RETRIEVAL),
        retrieval=retrieval_table(command.results("retrieval", RETRIEVAL)),
        times_command=shown(TIMES),
        times="\n".join("    " + line for line in times.rstrip().splitlines()),
    )
    (ROOT / "docs/quality.md").write_text(page)


if __name__ == "__main__":
    main()
