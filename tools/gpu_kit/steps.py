#!/usr/bin/env python3
"""Runs a kit (`./bootstrap gpu-kit`) on a GPU machine: tests, checks and measurements, each with a time limit; a
failure does not stop the others. Needs only Python, a compiler, CMake, ninja and pybind11, and torch and pytest for the
steps that use them. Nothing is installed or downloaded.

Writes at most eight files to OUT: summary.md, one page; figures.json; and the logs of builds, tests, Python tests,
sanitizers, benchmarks and profiles.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import lzma
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parents[2]
WRITTEN = (
    *("summary.md", "figures.json", "build.log", "device_tests.log", "python_tests.log", "sanitizer.log"),
    *("benchmarks.log", "profiles.log"),
)
TOTAL = {"quick": 230.0, "full": 470.0}  # seconds


@dataclass
class Result:
    name: str
    verdict: str  # "passed", "failed", "skipped", "no device", "timed out"
    note: str
    seconds: float


@dataclass
class Run:
    """The folder of the unpacked kit, the output folder, and the remaining time."""

    kit: Path
    out: Path
    mode: str
    begun: float = field(default_factory=time.monotonic)
    results: list[Result] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    hung: set[str] = field(default_factory=set)  # names of tests
    gpus: int = 0  # number of GPUs that the built package sees
    built: bool = False  # True once the package is built

    def left(self) -> float:
        return self.begun + TOTAL[self.mode] - time.monotonic()

    def environment(self) -> dict[str, str]:
        libraries = [str(self.kit / "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(libraries),
            "PYTHONPATH": ":".join([str(self.kit / "build" / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
            "RETICLE_SOURCE_DIR": str(TREE),
            "PATH": f"{os.environ['PATH']}:/usr/local/cuda/bin",
        }

    def log(self, name: str, text: str) -> None:
        with (self.out / f"{name}.log").open("a") as file:
            file.write(text + "\n")

    def command(self, log: str, words: list[str | Path], limit: float) -> tuple[int | None, str]:
        """(exit status, output); the status is None if the time limit passed. The output is also logged."""
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
            except BaseException as error:  # an interrupt too must not leave the process holding the GPU
                status = None
                os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):  # the process may be stuck in the driver
                    process.wait(10)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
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
        """Called after every step, so that the results so far survive if the machine goes away."""
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
    assumed = "" if figures.get("rate_measured") else " (assumed, not measured)"
    lines = [
        f"Copies {figures.get('copy', 0) / 1e9:.0f} GB/s, bf16 products {figures.get('rate', 0) / 1e12:.0f} Tflop/s{assumed}.",
        "",
        "| what | time | share of the limit | beside |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['name']} | **failed** | {row['failed'].replace('|', '/')} | |")
            continue
        beside = (
            f"{row['peer_seconds'] / row['seconds']:.2f}x {row['peer']}"
            if row.get("peer_seconds")
            else row.get("peer", "")
        )
        lines.append(
            f"| {row['name']} | {1e6 * row['seconds']:.1f} us | {100 * row['share']:.0f} % of {row['of']} | {beside} |"
        )
    return lines


def first_line(text: str, *patterns: str) -> str:
    """The first line that matches the first matching pattern; else the last line that is not empty."""
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


def death_of(status: int, text: str) -> str:
    """The last message of a process that a signal killed."""
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    said = re.findall(r"what\(\):\s*(.*)|^(terminate called.*)", text, re.MULTILINE)
    return f"{name}; {' '.join(filter(None, said[-1]))}" if said else name


def failure_of(text: str) -> str:
    """The first failure in a gtest run's output."""
    if match := re.search(r'C\+\+ exception with description "(.*?)" thrown', text, re.DOTALL):
        return match[1]
    lines = text.splitlines()
    at = next((i for i, line in enumerate(lines) if re.search(r": Failure$", line)), None)
    return first_line(text) if at is None else " ".join(line.strip() for line in lines[at + 1 : at + 4])[:200]


def tests_of(run: Run, suites: str) -> list[str]:
    status, text = run.command(
        "device_tests", [run.kit / "bin" / "reticle_tests", f"--gtest_filter={suites}", "--gtest_list_tests"], 20
    )
    suite, names = "", []
    for line in text.splitlines() if status == 0 else []:
        if line.endswith(".") and not line.startswith(" "):
            suite = line
        elif line.startswith("  ") and suite:
            names.append(suite + line.split("#")[0].strip())
    return names


