"""A run that is killed, or whose disk fills up, between any two changes to its files keeps all completed results, once
each.

The runs are those that can be resumed: `reticle evaluate --output`, and in the Python package
`reticle.research.search.run` and `reticle.research.evaluate.answer` (skipped without the package, pandas or torch).
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(os.environ["RETICLE_SOURCE_DIR"])
BUILD = Path(os.environ["RETICLE_BUILD_DIR"])
RETICLE = BUILD / "tools" / "reticle"
PYTHON = os.environ.get("RETICLE_PYTHON", sys.executable)

# Imports modules once, then executes each run in a child. A line of JSON gives a folder and the settings of the shim;
# the reply is the exit status and the text written to stderr.
DRIVER = """
import json, os, sys, tempfile, traceback
exec(sys.argv[1])
body = compile(sys.argv[2], "run", "exec")
for line in sys.stdin:
    folder, settings = json.loads(line)
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            os.environ.update(settings)
            os.dup2(errors.fileno(), 2)
            status = 0
            try:
                exec(body, {**globals(), "folder": folder})
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stderr.flush()
            if "FAIL_COUNT" in settings:
                import ctypes
                ctypes.CDLL(None).report_changes()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        print(json.dumps([os.waitstatus_to_exitcode(status), errors.read().decode(errors="replace")]), flush=True)
"""
SEARCH_IMPORTS = """
import pandas
from reticle.research import search
def measure(trial):
    return {"error": trial[0]["sink_size"] / 10, "density": 0.5}
"""
SEARCH = """
space = [{"type": "sink", "sink_size": search.choice(1, 2, 3)}]
search.run(space, measure, output=folder + "/trials.jsonl", progress=False)
"""
ANSWER_IMPORTS = """
import torch
torch.set_num_threads(1)
from reticle.research import evaluate
from reticle.research.benchmarks import Sample
from transformers import LlamaConfig, LlamaForCausalLM
"""
ANSWER = """
class Tokenizer:
    eos_token_id = None
    def encode(self, text, *, add_special_tokens=True, return_tensors=None):
        ids = list(text.encode())
        return torch.tensor([ids]) if return_tensors else ids
    def __call__(self, text, *, return_tensors=None, **_):
        return {"input_ids": torch.tensor([list(text.encode())])}
    def decode(self, ids, skip_special_tokens=True):
        return bytes(int(i) % 26 + 65 for i in ids).decode()
torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **sizes)).eval()
samples = [Sample("abc" * (i + 1), "?", ("x",), max_new_tokens=2) for i in range(3)]
evaluate.answer(model, Tokenizer(), samples, output_dir=folder, progress=False)
"""

Outcome = tuple[int, str]
Run = Callable[[Path, dict[str, str]], Outcome]


class Interrupted(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        cls.shim = Path(cls.folder.name) / "failing_files.so"
        source = ROOT / "tests" / "support" / "failing_files.cpp"
        command = [os.environ["RETICLE_CXX"], "-std=c++20", "-shared", "-fPIC", "-O1", "-o", cls.shim, source, "-ldl"]
        subprocess.run([str(word) for word in command], check=True)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.folder.cleanup()

    def settings_of(self, folder: Path, settings: dict[str, str]) -> dict[str, str]:
        # The shim is preloaded before a sanitizer's runtime, which would refuse that order.
        asan = {"ASAN_OPTIONS": "verify_asan_link_order=0:" + os.environ.get("ASAN_OPTIONS", "")}
        return {"FAIL_UNDER": str(folder), **asan, **settings} if settings else {}

    def expect_nothing_lost(self, name: str, run: Run, content: Callable[[Path], list[Any]]) -> None:
        """Stops the run at each file change in turn and resumes it: the results equal those of an uninterrupted run.
        The results kept at the stop are a part of them, and each row occurs once."""
        with tempfile.TemporaryDirectory(dir=self.folder.name) as unstopped:
            count = Path(self.folder.name) / "count"
            status, errors = run(Path(unstopped), {"FAIL_COUNT": str(count)})
            self.assertEqual(status, 0, errors)
            changes, expected = int(count.read_text()), content(Path(unstopped))
        self.assertGreater(changes, 5, name)
        self.assertGreater(len(expected), 1)
        for how in ("kill", "full"):
            for at in range(1, changes + 1):
                with (
                    self.subTest(name, how=how, at=at),
                    tempfile.TemporaryDirectory(dir=self.folder.name) as temporary,
                ):
                    folder = Path(temporary)
                    status, errors = run(folder, {"FAIL_AT": str(at), "FAIL_HOW": how})
                    if how == "kill":
                        self.assertNotEqual(status, 0)
                    elif status != 0:
                        self.assertRegex(errors, "[Nn]o space left")
                    for row in content(folder):
                        self.assertIn(row, expected, "kept by a run that was stopped")
                    status, errors = run(folder, {})
                    self.assertEqual(status, 0, errors)
                    self.assertEqual(content(folder), expected)
                    left = [path.name for path in folder.iterdir() if ".partial" in path.name]
                    self.assertEqual(left if how == "full" else [], [], "left behind")
        print(f"{name}: stopped at each of {changes} changes, by kill -9 and by a full disk")

    def test_results_of_the_command(self) -> None:
        options = "--window 32 --max-tokens 64 --tasks needle --lengths 256 --samples 1 --threads 1"
        configs = [str(ROOT / "configs" / "sink_local.json")]

        def run(folder: Path, settings: dict[str, str]) -> Outcome:
            shim_settings = self.settings_of(folder, settings)
            preload = {"LD_PRELOAD": str(self.shim)} if shim_settings else {}
            command = [str(RETICLE), "evaluate", *configs, *options.split(), "--output", str(folder / "results.json")]
            environment = {**os.environ, **shim_settings, **preload}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            return done.returncode, done.stderr

        def content(folder: Path) -> list[Any]:
            path = folder / "results.json"
            if not path.exists():
                return []
            return [
                re.sub(r'"seconds": [0-9.e+-]+', "", json.dumps(row)) for row in json.loads(path.read_text())["results"]
            ]

        self.expect_nothing_lost("evaluate", run, content)

    def expect_nothing_lost_in_python(
        self, name: str, imports: str, body: str, content: Callable[[Path], list[Any]]
    ) -> None:
        environment = {**os.environ, "PYTHONPATH": str(BUILD / "python"), "LD_PRELOAD": str(self.shim)}
        seen = subprocess.run([PYTHON, "-c", imports], capture_output=True, env=environment, check=False)
        if b"ModuleNotFoundError" in seen.stderr:
            self.skipTest("what it needs is not here")
        command = [PYTHON, "-c", DRIVER, imports, body]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as driver:
            assert driver.stdin
            assert driver.stdout
            to, answers = driver.stdin, driver.stdout

            def run(folder: Path, settings: dict[str, str]) -> Outcome:
                print(json.dumps([str(folder), self.settings_of(folder, settings)]), file=to, flush=True)
                status, errors = json.loads(answers.readline())
                return status, errors

            self.expect_nothing_lost(name, run, content)

    def test_trials_of_a_search(self) -> None:
        def content(folder: Path) -> list[Any]:
            path = folder / "trials.jsonl"
            text = path.read_text() if path.exists() else ""
            whole = [
                json.loads(row) for row in text.splitlines(keepends=True) if row.endswith("\n")
            ]  # an incomplete line does not count
            for row in whole:
                row["result"].pop("seconds", None)
            return sorted(json.dumps(row) for row in whole)

        self.expect_nothing_lost_in_python("search", SEARCH_IMPORTS, SEARCH, content)

    def test_answers_of_a_model(self) -> None:
        def content(folder: Path) -> list[Any]:
            path = folder / "raw_results.csv"
            text = path.read_bytes().decode() if path.exists() else ""
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
            if not text.endswith("\n"):
                rows = rows[:-1]  # an incomplete line does not count
            return [json.dumps(row | {"seconds": 0}) for row in rows]

        self.expect_nothing_lost_in_python("answer", ANSWER_IMPORTS, ANSWER, content)


if __name__ == "__main__":
    unittest.main()
