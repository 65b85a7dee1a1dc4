#!/usr/bin/env python3
"""Makes random HashAttention weights in the shapes of learned ones, to try configs when no published weights fit the
model.

    python tools/make_hash_weights.py [--output configs/research/hat_weights.safetensors]

The defaults fit the bundled tensors and the configs of configs/research. A .pkl file is written in
sparse-attention-hub's form, else safetensors. Codes of random maps order keys worse than learned ones do; published
weights are converted by `reticle convert-hat`. Needs safetensors.
"""

from __future__ import annotations

import argparse
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def make(
    layers: int, heads: int, head_dim: int, bits: int, mlp_layers: int, hidden: int, seed: int
) -> dict[int, dict[str, list[np.ndarray]]]:
    """{layer: {query_matrix, query_bias, key_matrix, key_bias}}, each a list over the linear maps: matrices (heads, in,
    out) and biases (heads, out), float32. The variance of a map's output is about that of its input."""
    random = np.random.default_rng(seed)
    widths = [head_dim, *[hidden] * (mlp_layers - 1), bits]

    def side() -> tuple[list[np.ndarray], list[np.ndarray]]:
        matrices = [random.standard_normal((heads, n, m), np.float32) * n**-0.5 for n, m in pairwise(widths)]
        return matrices, [0.1 * random.standard_normal((heads, m), np.float32) for m in widths[1:]]

    weights = {}
    for layer in range(layers):
        (query_matrix, query_bias), (key_matrix, key_bias) = side(), side()
        weights[layer] = {
            "query_matrix": query_matrix,
            "query_bias": query_bias,
            "key_matrix": key_matrix,
            "key_bias": key_bias,
        }
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "configs/research/hat_weights.safetensors")
    for name, value in {"layers": 4, "heads": 4, "head-dim": 64, "bits": 32, "mlp-layers": 3, "hidden": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    weights = make(
        options.layers, options.heads, options.head_dim, options.bits, options.mlp_layers, options.hidden, options.seed
    )
    if options.output.suffix == ".pkl":
        options.output.write_bytes(pickle.dumps(weights))
    else:
        from safetensors.numpy import save_file

        named = {
            f"hat.{layer}.{kind}.{i}": np.ascontiguousarray(array)
            for layer, sides in weights.items()
            for kind, arrays in sides.items()
            for i, array in enumerate(arrays)
        }
        save_file(named, options.output)
    print(f"{options.output} written")


if __name__ == "__main__":
    main()
