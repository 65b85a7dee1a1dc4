"""Mistakes that the compiler must refuse: see misuse/README.md."""

from __future__ import annotations

import os
import re
import subprocess
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent / "misuse"
CXX = os.environ["RETICLE_CXX"]
IS_GNU = (
    "Free Software Foundation" in subprocess.run([CXX, "--version"], capture_output=True, text=True, check=False).stdout
)
INCLUDE = Path(os.environ["RETICLE_BUILD_DIR"]) / "include"


def compile_with(source: Path, mistake: str | None) -> subprocess.CompletedProcess[str]:
    define = [] if mistake is None else [f"-D{mistake}"]
    command = [CXX, "-std=c++20", "-fsyntax-only", f"-I{INCLUDE}", *define, str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})


class Misuse(unittest.TestCase):
    def test_each_mistake_is_refused_and_each_file_compiles_without(self) -> None:
        cases: list[tuple[Path, str | None, str]] = []
        for source in sorted(HERE.glob("*.cpp")):
            text = source.read_text()
            mistakes = re.findall(r"#(?:el)?if defined\((\w+)\)\n\s*// expected: (.+)", text)
            self.assertEqual(len(mistakes), text.count("if defined("), f"{source}: a mistake says what is expected")
            cases.append((source, None, ""))
            cases.extend((source, mistake, expected) for mistake, expected in mistakes)
        self.assertGreater(len(cases), 12)
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda case: compile_with(case[0], case[1]), cases))
        for (source, mistake, expected), result in zip(cases, results, strict=True):
            with self.subTest(source.name, mistake=mistake):
                if mistake is None:
                    self.assertEqual(result.returncode, 0, result.stderr)
                else:
                    self.assertNotEqual(result.returncode, 0, f"{mistake} compiles")
                    if IS_GNU:  # other compilers word it differently
                        self.assertIn(expected, result.stderr)


if __name__ == "__main__":
    unittest.main()
