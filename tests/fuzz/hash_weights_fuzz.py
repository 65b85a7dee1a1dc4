"""Fuzzes HashAttention weights as pickles: damaged or hostile files raise FormatError and have no other effect.

    python tests/fuzz/hash_weights_fuzz.py [--seconds N] [--seed N]

Needs torch. Prints the numbers of files read, refused and found faulty; a finding is saved, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import io
import pickle
import random
import resource
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reticle import FormatError
from reticle.research import hat


def weights(draw: random.Random, as_numpy: bool) -> dict[int, dict[str, list[Any]]]:
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))

    def tensor(*shape: int) -> Any:
        made = torch.randn(*shape, generator=generator)
        return made.numpy() if as_numpy else made

    sides = ("query", "key")
    return {
        layer: {f"{side}_matrix": [tensor(2, 4, 6), tensor(2, 6, 8)] for side in sides}
        | {f"{side}_bias": [tensor(2, 1, 6), tensor(2, 1, 8)] for side in sides}
        for layer in range(2)
    }


def seeds(draw: random.Random) -> list[bytes]:
    found = []
    for as_numpy in (False, True):
        for protocol in range(6):
            found.append(pickle.dumps(weights(draw, as_numpy), protocol=protocol))
    for zipped in (False, True):
        buffer = io.BytesIO()
        torch.save(weights(draw, False), buffer, _use_new_zipfile_serialization=zipped)
        found.append(buffer.getvalue())
    state = {
        f"model.{layer}.learning_to_hash_transformation_{side}.{head}.{place}.{kind}": torch.ones(
            *[4, 4][: 1 + (kind == "weight")]
        )
        for layer in range(2)
        for side in "qk"
        for head in range(2)
        for place in (0, 2)
        for kind in ("weight", "bias")
    }
    past = Path(__file__).resolve().parent / "corpus" / "hash_weights"
    found += [path.read_bytes() for path in sorted(past.glob("*"))]
    return [*found, pickle.dumps(state), pickle.dumps(np.zeros(3)), pickle.dumps([np.float64(1), np.dtype("i4")])]


NOTABLE = [
    b"\x00",
    b"\xff" * 4,
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"\x00" * 8,
    b".",
    b"(",
    b"R",
    b"b",
    b"c",
    b"\x8c",
    b"t",
]


def mutated(files: list[bytes], draw: random.Random) -> bytes:
    data = bytearray(draw.choice(files))
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 1:
                data[at:at] = draw.choice(NOTABLE)
            case 2:
                del data[at : at + draw.randrange(1, 9)]
            case 3:
                new = draw.choice(NOTABLE)
                data[at : at + len(new)] = new
            case 4:
                other = draw.choice(files)
                begin = draw.randrange(len(other))
                data[at : at + draw.randrange(64)] = other[begin : begin + draw.randrange(64)]
            case _:
                del data[at:]
        if not data:
            break
    return bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path.cwd(), help="folder for what is found")
    given = parser.parse_args()
    limit = 8 << 30  # no file of a few kB needs more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")  # torch warns about odd versions
    draw = random.Random(given.seed)
    files = seeds(draw)
    counts = {"read": 0, "refused": 0, "found": 0}
    end = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path, to = Path(folder) / "weights.pkl", Path(folder) / "weights.safetensors"
        while time.monotonic() < end:
            data = mutated(files, draw)
            path.write_bytes(data)
            try:
                hat.convert(path, to)
                counts["read"] += 1
                files.append(data)
                del files[60:]
            except FormatError:
                counts["refused"] += 1
            except BaseException as error:
                counts["found"] += 1
                kept = given.findings / f"hash_weights-{counts['found']}"
                kept.write_bytes(data)
                print(f"{type(error).__name__}: {error} ({kept})", flush=True)
                if isinstance(error, KeyboardInterrupt):
                    raise
    print(f"hash_weights: {sum(counts.values())} executions: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    return 1 if counts["found"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