def gtest(run: Run, suites: str, limit: float, prefix: tuple[str, ...] = (), each: float = 20) -> tuple[str, str]:
    """Runs each test in a separate process: an illegal address ruins its process, and a hang affects one test only."""
    log, until = "sanitizer" if prefix else "device_tests", time.monotonic() + limit
    names = [name for name in tests_of(run, suites) if not (prefix and name in run.hung)]
    passed, bad, skipped = 0, [], ""
    for name in names:
        left = until - time.monotonic()
        if left < 1 or run.left() < 5:
            bad.append(f"{name}: no time left")
            continue
        words = [*prefix, run.kit / "bin" / "reticle_tests", f"--gtest_filter={name}", "--gtest_color=no"]
        status, text = run.command(log, words, min(each, left))
        reported = re.search(r"=+ (Invalid .*|Error: .*|Warning: Race.*|(?:ERROR|RACECHECK) SUMMARY: [1-9].*)", text)
        if status is None:
            run.hung.add(name)
            bad.append(f"{name}: timed out")
        elif prefix and "Device not supported" in text:
            return "no device", first_line(text, "Device not supported")
        elif reported:
            bad.append(f"{name}: {reported[1][:150]}")
        elif "[  SKIPPED ]" in text:
            skipped = first_line(text, NO_DEVICE)
        elif status == 0:
            passed += 1
        elif status < 0 or "[  FAILED  ]" not in text:
            bad.append(f"{name}: {death_of(status, text)}")
        else:
            bad.append(f"{name}: {failure_of(text)[:150]}")
    if skipped and not passed and not bad:
        return "no device", skipped
    if not names:
        return "failed", "no test was listed; see the log"
    counts = f"{passed} of {len(names)} passed"
    return ("failed", f"{counts}; {'; '.join(bad[:3])}") if bad else ("passed", counts)


class Background:
    """A step that runs in parallel with the next ones until its result is needed."""

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
    if json.loads((run.kit / "kit.json").read_text())["sources"] != digest_of_sources():
        return "failed", "the kit was made of another tree: ./bootstrap gpu-kit"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "skipped", f"not here: Python.h, in {sysconfig.get_path('include')}"
    missing = [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]
    if missing or not has_module("pybind11"):
        return "skipped", f"not here: {', '.join(missing) or 'pybind11'}"
    configure = ["cmake", "-G", "Ninja", "-S", TREE / "tools" / "gpu_kit", "-B", build, f"-DRETICLE_KIT={run.kit}"]
    settings = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF"]
    settings.append(f"-DPython_EXECUTABLE={sys.executable}")
    for words, limit in (([*configure, *settings], 30.0), (["cmake", "--build", build], 120.0)):
        status, text = run.command("build", list(words), limit)
        if status != 0:
            return "failed" if status is not None else "timed out", first_line(
                text, r"\berror\b", "CMake Error", "FAILED"
            )
    probe = "import reticle; print(reticle._core.cuda_device_count(), reticle._core.why_cuda_is_unavailable())"
    status, text = run.command("build", [sys.executable, "-c", probe], 30)
    if status != 0:
        return "failed", first_line(text, "Error")
    run.gpus = int(text.split()[0])
    run.built = True
    return "passed", f"GPUs seen: {text.splitlines()[0]}"


def pytest(run: Run, files: list[str], limit: float, *options: str) -> tuple[str, str]:
    missing = [name for name in ("pytest", "torch", "numpy") if not has_module(name)]
    if missing or not run.built:
        return "skipped", f"not here: {', '.join(missing) or 'the package'}"
    words = [sys.executable, "-B", "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short", "-rfE", *options]
    status, text = run.command("python_tests", [*words, *(f"tests/python/{file}" for file in files)], limit)
    counts = first_line(text, r"\d+ (passed|failed|skipped|deselected|error).* in ").strip("= ")
    errors = [float(found) for found in re.findall(r"relative error (\S+)", text)]
    if errors:
        worst = max(errors, key=lambda error: (math.isnan(error), error))
        run.figures.setdefault("errors", {})[files[0]] = str(worst)
        counts += f"; largest relative error {worst:.1e}"
    if status is None:
        begun = re.findall(r"^\S+::\S+", text, re.MULTILINE)
        return "timed out", f"in {begun[-1] if begun else 'its collection'}"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?$", text, re.MULTILINE)
    if status < 0:
        begun = re.findall(r"^\S+::\S+", text, re.MULTILINE)
        return "failed", f"{death_of(status, text)} in {begun[-1] if begun else 'its collection'}"
    if status != 0:
        said = (
            f"{failed[1].split('::')[-1]}: {failed[2] or first_line(text, '^E  ')}"
            if failed
            else first_line(text, "^E  ")
        )
        return "failed", f"{counts}; {said[:200]}"
    return ("passed" if run.gpus else "no device"), counts


def float64(run: Run) -> tuple[str, str]:
    return pytest(run, ["test_float64.py"], 60, "--only-gpu", "-s")


def benchmark_python(run: Run) -> tuple[str, str]:
    if not has_module("torch") or not run.built:
        return "skipped", f"not here: {'the package' if has_module('torch') else 'torch'}"
    figures, limit = run.kit / "python.json", 60.0 if run.mode == "quick" else 150.0
    words = [sys.executable, "benchmarks/gpu.py", "--json", figures, "--seconds", f"{0.8 * min(limit, run.left()):.0f}"]
    return benchmark(run, [*words, *(["--quick"] if run.mode == "quick" else [])], figures, limit, measures_rate=True)


def benchmark_cpp(run: Run) -> tuple[str, str]:
    figures, rate = run.kit / "cpp.json", run.figures.get("rate")
    words = [
        run.kit / "bin" / "bench_gpu",
        "--json",
        figures,
        *([] if rate is None else ["--rate", f"{rate / 1e12:.0f}"]),
    ]
    return benchmark(run, [*words, *(["--quick"] if run.mode == "quick" else [])], figures, 60, measures_rate=False)


