"""A wheel as a stranger uses it: installed into a new virtual environment, without a compiler, from files alone.

    python3 tests/wheel_check.py WHEEL WHEELHOUSE

WHEELHOUSE holds what the wheel depends on (numpy), so that nothing is fetched. Checked are the import, attention against
numpy, the command on its bundled tensors, a masker in Python, and, where there is a compiler, a plugin built with the
headers that the wheel holds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

USE = """
import numpy as np
import reticle

random = np.random.default_rng(0)
queries, keys, values = (random.standard_normal((1, 2, n, 16), np.float32) for n in (5, 40, 40))
sparse = reticle.SparseAttention.from_json('{"maskers": [{"type": "sink", "sink_size": 2}, {"type": "oracle_top_k", "heavy_size": 6}]}')
output, mask = sparse.run(queries, keys, values, reticle.SequenceState())
scores = queries @ keys.swapaxes(2, 3) / 4
scores[mask.to_dense() == 0] = -np.inf
weights = np.exp(scores - scores.max(-1, keepdims=True))
expected = weights / weights.sum(-1, keepdims=True) @ values
assert np.abs(output - expected).max() < 1e-5, np.abs(output - expected).max()
assert mask.nnz == 8 * 10
print(reticle.__version__, reticle.__file__)
"""


def run(*command: object, environment: dict[str, str]) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    wheel, house = (Path(word).resolve() for word in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "venv"
        venv.create(home, with_pip=True)
        # Nothing of the system's but its C library: no compiler, no tools.
        bare = {"PATH": str(home / "bin"), "HOME": folder, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(house)}
        run(home / "bin/python", "-m", "pip", "install", "-q", wheel, environment=bare)
        print(run(home / "bin/python", "-c", USE, environment=bare).strip())
        print(run(home / "bin/reticle", "--version", environment=bare).strip())
        config = ROOT / "configs/sink_local_oracle_top_k.json"
        shown = run(home / "bin/reticle", "run", config, "--compare", environment=bare)
        print("\n".join(shown.splitlines()[:3]))
        compiler = shutil.which("g++")
        if compiler is None:
            return
        flags = run(home / "bin/python", "-m", "reticle.sdk", "--cflags", "--libs", environment=bare).split()
        plugin = Path(folder) / "log_sparse.so"
        source = ROOT / "plugins/log_sparse/log_sparse.cpp"
        whole = {**os.environ, **bare, "PATH": os.environ["PATH"]}
        run(compiler, "-std=c++20", "-O1", "-shared", "-fPIC", source, "-o", plugin, *flags, environment=whole)
        shutil.copy(ROOT / "plugins/log_sparse/log_sparse.json", folder)
        run(home / "bin/reticle", "run", Path(folder) / "log_sparse.json", environment=bare)
        print("a plugin built with the wheel's headers runs")


if __name__ == "__main__":
    main()
