#!/usr/bin/env python3
"""Draws relative output error against density, one line per method, over attention tensors.

    tools/plot_methods.py --reticle build/tools/reticle --output docs/images/methods.png

Every method runs over the same rows: the last 256 queries, after a prefill of the queries before them. Methods that
compress the prompt decide in the prefill; for prefill patterns, the 256 queries are the prompt. Error is
||dense - sparse|| / ||dense|| over a layer's output, density the share of visible positions kept; both are means over
the layers. Needs matplotlib; the figures are also printed as CSV.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
plt.style.use(ROOT / "bindings/reticle/pictures.mplstyle")
DATA = ROOT / "examples/data"
KEYS = 4096
ROWS = 256

Config = list[dict[str, object]]
SINK_LOCAL: Config = [{"type": "sink", "sink_size": 4}, {"type": "local", "window_size": 64}]
SHARES = (0.01, 0.03, 0.1, 0.3)


def after_window(masker: str, parameter: str = "heavy_size", **fixed: object) -> Callable[[float], Config]:
    return lambda share: [*SINK_LOCAL, {"type": masker, parameter: share, **fixed}]


def alone(masker: str, count: Callable[[float], dict[str, object]]) -> Callable[[float], Config]:
    return lambda share: [{"type": masker, **count(share)}]


def keys(share: float, least: int = 1) -> int:
    return max(least, round(share * KEYS))


# Panel -> method -> (function from a number to a config, the numbers).
METHODS: dict[str, dict[str, tuple[Callable[[float], Config], tuple[float, ...]]]] = {
    "fixed": {
        "sink + local": (lambda s: [SINK_LOCAL[0], {"type": "local", "window_size": s}], SHARES),
        "local, dilated by 4": (
            lambda s: [SINK_LOCAL[0], {"type": "local", "window_size": s, "dilation": 4}],
            SHARES[:3],
        ),
        "a_shape": (alone("a_shape", lambda s: {"n_init": keys(s / 2), "n_local": keys(s / 2)}), SHARES),
        "tri_shape": (
            alone("tri_shape", lambda s: {"n_init": keys(s / 2), "n_local": keys(s / 2), "n_last": 8}),
            SHARES,
        ),
        "strided": (alone("strided", lambda s: {"stride": round(s)}), (256, 64, 16, 8)),
        "strided, fixed": (
            alone("strided", lambda s: {"stride": 128, "pattern": "fixed", "summary_size": round(s)}),
            (2, 8, 32, 64),
        ),
        "big_bird": (
            alone("big_bird", lambda s: {"block_size": 32, "random_blocks": keys(s / 32), "global_blocks": 1}),
            SHARES,
        ),
    },
    "top keys": {
        "oracle_top_p": (after_window("oracle_top_p", "top_p"), (0.3, 0.6, 0.9, 0.99)),
        "top_k value_aware": (after_window("top_k", scorer="value_aware"), SHARES),
        "top_k key_norm": (after_window("top_k", scorer="key_norm"), SHARES),
        "top_p page_means": (after_window("top_p", "top_p", scorer="page_means"), (0.3, 0.6, 0.9, 0.98)),
        "hash_attention_top_k (random planes)": (
            after_window(
                "hash_attention_top_k",
                hat_mlp_layers=1,
                hat_weight_file=str(DATA / "random_hash_weights.safetensors"),
            ),
            SHARES,
        ),
        "double_sparsity_top_k": (
            after_window(
                "double_sparsity_top_k",
                group_factor=8,
                sorted_channel_file=str(DATA / "double_sparsity_channels.json"),
            ),
            SHARES,
        ),
        "loki_top_k": (after_window("loki_top_k", pca_file=str(DATA / "loki_pca.safetensors")), SHARES),
        "pq_cache": (after_window("pq_cache", pq_group_factor=8, pq_bits=6), SHARES),
        "socket": (after_window("socket"), SHARES),
    },
    "top blocks": {
        "quest_top_k": (after_window("quest_top_k"), SHARES),
        "nsa_top_k": (
            lambda s: [
                *SINK_LOCAL,
                {
                    "type": "nsa_top_k",
                    "kernel_size": 16,
                    "kernel_stride": 8,
                    "block_size": 16,
                    "top_k": keys(s / 16, 3),
                },
            ],
            SHARES,
        ),
        "moba": (alone("moba", lambda s: {"block_size": 64, "top_k": keys(s / 64)}), (0.03, 0.1, 0.3)),
        "inf_llm": (
            alone("inf_llm", lambda s: {"block_size": 64, "n_init": 4, "n_local": 64, "top_k": keys(s / 64)}),
            (0.03, 0.1, 0.3),
        ),
        "block_sparse": (
            lambda s: [*SINK_LOCAL, {"type": "block_sparse", "chunk_size": 64, "top_chunks": keys(s / 64, 2)}],
            (0.03, 0.1, 0.3),
        ),
        "x_attention": (alone("x_attention", lambda s: {"block_size": 64, "threshold": s}), (0.3, 0.6, 0.8, 0.95)),
        "flex_prefill": (
            alone("flex_prefill", lambda s: {"block_size": 64, "gamma": s, "tau": 0.1}),
            (0.3, 0.6, 0.8, 0.95),
        ),
    },
    "sampling": {
        "random_sampling": (after_window("random_sampling", "sampling_rate"), SHARES),
        "oracle_top_k 1 % + adaptive_sampling": (
            lambda s: [
                *SINK_LOCAL,
                {"type": "oracle_top_k", "heavy_size": 0.01},
                {"type": "adaptive_sampling", "base_rate_sampling": 0.01, "epsilon": s, "delta": 0.1},
            ],
            (0.5, 0.2, 0.1, 0.05),
        ),
        "magic_pig": (
            lambda s: [*SINK_LOCAL, {"type": "magic_pig", "lsh_l": round(s), "lsh_k": 8}],
            (10, 40, 150, 400),
        ),
    },
    "prefill patterns and eviction": {
        "vertical_slash": (
            alone("vertical_slash", lambda s: {"vertical_size": s / 2, "slash_size": s / 2}),
            SHARES[1:],
        ),
        "adaptive_vertical_slash": (
            alone("adaptive_vertical_slash", lambda s: {"alpha": s, "min_budget": 64}),
            (0.1, 0.3, 0.5, 0.7),
        ),
        "snap_kv": (alone("snap_kv", lambda s: {"token_capacity": keys(s, 64)}), SHARES[1:]),
        "ada_snap_kv": (
            alone("ada_snap_kv", lambda s: {"token_capacity": keys(s), "local_window": 32, "approximation_window": 64}),
            SHARES,
        ),
        "pyramid_kv": (
            alone("pyramid_kv", lambda s: {"num_layers": 4, "token_capacity": keys(s, 64), "beta": 4}),
            SHARES[1:],
        ),
        "tova": (alone("tova", lambda s: {"token_capacity": keys(s)}), SHARES),
        "h2o": (alone("h2o", lambda s: {"heavy_size": s / 2, "recent_size": s / 2}), SHARES),
    },
}
ORACLE = (after_window("oracle_top_k"), (0.001, 0.003, *SHARES))


def measure(reticle: Path, maskers: Config) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        stages = {"prefill": {"maskers": []}, "generation": {"maskers": maskers}, "causal": True}
        config.write_text(json.dumps(stages))
        result = subprocess.run(
            [str(reticle), "run", str(config), "--compare", "--json", "--output-length", str(ROWS)],
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode != 0:
        sys.exit(f"{maskers}: {result.stderr.strip()}")
    layers = [layer for layer in json.loads(result.stdout)["layers"] if layer["stage"] == "generation"]
    density = sum(layer["visible_density"] for layer in layers) / len(layers)
    return density, sum(layer["comparison"]["relative_error"] for layer in layers) / len(layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reticle", type=Path, default=ROOT / "build/tools/reticle")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images/methods.png")
    options = parser.parse_args()

    table = csv.writer(sys.stdout)
    table.writerow(["panel", "method", "parameter", "density", "relative error"])

    def line(
        panel: str, name: str, method: tuple[Callable[[float], Config], tuple[float, ...]]
    ) -> list[tuple[float, float]]:
        make, numbers = method
        points = []
        for number in numbers:
            points.append(measure(options.reticle, make(number)))
            table.writerow([panel, name, number, f"{points[-1][0]:.4f}", f"{points[-1][1]:.4f}"])
            sys.stdout.flush()
        return sorted(points)

    oracle = line("all", "oracle_top_k", ORACLE)
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), sharex=True, sharey=True, constrained_layout=True)
    for axis, (panel, methods) in zip(axes.flat, METHODS.items(), strict=False):
        axis.plot(*zip(*oracle, strict=True), color="0.6", linewidth=5, alpha=0.5, label="oracle_top_k")
        for i, (name, method) in enumerate(methods.items()):
            axis.plot(
                *zip(*line(panel, name, method), strict=True),
                marker="osD^vP*X"[i % 8],
                linestyle="--" if i >= 8 else "-",  # colors and markers repeat
                label=name,
            )
        axis.set(
            title=panel, xscale="log", yscale="log", xlabel="density of the visible positions", ylabel="relative error"
        )
        axis.legend()
        axis.label_outer()
    axes.flat[-1].axis("off")
    figure.suptitle(
        "Error of sparse attention against what it keeps: 256 generated rows over 4,096 keys, mean of 4 layers"
    )
    figure.savefig(options.output)


if __name__ == "__main__":
    main()
