#!/usr/bin/env python3
"""Packs a build for a GPU machine: gpu-kit/kit.tar.xz has the programs, the shared objects that they need and a bare
machine lacks, and the headers for compiling the Python package; gpu-kit/run.sh is placed beside it."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from steps import digest_of_sources

TREE = Path(__file__).resolve().parents[2]
# The GPU machine provides the C and C++ run-time libraries; its versions are newer.
SYSTEM_LIBRARIES = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+))\.so.*")
HEADERS = ["boost/pfr.hpp", "boost/pfr", "nlohmann", "hwy", "fmt"]
MAX_MIB = 26


def output_of(*words: str | Path) -> str:
    return subprocess.run([str(word) for word in words], cwd=TREE, check=True, capture_output=True, text=True).stdout


def needed_by(program: Path, search: Path) -> dict[str, Path]:
    """The shared objects that a program needs, by name; those in `search` take precedence."""
    found = {}
    listing = subprocess.run(
        ["ldd", program], check=True, capture_output=True, text=True, env={"LD_LIBRARY_PATH": str(search)}
    ).stdout
    for name, path in re.findall(r"(\S+) => (\S+)", listing):
        if not SYSTEM_LIBRARIES.fullmatch(name):
            if path == "not":
                sys.exit(f"{program}: needs {name}, which is not found")
            found[name] = Path(path)
    return found


def stage(build: Path, to: Path) -> None:
    for folder in ("bin", "lib", "include/reticle"):
        (to / folder).mkdir(parents=True)
    for program in (build / "tests" / "reticle_tests", build / "benchmarks" / "bench_gpu"):
        shutil.copy2(program, to / "bin")
        for name, path in needed_by(program, build).items():
            shutil.copy2(path, to / "lib" / name)  # under the name that the loader looks for
    for binary in [*(to / "bin").iterdir(), *(to / "lib").iterdir()]:
        subprocess.run(["strip", "--strip-unneeded", binary], check=True)
    for header in HEADERS:
        roots = [root for root in (Path("/usr/local/include"), Path("/usr/include")) if (root / header).exists()]
        if not roots:
            sys.exit(f"{header}: not found in /usr/local/include or /usr/include")
        from_, there = roots[0] / header, to / "include" / header
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(from_, there) if from_.is_dir() else shutil.copy2(from_, there)
    for folder in ("core", "attention"):
        for header in (TREE / folder).rglob("*.hpp"):
            there = to / "include" / "reticle" / header.relative_to(TREE)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(header, there)
    shutil.copy2(build / "include" / "reticle" / "version.hpp", to / "include" / "reticle")
    dirty = " with changes" if output_of("git", "status", "--porcelain", "--untracked-files=no") else ""
    about = {
        "commit": output_of("git", "rev-parse", "--short", "HEAD").strip() + dirty,
        "sources": digest_of_sources(),
        "compiler": output_of("c++", "--version").splitlines()[0],
        "toolkit": re.search(r"release [\d.]+", output_of("nvcc", "--version"))[0],  # type: ignore[index]
    }
    (to / "kit.json").write_text(json.dumps(about))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path, help="build folder of the gpu-kit preset")
    parser.add_argument("kit", type=Path, help="folder to make")
    arguments = parser.parse_args()
    arguments.kit.mkdir(exist_ok=True)
    archive = arguments.kit / "kit.tar.xz"
    with tempfile.TemporaryDirectory() as folder:
        stage(arguments.build.resolve(), Path(folder))
        with tarfile.open(archive, "w:xz") as kit:
            for path in sorted(Path(folder).iterdir()):
                kit.add(path, path.name)
    shutil.copy2(TREE / "tools" / "gpu_kit" / "run.sh", arguments.kit)
    mebibytes = archive.stat().st_size / 2**20
    print(f"{archive}: {mebibytes:.1f} MiB")
    if mebibytes > MAX_MIB:
        sys.exit(f"{archive}: {mebibytes:.1f} MiB; expected at most {MAX_MIB}")


if __name__ == "__main__":
    main()
