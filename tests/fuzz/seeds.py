"""Makes the fuzz targets' seed inputs from files in the repository: one folder per target.

    python3 tests/fuzz/seeds.py FOLDER PLUGIN.so

Inputs of past findings are in corpus/<target>/ and are used directly.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2]
LARGEST = 1 << 16


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def floats(count: int, draw: random.Random) -> bytes:
    return struct.pack(f"<{count}f", *(draw.gauss(0, 0.3) for _ in range(count)))


def masks() -> dict[str, bytes]:
    shape = {"batch": "1", "heads": "2", "queries": "3", "keys": "70"}
    unshared = {"shared_batch": "0", "shared_heads": "0", "shared_queries": "0"}
    one = {"shared_batch": "1", "shared_heads": "1", "shared_queries": "1"}

    def file(kind: str, sharing: dict[str, str], tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
        return safetensors(tensors, {"format": "reticle.mask.v1", "kind": kind, **shape, **sharing})

    row_ptr = ("I64", [7], struct.pack("<7q", 0, 2, 3, 3, 5, 6, 7))
    indices = ("I32", [7], struct.pack("<7i", 0, 5, 9, 1, 69, 3, 64))
    intervals = ("I32", [7, 2], struct.pack("<14i", 0, 4, 9, 30, 5, 6, 0, 1, 64, 70, 2, 3, 0, 70))
    p = ("F32", [7], struct.pack("<7f", 0.5, 1, 0.25, 1, 1, 0.125, 1))
    dense = struct.pack("<420f", *((i % 3) / 2 for i in range(420)))
    return {
        "empty": file("empty", one, {}),
        "full": file("full", one, {}),
        "bits": file("bits", unshared, {"words": ("I64", [12], struct.pack("<12q", *([5, 63] * 6)))}),
        "bits_shared": file("bits", one, {"words": ("I64", [2], struct.pack("<2q", 77, 3))}),
        "dense": file("dense", unshared, {"p": ("F32", [420], dense)}),
        "csr": file("csr", unshared, {"row_ptr": row_ptr, "indices": indices}),
        "csr_weighted": file("csr", unshared, {"row_ptr": row_ptr, "indices": indices, "p": p}),
        "runs": file("runs", unshared, {"row_ptr": row_ptr, "intervals": intervals}),
        "runs_weighted": file("runs", unshared, {"row_ptr": row_ptr, "intervals": intervals, "p": p}),
    }


def model(**changes: Any) -> bytes:
    draw = random.Random(1)
    config: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": 5,
        "hidden_size": 8,
        "intermediate_size": 6,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32,
        **changes,
    }
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": [5, 8],
        layer + "input_layernorm.weight": [8],
        layer + "post_attention_layernorm.weight": [8],
        layer + "self_attn.q_proj.weight": [8, 8],
        layer + "self_attn.k_proj.weight": [4, 8],
        layer + "self_attn.v_proj.weight": [4, 8],
        layer + "self_attn.o_proj.weight": [8, 8],
        layer + "mlp.gate_proj.weight": [6, 8],
        layer + "mlp.up_proj.weight": [6, 8],
        layer + "mlp.down_proj.weight": [8, 6],
        "model.norm.weight": [8],
    }
    tensors = {}
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors[name] = ("F32", shape, floats(count, draw))
    return safetensors(tensors, {"config": json.dumps(config)})


def models() -> dict[str, bytes]:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {
        "llama": model(),
        "linear": model(rope_scaling={"rope_type": "linear", "factor": 2.0}),
        "llama3": model(rope_scaling={**llama3, "original_max_position_embeddings": 16}),
        "yarn": model(rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}),
        "mistral": model(model_type="mistral", sliding_window=None),
    }


def manifests() -> dict[str, bytes]:
    found = {}
    for system in ("hub", "nsa", "patterns"):
        for path in sorted((SOURCE / "tests" / "golden" / system).glob("*.json")):
            case = json.loads(path.read_text())
            case["fuzz_case"] = f"{system}/{path.stem}.safetensors"
            found[f"{system}_{path.stem}"] = json.dumps(case).encode()
    return found


def configs() -> dict[str, bytes]:
    found = {str(i): path.read_bytes() for i, path in enumerate(sorted((SOURCE / "configs").rglob("*.json")))}
    subsets = {"maskers": [{"type": "sink", "layers": [0, "2-"], "heads": [1]}, {"type": "local"}], "merge": "max"}
    stages = {"prefill": {"maskers": [{"type": "a_shape"}]}, "generation": {"maskers": [{"type": "tova"}]}}
    for name, config in (("subsets", subsets), ("stages", stages)):
        found[name] = json.dumps(config).encode()
    return found


def main() -> None:
    folder, plugin = Path(sys.argv[1]), Path(sys.argv[2])
    some_tensors = sorted(path for path in (SOURCE / "tests" / "golden").rglob("*.safetensors"))[::12]
    seeds: dict[str, dict[str, bytes]] = {
        "safetensors": {path.stem: path.read_bytes() for path in some_tensors} | masks(),
        "mask_file": masks(),
        "config": configs(),
        "model": models(),
        "plugin": {"log_sparse": plugin.read_bytes()},
        "manifest": manifests(),
    }
    for target, files in seeds.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            if len(content) <= LARGEST or target == "plugin":
                (folder / target / name).write_bytes(content)


if __name__ == "__main__":
    main()
