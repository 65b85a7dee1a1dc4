"""Checks a wheel in a new virtual environment, without a compiler or network access, as a user would install it.

    python3 tests/wheel_check.py WHEEL WHEELHOUSE

WHEELHOUSE holds the wheel's dependencies (numpy). The checks are the import, attention against numpy, the command on
its bundled tensors, a masker in Python, and, if there is a compiler, the plugin template built with the wheel's
headers.
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


def run(*command: object, environment: dict[str, str]) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    wheel, wheelhouse = (Path(word).resolve() for word in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "venv"
        venv.create(home, with_pip=True)
        # Only the system's C library is available: no compiler, no tools.
        bare = {"PATH": str(home / "bin"), "HOME": folder, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheelhouse)}
        run(home / "bin/python", "-m", "pip", "install", "-q", wheel, environment=bare)
        print(run(home / "bin/python", ROOT / "tests/wheel_smoke.py", environment=bare).strip())
        print(run(home / "bin/reticle", "--version", environment=bare).strip())
        config = ROOT / "configs/sink_local_oracle_top_k.json"
        shown = run(home / "bin/reticle", "run", config, "--compare", environment=bare)
        print("\n".join(shown.splitlines()[:3]))
        if shutil.which("g++") is None or shutil.which("cmake") is None:
            return
        whole = {**os.environ, **bare, "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        print(run(home / "bin/python", "-m", "reticle.sdk", "new", "my_masker", folder, environment=bare).strip())
        plugin = Path(folder) / "my_masker"
        python = f"-DPython_EXECUTABLE={home / 'bin/python'}"
        run("cmake", "-S", plugin, "-B", plugin / "build", python, environment=whole)
        run("cmake", "--build", plugin / "build", environment=whole)
        run("ctest", "--test-dir", plugin / "build", "--output-on-failure", environment=whole)
        print("the plugin template is built with the wheel's headers, and passes its tests")


if __name__ == "__main__":
    main()
