#!/usr/bin/env python3
"""What a GPU machine runs of a kit (`./bootstrap gpu-kit`): tests, checks and measurements, each with a time limit of its
own, going on after a failure. Needs only what the machine has: Python, a compiler, CMake, ninja, pybind11; torch and pytest
for what is of them. Nothing is installed, and nothing fetched.

Writes at most eight files to OUT: summary.md, one page; figures.json; and the logs of builds, tests, Python tests,
sanitizers, benchmarks and profiles.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parents[2]
TOTAL = {"quick": 230.0, "full": 470.0}  # seconds


@dataclass
class Result:
    name: str
    verdict: str  # "passed", "failed", "skipped", "no device", "timed out"
    note: str
    seconds: float


@dataclass
class Run:
    """The kit's folder once unpacked, where results go, and the time that is left."""

    kit: Path
    out: Path
    mode: str
    begun: float = field(default_factory=time.monotonic)
    results: list[Result] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        return self.begun + TOTAL[self.mode] - time.monotonic()

    def environment(self) -> dict[str, str]:
        libraries = [str(self.kit / "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(libraries),
            "PYTHONPATH": str(self.kit / "build" / "python"),
            "PYTHONUNBUFFERED": "1",
            "RETICLE_SOURCE_DIR": str(TREE),
            "PATH": f"{os.environ['PATH']}:/usr/local/cuda/bin",
        }

    def log(self, name: str, text: str) -> None:
        with (self.out / f"{name}.log").open("a") as file:
            file.write(text + "\n")

    def command(self, log: str, words: list[str | Path], limit: float) -> tuple[int | None, str]:
        """Exit status, None where the time was up, and the output, which is also logged."""
        limit = max(1.0, min(limit, self.left()))
        line = " ".join(str(word) for word in words)
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            try:
                process = subprocess.Popen(
                    [str(word) for word in words],
                    cwd=TREE,
                    env=self.environment(),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                self.log(log, f"$ {line}\n{error}")
                return 127, str(error)
            try:
                status: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            text = output.read()
        self.log(log, f"$ {line}\n{text}[{'timed out' if status is None else f'exit status {status}'}]\n")
        return status, text

    def step(self, name: str, body: Callable[[], tuple[str, str]]) -> None:
        begin = time.monotonic()
        if self.left() < 5:
            result = Result(name, "skipped", "no time left", 0)
        else:
            try:
                verdict, note = body()
            except Exception as error:
                verdict, note = "failed", f"{type(error).__name__}: {error}"
            result = Result(name, verdict, note, time.monotonic() - begin)
        self.results.append(result)
        print(
            f"[{result.seconds:5.1f} s] {name}: {result.verdict}{': ' if result.note else ''}{result.note}", flush=True
        )
        self.write_summary()

    def write_summary(self) -> None:
        """After every step, so that a machine that goes away has left what it did."""
        made_of = json.loads((self.kit / "kit.json").read_text())
        lines = [
            f"# GPU kit, {self.mode}: {self.figures.get('device', 'no device')}",
            "",
            f"Made of {made_of['commit']} ({made_of['toolkit']}, {made_of['compiler']}); "
            f"{time.monotonic() - self.begun:.0f} s in all; Python {platform.python_version()}.",
            "",
            "| step | result | seconds | |",
            "|---|---|---|---|",
            *(
                f"| {result.name} | {result.verdict} | {result.seconds:.1f} | {result.note.replace('|', '/')} |"
                for result in self.results
            ),
        ]
        if rows := self.figures.get("rows"):
            lines += ["", *table_of(rows, self.figures)]
        if kernels := self.figures.get("kernels"):
            lines += ["", "| kernel | " + " | ".join(METRICS) + " |", "|---" * (1 + len(METRICS)) + "|"]
            lines += [
                f"| {name} | " + " | ".join(found.get(m, "") for m in METRICS) + " |" for name, found in kernels.items()
            ]
        (self.out / "summary.md").write_text("\n".join(lines) + "\n")
        (self.out / "figures.json").write_text(json.dumps(self.figures, indent=1))


def table_of(rows: list[dict[str, Any]], figures: dict[str, Any]) -> list[str]:
    lines = [
        f"Copies {figures.get('copy', 0) / 1e9:.0f} GB/s, bf16 products {figures.get('rate', 0) / 1e12:.0f} Tflop/s.",
        "",
        "| what | time | share of the limit | beside |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['name']} | **failed** | {row['failed'].replace('|', '/')} | |")
            continue
        beside = f"{row['peer_seconds'] / row['seconds']:.2f}x {row['peer']}" if row.get("peer_seconds") else ""
        lines.append(
            f"| {row['name']} | {1e6 * row['seconds']:.1f} us | {100 * row['share']:.0f} % of {row['of']} | {beside} |"
        )
    return lines


def first_line(text: str, *patterns: str) -> str:
    """The first line that has one of the patterns, the first pattern first; else the last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for pattern in patterns:
        for line in lines:
            if re.search(pattern, line):
                return line[:200]
    return lines[-1][:200] if lines else "no output"


def has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


NO_DEVICE = r"no CUDA-capable device|driver version is insufficient|no device|^no GPU"


def device_facts(run: Run) -> tuple[str, str]:
    shown = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
    status, text = run.command("build", list(shown), 20)
    run.command("build", ["nvcc", "--version"], 10)
    run.command("build", ["c++", "--version"], 10)
    if status != 0:
        return "no device", "nvidia-smi: " + first_line(text)
    run.figures["device"] = text.splitlines()[0].strip()
    return "passed", run.figures["device"]


def gtest(run: Run, wanted: str, limit: float, prefix: tuple[str, ...] = ()) -> tuple[str, str]:
    log = "sanitizer" if prefix else "device_tests"
    words = [*prefix, run.kit / "bin" / "reticle_tests", f"--gtest_filter={wanted}", "--gtest_color=no"]
    status, text = run.command(log, words, limit)
    passed = len(re.findall(r"^\[       OK \]", text, re.MULTILINE))
    skipped = len(re.findall(r"^\[  SKIPPED \] .*\(", text, re.MULTILINE))
    counts = f"{passed} passed, {skipped} skipped"
    if status is None:
        return "timed out", f"{counts}; in {first_line(text.split('[ RUN      ]')[-1])}"
    if status != 0:
        failed = len(set(re.findall(r"^\[  FAILED  \] (\S+)", text, re.MULTILINE)))
        said = first_line(text, "ERROR SUMMARY", "Failure", "C.. exception", "=========")
        return "failed", f"{counts}, {failed} failed; {said}"
    if passed == 0:
        return ("no device", first_line(text, NO_DEVICE)) if skipped else ("failed", first_line(text))
    return "passed", counts


class Background:
    """A step that runs beside the next ones, until its own turn comes."""

    def __init__(self, body: Callable[[], tuple[str, str]]) -> None:
        self._answer: tuple[str, str] = ("failed", "did not end")
        self._thread = threading.Thread(target=self._work, args=(body,), daemon=True)
        self._begun, self._seconds = time.monotonic(), 0.0
        self._thread.start()

    def _work(self, body: Callable[[], tuple[str, str]]) -> None:
        try:
            self._answer = body()
        except Exception as error:
            self._answer = ("failed", f"{type(error).__name__}: {error}")
        self._seconds = time.monotonic() - self._begun

    def answer(self) -> tuple[str, str]:
        self._thread.join()
        verdict, note = self._answer
        return verdict, f"{note}; {self._seconds:.0f} s, beside the tests before"


def build_package(run: Run) -> tuple[str, str]:
    build = run.kit / "build"
    if json.loads((run.kit / "kit.json").read_text())["bindings"] != digest_of_bindings():
        return "failed", "the kit was made of another tree: ./bootstrap gpu-kit"
    missing = [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]
    if missing or not has_module("pybind11"):
        return "skipped", f"not here: {', '.join(missing) or 'pybind11'}"
    configure = ["cmake", "-G", "Ninja", "-S", TREE / "tools" / "gpu_kit", "-B", build, f"-DRETICLE_KIT={run.kit}"]
    settings = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS=-O1", f"-DPython_EXECUTABLE={sys.executable}"]
    for words, limit in (([*configure, *settings], 30.0), (["cmake", "--build", build], 120.0)):
        status, text = run.command("build", list(words), limit)
        if status != 0:
            return "failed" if status is not None else "timed out", first_line(
                text, r"\berror\b", "CMake Error", "FAILED"
            )
    probe = "import reticle; print(reticle._core.cuda_device_count(), reticle._core.why_cuda_is_unavailable())"
    status, text = run.command("build", [sys.executable, "-c", probe], 30)
    return ("passed", f"GPUs seen: {text.splitlines()[0]}") if status == 0 else ("failed", first_line(text, "Error"))


def pytest(run: Run, files: list[str], limit: float, *options: str) -> tuple[str, str]:
    missing = [name for name in ("pytest", "torch", "numpy") if not has_module(name)]
    if missing:
        return "skipped", f"not here: {', '.join(missing)}"
    words = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-rsfE", *options]
    status, text = run.command("python_tests", [*words, *(f"tests/python/{file}" for file in files)], limit)
    counts = first_line(text, r"\d+ (passed|failed|skipped|deselected|error).* in ")
    worst = [float(found) for found in re.findall(r"relative error (\S+)", text)]
    if worst:
        run.figures.setdefault("errors", {})[files[0]] = max(worst)
        counts += f"; largest relative error {max(worst):.1e}"
    if status is None:
        return "timed out", first_line(text, r"^E  ", r"^FAILED")
    if status != 0:
        said = first_line(text, "^E  ", "^FAILED", "^ERROR")
        return "failed", f"{counts}; {said}"
    if " passed" not in counts or "device" not in run.figures:
        return "no device", f"{counts}; {first_line(text, r'SKIPPED.*no GPU', r'SKIPPED')}"
    return "passed", counts


def float64(run: Run) -> tuple[str, str]:
    return pytest(run, ["test_float64.py"], 60, "-k", "cuda", "-s")


def benchmark_python(run: Run) -> tuple[str, str]:
    if not has_module("torch"):
        return "skipped", "not here: torch"
    figures = run.out.parent / f".{run.out.name}.python.json"
    limit = 60.0 if run.mode == "quick" else 150.0
    words = [sys.executable, "benchmarks/gpu.py", "--json", figures, "--seconds", f"{0.8 * min(limit, run.left()):.0f}"]
    return benchmark(run, [*words, *(["--quick"] if run.mode == "quick" else [])], figures, limit)


def benchmark_cpp(run: Run) -> tuple[str, str]:
    figures = run.out.parent / f".{run.out.name}.cpp.json"
    rate = run.figures.get("rate")
    words = [
        run.kit / "bin" / "bench_gpu",
        "--json",
        figures,
        *([] if rate is None else ["--rate", f"{rate / 1e12:.0f}"]),
    ]
    return benchmark(run, [*words, *(["--quick"] if run.mode == "quick" else [])], figures, 60)


def benchmark(run: Run, words: list[Any], figures: Path, limit: float) -> tuple[str, str]:
    status, text = run.command("benchmarks", words, limit)
    if figures.exists():
        found = json.loads(figures.read_text())
        figures.unlink()
        run.figures.setdefault("copy", found["copy"])
        run.figures.setdefault("rate", found["rate"])
        run.figures.setdefault("rows", []).extend(found["rows"])
    if re.search(NO_DEVICE, text, re.MULTILINE):
        return "no device", first_line(text, NO_DEVICE)
    if status is None:
        return "timed out", first_line(text, "FAILED")
    return ("passed", "") if status == 0 else ("failed", first_line(text, "FAILED", "Error"))


METRICS = {
    "Duration": r"^\s*Duration\s+(\S+)\s+(\S+)",
    "Memory Throughput": r"^\s*Memory Throughput\s+(%)\s+(\S+)",
    "Compute (SM) Throughput": r"^\s*Compute \(SM\) Throughput\s+(%)\s+(\S+)",
    "Achieved Occupancy": r"^\s*Achieved Occupancy\s+(%)\s+(\S+)",
    "Registers Per Thread": r"^\s*Registers Per Thread\s+(\S+)\s+(\S+)",
}
PROFILED = {"decode_kernel": "runs of 16", "wide_tile_kernel": "causal", "backward_tile_kernel": "gradients"}


def profile(run: Run) -> tuple[str, str]:
    if shutil.which("ncu", path=run.environment()["PATH"]) is None:
        return "skipped", "not here: ncu"
    notes = []
    for kernel, row in PROFILED.items():
        words = ["ncu", "--kernel-name", f"regex:{kernel}", "--launch-count", "1", "--section", "SpeedOfLight"]
        words += ["--section", "Occupancy", "--section", "LaunchStats", "--section", "MemoryWorkloadAnalysis"]
        program = [run.kit / "bin" / "bench_gpu", "--quick", "--once", "--only", row]
        status, text = run.command("profiles", [*words, *program], 25)
        found = {}
        for name, pattern in METRICS.items():
            if match := re.search(pattern, text, re.MULTILINE):
                found[name] = f"{match[2]} {match[1]}".replace("register/thread", "").strip()
        if found:
            run.figures.setdefault("kernels", {})[kernel] = found
        if status != 0 or not found:
            notes.append(f"{kernel}: {first_line(text, NO_DEVICE, '==ERROR==', 'FAILED')}")
    if not notes:
        return "passed", ""
    return ("no device" if re.search(NO_DEVICE, notes[0]) else "failed"), "; ".join(notes)


def digest_of_bindings() -> str:
    """Of what is compiled against a kit's library: a kit of another tree is told by it."""
    files = sorted([*(TREE / "bindings").glob("*.[ch]pp"), TREE / "bindings" / "CMakeLists.txt"])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def unpack(archive: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="reticle-kit-"))
    with tarfile.open(archive) as kit:
        kit.extractall(folder, **({"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}))  # type: ignore[arg-type]
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path, help="folder that holds kit.tar.xz")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("mode", nargs="?", default="quick", choices=list(TOTAL), help="4 minutes, or 8")
    arguments = parser.parse_args()
    archive = arguments.kit / "kit.tar.xz"
    if not archive.exists():
        sys.exit(f"{archive}: not there; ./bootstrap gpu-kit makes it")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    kit = unpack(archive)
    try:
        run = Run(kit, out, arguments.mode, begun)
        print(f"[{time.monotonic() - begun:5.1f} s] unpacked into {kit}", flush=True)
        full = arguments.mode == "full"
        package = Background(lambda: build_package(run))
        run.step("device", lambda: device_facts(run))
        run.step("C++ device tests, small", lambda: gtest(run, "CudaSmall.*", 30))
        run.step("C++ device tests", lambda: gtest(run, "CudaDevice.*", 90 if full else 45))
        run.step("Python extension", package.answer)
        run.step("float64 comparisons", lambda: float64(run))
        tests = ["test_torch.py", "test_nsa.py", "test_gpu.py"]
        run.step("Python device tests", lambda: pytest(run, tests, 90 if full else 45, "-k", "gpu"))
        run.step("benchmarks, Python", lambda: benchmark_python(run))
        run.step("benchmarks, C++", lambda: benchmark_cpp(run))
        for tool in ("memcheck", "racecheck", "synccheck"):
            sanitizer = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20")
            name = f"compute-sanitizer {tool}"
            if shutil.which("compute-sanitizer", path=run.environment()["PATH"]) is None:
                run.step(name, lambda: ("skipped", "not here: compute-sanitizer"))
            else:
                run.step(name, lambda words=sanitizer: gtest(run, "CudaSmall.*", 60 if full else 20, words))
        run.step("profiles (ncu)", lambda: profile(run))
        bodies = "Cuda*-CudaDevice.*:CudaSmall.*:CudaThreads*"
        run.step("kernels' bodies on this CPU", lambda: gtest(run, bodies, 60 if full else 30))
    finally:
        shutil.rmtree(kit, ignore_errors=True)
    bad = [result for result in run.results if result.verdict in ("failed", "timed out")]
    print(f"{len(run.results) - len(bad)} steps went well or had no device, {len(bad)} did not; {out / 'summary.md'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