def benchmark(run: Run, words: list[Any], figures: Path, limit: float, *, measures_rate: bool) -> tuple[str, str]:
    status, text = run.command("benchmarks", words, limit)
    if figures.exists():
        found = json.loads(figures.read_text())
        run.figures.setdefault("copy", found["copy"])
        run.figures.setdefault("rate", found["rate"])
        run.figures["rate_measured"] = run.figures.get("rate_measured", False) or measures_rate
        for row in found["rows"]:
            if "failed" not in row and not (row["seconds"] and row["share"]):
                row["failed"] = "its figures are not finite"
            run.figures.setdefault("rows", []).append(row)
    if re.search(NO_DEVICE, text, re.MULTILINE):
        return "no device", first_line(text, NO_DEVICE)
    if status is None:
        return "timed out", first_line(text, "FAILED")
    if status < 0:
        return "failed", death_of(status, text)
    return ("passed", "") if status == 0 else ("failed", first_line(text, "FAILED", "Error"))


METRICS = {
    "Duration": r"^\s*Duration\s+(\S+)\s+(\S+)",
    "Memory Throughput": r"^\s*Memory Throughput\s+(%)\s+(\S+)",
    "Compute (SM) Throughput": r"^\s*Compute \(SM\) Throughput\s+(%)\s+(\S+)",
    "Achieved Occupancy": r"^\s*Achieved Occupancy\s+(%)\s+(\S+)",
    "Registers Per Thread": r"^\s*Registers Per Thread\s+(\S+)\s+(\S+)",
}
PROFILED = {
    "DecodePart": "runs of 16",
    "AttendWideTile": "prefill, 4k, causal",
    "DifferentiateTile": "gradients",
}


def profile(run: Run) -> tuple[str, str]:
    if shutil.which("ncu", path=run.environment()["PATH"]) is None:
        return "skipped", "not here: ncu"
    notes = []
    for kernel, row in PROFILED.items():
        words = [
            "ncu",
            "--clock-control",
            "none",
            "--kernel-name-base",
            "demangled",
            "--kernel-name",
            f"regex:{kernel}",
            "--launch-count",
            "2",
        ]
        words += ["--section", "SpeedOfLight"]
        words += ["--section", "Occupancy", "--section", "LaunchStats", "--section", "MemoryWorkloadAnalysis"]
        program = [run.kit / "bin" / "bench_gpu", "--quick", "--once", "--only", row]
        status, text = run.command("profiles", [*words, *program], 25)
        found = {}
        for name, pattern in METRICS.items():
            if match := re.search(pattern, text, re.MULTILINE):
                found[name] = f"{match[2]} {match[1]}".replace("register/thread", "").strip()
        if found:
            run.figures.setdefault("kernels", {})[kernel] = found
        if status is None:
            return "timed out", f"{kernel}; nothing more was profiled"
        if status != 0 or not found:
            notes.append(f"{kernel}: {first_line(text, NO_DEVICE, '==ERROR==', 'Failed to', 'FAILED')}")
    if not notes:
        return "passed", ""
    return ("no device" if re.search(NO_DEVICE, notes[0]) else "failed"), "; ".join(notes)


def digest_of_sources() -> str:
    """A digest of the compiled sources, which detects a kit of another source tree."""
    folders = ("core", "maskers", "attention", "bindings")
    kinds = {".hpp", ".cpp", ".cu", ".cuh"}
    files = sorted(path for folder in folders for path in (TREE / folder).rglob("*") if path.suffix in kinds)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def unpack(archive: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="reticle-kit-"))
    try:
        with tarfile.open(archive) as kit:
            kit.extractall(folder, **({"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}))  # type: ignore[arg-type]
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(f"{archive}: cannot be unpacked: {error}")
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
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in WRITTEN:
            (out / name).unlink(missing_ok=True)
            (out / name).touch()
    except OSError as error:
        sys.exit(f"{out}: expected a folder to write to: {error}")
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
        run.step("Python device tests", lambda: pytest(run, tests, 90 if full else 45, "--only-gpu"))
        run.step("benchmarks, Python", lambda: benchmark_python(run))
        run.step("benchmarks, C++", lambda: benchmark_cpp(run))
        for tool in ("memcheck", "racecheck", "synccheck"):
            sanitizer = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20")
            name = f"compute-sanitizer {tool}"
            if shutil.which("compute-sanitizer", path=run.environment()["PATH"]) is None:
                run.step(name, lambda: ("skipped", "not here: compute-sanitizer"))
            else:
                run.step(name, lambda words=sanitizer: gtest(run, "CudaSmall.*", 60 if full else 20, words, each=15))
        run.step("profiles (ncu)", lambda: profile(run))
    finally:
        shutil.rmtree(kit, ignore_errors=True)
    bad = [result for result in run.results if result.verdict in ("failed", "timed out")]
    print(f"{len(run.results) - len(bad)} steps went well or had no device, {len(bad)} did not; {out / 'summary.md'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
