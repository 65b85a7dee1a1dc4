#!/usr/bin/env python3
"""Draws the pictures of docs/tutorial.md with the tutorial's configs, code and commands.

    PYTHONPATH=build/python build/venv/bin/python tools/tutorial_pictures.py

Needs matplotlib, a built package, and for the last picture a C++20 compiler and CMake.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "tutorial.md", "exec", dont_inherit=True), names)


def draw_contributions(names: dict[str, Any], pipeline: Any, target: Path) -> None:
    reticle = names["reticle"]
    figure, axis = plt.subplots(figsize=(9, 2.2), layout="constrained")
    contributions = pipeline.contributions(names["q"], names["k"], names["v"])
    reticle.plot_contributions(contributions, head=1, ax=axis)
    axis.grid(visible=False)
    figure.savefig(target)
    plt.close(figure)
    print(f"{target.relative_to(ROOT)} written")


def draw_by_command(words: list[str], folder: Path, reticle: Path, target: Path) -> None:
    subprocess.run([reticle, *words, "--png", target], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    print(f"{target.relative_to(ROOT)} written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reticle", type=Path, default=ROOT / "build/tools/reticle", help="the command")
    reticle = parser.parse_args().reticle.resolve()
    plt.style.use("reticle.pictures")
    images = ROOT / "docs/images"
    found = BLOCK.findall((ROOT / "docs/tutorial.md").read_text())
    (drawn_by,) = (text for language, text in found if language == "console" and "--png" in text)
    words = shlex.split(drawn_by.removeprefix("$ reticle "))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "pattern.json").write_text(next(text for language, text in found if language == "json"))
        draw_by_command(words[: words.index("--png")], folder, reticle, images / "tutorial_config.png")

        os.chdir(ROOT)
        names: dict[str, Any] = {}
        blocks = [text for language, text in found if language == "python"]
        run(blocks[0], names)
        draw_contributions(names, names["sparse"], images / "tutorial_python.png")
        run(next(text for text in blocks if "BestBlocks" in text), names)
        rule = names["pipeline"]([*names["window"], names["BestBlocks"](blocks=8)], causal=True)
        draw_contributions(names, rule, images / "tutorial_rule.png")

        made = folder / "best_blocks"
        package = Path(names["reticle"].__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": str(package)}
        command = [sys.executable, "-m", "reticle.sdk", "new", "best_blocks"]
        subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
        built, installed = reticle.parents[1], folder / "installed"
        for step in (
            ["--install", str(built), "--prefix", str(installed)],
            ["-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={installed}"],
            ["--build", "build"],
        ):
            subprocess.run(["cmake", *step], cwd=made, stdout=subprocess.DEVNULL, check=True)
        shown = ["show", "build/best_blocks.json", "--queries", "40", "--keys", "40"]
        draw_by_command(shown, made, reticle, images / "tutorial_plugin.png")


if __name__ == "__main__":
    main()
