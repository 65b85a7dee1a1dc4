"""Runs every fuzz target for its share of the time, as many at once as there are cores, and prints their results.

    python3 tests/fuzz/run.py BUILD_FOLDER [--seconds N] [--python INTERPRETER]

With --python, an interpreter that has the Python package and torch, the pickles are fuzzed too. Inputs that reach new
code are kept in BUILD_FOLDER/corpus, findings in BUILD_FOLDER/findings. Exit status 1 means that there are findings.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TARGETS = ("safetensors", "mask_file", "config", "model", "plugin", "manifest")
HERE = Path(__file__).resolve().parent


def run_target(build: Path, target: str, seconds: int) -> tuple[str, int, str]:
    """(name, exit status, last lines of output) of a target."""
    findings = build / "findings"
    corpora = [build / "corpus" / target]
    past = HERE / "corpus" / target
    if past.exists():
        corpora.append(past)
    options = ["-timeout=25", "-rss_limit_mb=3072", "-malloc_limit_mb=2048", "-print_final_stats=1", "-len_control=0"]
    # Plugins have some hundred kB; other inputs are small.
    options.append(f"-max_len={1 << 20 if target == 'plugin' else 1 << 16}")
    command = [build / "tests" / "fuzz" / f"{target}_fuzz", *corpora, *options, f"-max_total_time={seconds}"]
    command.append(f"-artifact_prefix={findings}/{target}-")
    # Undefined behaviour ends a run and prints its stack.
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "ASAN_OPTIONS": "allocator_may_return_null=1"}
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, errors="replace", env=environment, check=False
    )
    (build / "findings" / f"{target}.log").write_text(done.stderr)
    return target, done.returncode, done.stderr


def summary(target: str, status: int, log: str) -> str:
    executions = re.search(r"stat::number_of_executed_units:\s*(\d+)", log)
    covered = re.findall(r"cov: (\d+)", log)
    line = f"{target:<14} {executions[1] if executions else '?':>10} executions  {covered[-1] if covered else '?':>7} edges"
    return line + ("" if status == 0 else f"  FOUND (status {status}); see findings/{target}.log")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("build", type=Path)
    parser.add_argument(
        "--python",
        type=Path,
        help="interpreter that has the Python package and torch: with it, pickles are fuzzed, too",
    )
    parser.add_argument("--seconds", type=int, default=60)
    given = parser.parse_args()
    build = given.build.resolve()
    (build / "findings").mkdir(exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    targets = [*TARGETS, *(["hash_weights"] if given.python else [])]
    each = max(1, given.seconds * min(cores, len(targets)) // len(targets))
    start = time.monotonic()

    def one(target: str) -> tuple[str, int, str]:
        if target != "hash_weights":
            return run_target(build, target, each)
        script = [str(given.python), str(HERE / "hash_weights_fuzz.py"), f"--findings={build / 'findings'}"]
        done = subprocess.run([*script, f"--seconds={each}"], capture_output=True, text=True, check=False)
        return target, done.returncode, done.stdout + done.stderr

    found = 0
    with ThreadPoolExecutor(cores) as pool:
        for target, status, log in pool.map(one, targets):
            found += status != 0
            if target != "hash_weights":
                print(summary(target, status, log), flush=True)
            else:
                print("\n".join(log.strip().splitlines()[-5:]), flush=True)
    print(f"{len(targets)} targets, {each} s each, {time.monotonic() - start:.0f} s in all; {found} found something")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
