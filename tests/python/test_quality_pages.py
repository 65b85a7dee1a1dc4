"""The scripts that write docs/sampling.md and docs/quality.md, in their quick forms, and the curves that they share."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import reticle

pytest.importorskip("matplotlib")

from reticle.research import curves

SOURCE = Path(os.environ["RETICLE_SOURCE_DIR"])
PNG = b"\x89PNG"


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, SOURCE / "tools" / script, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(page, first_cell):
    """The cells of a page's table rows that begin with a cell."""
    return [line.split(" | ") for line in page.splitlines() if line.startswith(f"| {first_cell} |")]


def test_the_page_of_sampling_is_written_again_with_its_figures(tmp_path):
    run("measure_sampling.py", "--quick", "--output", tmp_path)
    page = (tmp_path / "sampling.md").read_text()
    for picture in re.findall(r"\]\((images/\S+\.png)\)", page):
        assert (tmp_path / picture).read_bytes().startswith(PNG)
    # What the full page says of many draws shows in few: a top-k before it is what makes adaptive_sampling keep close.
    share = lambda row: float(row[4].split()[0])
    for alone, after_top_k in zip(
        rows_of(page, "sinks, window"), rows_of(page, "sinks, window, 2 % heaviest"), strict=True
    ):
        assert share(after_top_k) < share(alone)
    again = tmp_path / "again"
    run("measure_sampling.py", "--quick", "--output", again)
    without_time = lambda text: re.sub(r"this took \d+ minutes", "", text)
    assert without_time((again / "sampling.md").read_text()) == without_time(page), "seeds decide the draws"


def test_the_interval_of_a_share_is_wilsons():
    low, high = curves.interval(0.5, 24)
    z, n = 1.959964, 24
    # The ends are the p whose distance from the share is z standard errors of p itself.
    for end in (low, high):
        assert abs(0.5 - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-5)
    assert curves.interval(0, 24)[0] == 0 and curves.interval(1, 24)[1] == 1


def result(name, density, loss, exact):
    stage = {"density": density, "mean_sparsity": 1 - density}
    full = {"density": 1.0, "mean_sparsity": 0.0}
    task = {"task": "needle", "length": 100, "exact": exact, "prefill": full, "generation": stage}
    config = None if name == "dense" else {"generation": {"maskers": []}}
    return {"name": name, "config": config, "loss": loss, "prefill": full, "generation": stage, "retrieval": [task]}


def test_curves_have_a_panel_per_pattern_and_points_in_order_of_density():
    results = [
        result("dense", 1, 1.0, 1),
        result("a", 0.5, 1.1, 1),
        result("a", 0.1, 1.5, 0.25),
        result("b", 0.2, 1.2, 0),
    ]
    curves.use_style()
    figure = curves.loss_figure(results, "generation")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["a", "b"]
    assert [[round(float(v), 6) for v in data] for data in panels[0].lines[-1].get_data()] == [[10, 50], [0.5, 0.1]]
    figure = curves.retrieval_figure(results, "generation", 4)
    assert [list(data) for data in figure.axes[0].lines[0].get_data()] == [[10, 50], [25, 100]]


def test_curves_are_written_of_the_stages_that_are_sparse_and_refused_when_none_is(tmp_path):
    results = [result("dense", 1, 1.0, 1), result("a", 0.5, 1.1, 1)]
    document = {"settings": {"samples": 4}, "results": results}
    paths = curves.write(document, tmp_path / "made")
    assert [path.name for path in paths] == ["loss_generation.png", "retrieval_generation.png"]
    assert all(path.read_bytes().startswith(PNG) for path in paths)
    with pytest.raises(ValueError, match="there is nothing to draw"):
        curves.write({**document, "results": results[:1]}, tmp_path)


@pytest.fixture
def binary():
    """The C++ command of this build."""
    found = Path(reticle.__file__).parents[2] / "tools" / "reticle"
    if not found.exists():
        pytest.skip("this build has no C++ command")
    return found


