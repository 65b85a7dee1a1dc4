#!/usr/bin/env python3
"""Makes files that some maskers read from captured attention tensors.

    tools/calibrate.py TENSORS --loki OUT.safetensors             principal components of the keys (loki_top_k)
    tools/calibrate.py TENSORS --channels OUT.json                channels by mean |q_c k_c| (double_sparsity_top_k)
    tools/calibrate.py TENSORS --random-hash OUT.safetensors      random hyperplanes as hash weights (hash_attention_top_k)

TENSORS is a safetensors file with layers.<i>.queries (b, hq, n, d) and layers.<i>.keys (b, hkv, n, d), captured on text
similar to the maskers' later inputs. Random hyperplanes are SimHash, the baseline for learned hash weights. Needs
numpy.
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

import numpy as np

Array = np.ndarray


def read_safetensors(path: Path) -> dict[str, Array]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(data[begin:end], dtype="<u2").astype(np.uint32) << 16
            values = bits.view(np.float32)
        else:
            values = np.frombuffer(data[begin:end], dtype={"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"]).astype(np.float64)
    return tensors


def write_safetensors(path: Path, tensors: dict[str, Array]) -> None:
    header: dict[str, object] = {}
    blobs = []
    offset = 0
    for name, tensor in tensors.items():
        blob = np.ascontiguousarray(tensor, dtype="<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def layers_of(tensors: dict[str, Array]) -> list[int]:
    return sorted(
        int(name.split(".")[1]) for name in tensors if name.startswith("layers.") and name.endswith(".queries")
    )


def principal_components(keys: Array) -> Array:
    """(b, hkv, n, d) -> (hkv, d, d): components as rows, largest first. Not centred, because products must be
    preserved."""
    components = []
    for head in range(keys.shape[1]):
        rows = keys[:, head].reshape(-1, keys.shape[-1])
        _, vectors = np.linalg.eigh(rows.T @ rows)
        components.append(vectors[:, ::-1].T)
    return np.stack(components)


def ranked_channels(queries: Array, keys: Array) -> list[list[int]]:
    """Channels per query head by mean |q_c| * mean |k_c|, the most important first."""
    group = queries.shape[1] // keys.shape[1]
    ranking = []
    for head in range(queries.shape[1]):
        q = np.abs(queries[:, head]).mean(axis=(0, 1))
        k = np.abs(keys[:, head // group]).mean(axis=(0, 1))
        ranking.append([int(c) for c in np.argsort(-q * k, kind="stable")])
    return ranking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tensors", type=Path)
    parser.add_argument("--loki", type=Path)
    parser.add_argument("--channels", type=Path)
    parser.add_argument("--random-hash", type=Path)
    parser.add_argument("--bits", type=int, default=32, help="of --random-hash")
    parser.add_argument("--seed", type=int, default=0, help="of --random-hash")
    options = parser.parse_args()
    if not (options.loki or options.channels or options.random_hash):
        parser.error("nothing to do: expected --loki, --channels or --random-hash")
    tensors = read_safetensors(options.tensors)
    layers = layers_of(tensors)
    if not layers:
        parser.error(f"{options.tensors}: has no layers.<i>.queries")

    if options.loki:
        write_safetensors(
            options.loki, {f"layers.{i}.pca": principal_components(tensors[f"layers.{i}.keys"]) for i in layers}
        )
    if options.channels:
        table = {
            f"model.layers.{i}.self_attn.qk_proj": ranked_channels(
                tensors[f"layers.{i}.queries"], tensors[f"layers.{i}.keys"]
            )
            for i in layers
        }
        options.channels.write_text(json.dumps(table) + "\n")
    if options.random_hash:
        random = np.random.default_rng(options.seed)
        weights = {}
        for i in layers:
            _, heads, _, d = tensors[f"layers.{i}.queries"].shape
            planes = random.standard_normal((heads, d, options.bits))
            for side in ("query", "key"):
                weights[f"hat.{i}.{side}_matrix.0"] = planes
                weights[f"hat.{i}.{side}_bias.0"] = np.zeros((heads, options.bits))
        write_safetensors(options.random_hash, weights)


if __name__ == "__main__":
    main()
