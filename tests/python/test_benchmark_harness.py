"""The comparison of two runs of the benchmarks: ratios and their noise, never times."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(os.environ["RETICLE_SOURCE_DIR"])


@pytest.fixture(scope="module")
def harness():
    spec = importlib.util.spec_from_file_location("harness", ROOT / "benchmarks" / "harness.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["harness"] = module
    spec.loader.exec_module(module)
    return module


def rows(harness, **ratios):
    """Rows of one section whose repeats vary by a percent."""
    taken = lambda seconds: harness.Median.of([seconds * (1 + share) for share in (-0.01, -0.005, 0, 0.005, 0.01)])
    return [harness.Row("Section", name, "peer", taken(1.0), taken(ratio), 1.0) for name, ratio in ratios.items()]


def compared(harness, tmp_path, before, now):
    harness.save(rows(harness, **before), "a machine", tmp_path / "run.json")
    return harness.fallen(rows(harness, **now), tmp_path / "run.json")


def test_only_rows_that_fell_by_more_than_noise_are_named(harness, tmp_path):
    worse = compared(harness, tmp_path, {"a": 2.0, "b": 2.0, "c": 2.0}, {"a": 1.95, "b": 1.0, "c": 9.0})
    assert len(worse) == 1
    assert worse[0].startswith("Section: b, peer: 2x fell to 1x")


def test_a_noisy_row_may_fall_by_twice_its_noise(harness, tmp_path):
    noisy = harness.Median.of([0.7, 0.8, 1.0, 1.2, 1.3])
    before = [harness.Row("Section", "a", "peer", noisy, harness.Median(2.0), 1.0)]
    harness.save(before, "a machine", tmp_path / "run.json")
    now = lambda ratio: [harness.Row("Section", "a", "peer", harness.Median(1.0), harness.Median(ratio), 1.0)]
    assert harness.fallen(now(1.5), tmp_path / "run.json") == []
    assert len(harness.fallen(now(0.5), tmp_path / "run.json")) == 1


def test_a_row_that_fell_by_half_is_named_however_noisy_it_is(harness, tmp_path):
    noisy = harness.Median.of([0.2, 0.5, 1.0, 1.5, 1.8])
    harness.save([harness.Row("Section", "a", "peer", noisy, noisy, 1.0)], "a machine", tmp_path / "run.json")
    now = [harness.Row("Section", "a", "peer", noisy, harness.Median(0.4), 1.0)]
    assert len(harness.fallen(now, tmp_path / "run.json")) == 1


def test_a_row_that_is_missing_is_named_unless_its_section_was_left_out(harness, tmp_path):
    assert "was not measured now" in compared(harness, tmp_path, {"a": 2.0, "b": 2.0}, {"a": 2.0})[0]
    harness.save(rows(harness, a=2.0), "a machine", tmp_path / "run.json")
    other = [harness.Row("Other", "a", "peer", 1.0, 1.0, 1.0)]
    assert harness.fallen(other, tmp_path / "run.json") == []


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"rows": 3}', '{"rows": {"a": {"ratio": "fast"}}}', '{"rows": {"a": {"ratio": NaN, "noise": 0}}}'],
)
def test_a_file_that_no_run_has_written_is_refused_by_its_path(harness, tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=r"run\.json: .*expected (a file that --save has written|finite numbers)"):
        harness.fallen([], path)
    with pytest.raises(SystemExit, match=r"none\.json"):
        harness.fallen([], tmp_path / "none.json")


def test_a_saved_run_holds_ratios_and_the_machine(harness, tmp_path):
    harness.save(rows(harness, a=2.0), "a machine", tmp_path / "run.json")
    saved = json.loads((tmp_path / "run.json").read_text())
    assert saved["machine"] == "a machine"
    assert saved["rows"]["Section: a, peer"]["ratio"] == pytest.approx(2.0)
    assert 0 < saved["rows"]["Section: a, peer"]["noise"] < 0.03