@pytest.fixture
def command(tmp_path, binary):
    """The `reticle` command as an installed package has it: this build's package, with this build's C++ command."""
    package = Path(reticle.__file__).parent
    installed = tmp_path / "site" / "reticle"
    (installed / "bin").mkdir(parents=True)
    for entry in package.iterdir():
        (installed / entry.name).symlink_to(entry)
    (installed / "bin/reticle").symlink_to(binary)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*arguments):
        words = [sys.executable, "-m", "reticle", *map(str, arguments)]
        return subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_a_grid_is_evaluated_and_drawn_by_one_command_and_drawn_again_from_its_results(command, tmp_path):
    window = {"type": "local", "window_size": 8}
    config = {"prefill": {"maskers": []}, "generation": {"maskers": [window]}}
    sizes = {"/generation/maskers/0/window_size": [8, 32]}
    (tmp_path / "grid.json").write_text(json.dumps([{"name": "window", "config": config, "grid": sizes}]))
    arguments = ["evaluate", "--grid", "grid.json", "--window", 64, "--output-length", 8, "--max-tokens", 65]
    arguments += ["--tasks", "needle", "--lengths", 128, "--samples", 1, "--output", "results.json", "--plot"]
    for folder in ("first", "second"):
        done = command(*arguments, folder)
        assert done.returncode == 0, done.stderr
        assert "window window_size=32" in done.stdout, "the table is printed as without --plot"
        assert f"loss_generation.png, retrieval_generation.png written to {folder}" in done.stderr
    for name in ("loss_generation.png", "retrieval_generation.png"):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("first", "second"))
        assert first.startswith(PNG) and first == second


def test_plots_of_a_grid_that_cannot_be_made_are_refused_in_one_line(command, tmp_path):
    (tmp_path / "grid.json").write_text("[]")
    (tmp_path / "file").write_text("")
    done = command("evaluate", "--grid", "grid.json", "--plot", "file")
    assert done.returncode == 2 and done.stderr.startswith("reticle evaluate --plot: ") and done.stdout == ""
    done = command("evaluate", "--grid", "grid.json", "--window", 64, "--max-tokens", 65, "--plot", "made")
    assert done.returncode == 2 and "nothing to draw" in done.stderr
    done = command("evaluate", "--grid", "missing.json", "--plot", "made")
    assert done.returncode == 2 and "missing.json" in done.stderr


def test_the_pages_of_quality_have_a_row_per_pattern_and_every_masker_or_the_reason_why_not(binary, tmp_path):
    arguments = ["--quick", "--reticle", binary, "--output", tmp_path]
    run("measure_quality.py", *arguments)
    page, tables = ((tmp_path / name).read_text() for name in ("quality.md", "quality_tables.md"))
    for picture in re.findall(r"\]\((images/\S+\.png)\)", page + tables):
        assert (tmp_path / picture).read_bytes().startswith(PNG)
    grids = [json.loads((SOURCE / f"tools/quality/{stage}.json").read_text()) for stage in ("prefill", "generation")]
    for sweep in itertools.chain(*grids):
        assert len(rows_of(tables, sweep["name"])) > 0, sweep["name"]
        assert re.search(rf"^\| \*?{re.escape(sweep['name'])} ", page, re.MULTILINE), sweep["name"]
    used = set(re.findall(r'"type": "(\w+)"', json.dumps(grids)))
    left_out = set(re.findall(r"`(\w+)`", page.partition("Without a row: ")[2]))
    listed = subprocess.run([binary, "list"], capture_output=True, text=True, check=True).stdout
    assert used | left_out == {line.split()[0] for line in listed.splitlines()}, (
        "a masker is neither measured nor left out for a reason"
    )
    # A second run continues from the results: the same page, its times included.
    run("measure_quality.py", *arguments)
    assert (tmp_path / "quality.md").read_text() == page
