"""The README's example and the other examples run, with the output shown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(os.environ["RETICLE_SOURCE_DIR"])


def test_the_quick_start_runs_and_is_what_the_readme_shows():
    code = (SOURCE / "examples" / "quickstart.py").read_text()
    assert f"```python\n{code}```" in (SOURCE / "README.md").read_text()
    printed = subprocess.run(
        [sys.executable, "examples/quickstart.py"], cwd=SOURCE, capture_output=True, text=True, check=True
    )
    shown = "".join(f"    {line}\n" for line in printed.stdout.splitlines())
    assert shown in (SOURCE / "README.md").read_text(), "the README shows another output"


def run(name, *arguments):
    """The output of a script in examples/."""
    done = subprocess.run(
        [sys.executable, SOURCE / "examples" / f"{name}.py", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_masker():
    lines = run("own_masker").splitlines()
    errors = [float(line.rpartition(" ")[2]) for line in lines]
    assert len(errors) == 3 and errors[0] > errors[1] > errors[2]


def test_research_attention():
    pytest.importorskip("torch")
    lines = run("research_attention").splitlines()
    assert [line.split("  ")[0] for line in lines] == ["oracle top-k", "oracle top-p", "vAttention", "MagicPIG"]
    assert all(0 < float(line.rpartition(" ")[2]) < 1 for line in lines)


def test_mask_gallery_and_quality_curves(tmp_path):
    pytest.importorskip("matplotlib")
    assert "written" in run("mask_gallery", "--output", tmp_path / "gallery.png")
    pytest.importorskip("pandas")
    assert run("quality_curves", "--queries", 2, "--output", tmp_path / "curves.png").count("error") == 3
    for name in ("gallery.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_hf_model():
    pytest.importorskip("transformers")
    printed = run("hf_model", "--new-tokens", 8)
    assert "sparse:" in printed and "% of the keys while generating" in printed


def test_basic_usage_and_benchmark_example():
    pytest.importorskip("transformers")
    printed = run("basic_usage", "--new-tokens", 8)
    assert "output: The " in printed and "logits (1, 180, 256)" in printed
    printed = run("benchmark_example", "--lengths", 200, "--new-tokens", 8, "--attention-window", 64)
    for word in ("text:", "first token", "latency", "tokens per second", "memory", "sparse against dense", "loss"):
        assert word in printed
    assert " 100 % of the keys" in printed and printed.count("% of the keys") == 2
