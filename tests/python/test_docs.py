"""The pages' Python blocks run in order, in one namespace, and print the text blocks that follow them."""

import contextlib
import io
import os
import re
import subprocess
from pathlib import Path

import pytest
import reticle

SOURCE = Path(os.environ["RETICLE_SOURCE_DIR"])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    return BLOCK.findall((SOURCE / "docs" / page).read_text())


@pytest.mark.parametrize("page", ["tutorial.md", "coming_from.md", "masks.md"])
def test_python_on_the_page_prints_what_the_page_shows(page, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib").use("Agg")
    (tmp_path / "examples").symlink_to(SOURCE / "examples")
    monkeypatch.chdir(tmp_path)
    names = {}
    for (language, code), (after, text) in zip(blocks(page), [*blocks(page)[1:], ("", "")], strict=True):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)
        if after == "text":
            assert printed.getvalue() == text, code


def test_commands_on_the_page_print_what_the_page_shows(tmp_path):
    command = Path(reticle.__file__).parents[2] / "tools/reticle"
    if not command.exists():
        pytest.skip("there is no reticle command beside this package")
    found = blocks("tutorial.md")
    (tmp_path / "pattern.json").write_text(next(text for language, text in found if language == "json"))
    console = next(text for language, text in found if language == "console")
    line, _, shown = console.partition("\n")
    words = line.removeprefix("$ reticle ").split()
    done = subprocess.run([command, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == shown


def test_the_template_of_a_plugin_is_copied_under_its_own_name(tmp_path):
    from reticle import sdk

    folder = sdk.new_plugin("own_blocks", tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["CMakeLists.txt", "README.md", "own_blocks.cpp", "own_blocks.json"]
    text = "".join(path.read_text() for path in folder.iterdir())
    assert "every_nth" not in text and "EveryNth" not in text and "class OwnBlocks" in text
    with pytest.raises(FileExistsError):
        sdk.new_plugin("own_blocks", tmp_path)
    for name in ("Best", "best-blocks", "", "../up", "9lives"):
        with pytest.raises(ValueError, match="is not the name of a masker"):
            sdk.new_plugin(name, tmp_path)
    for name in ("sink", "class", "reticle"):
        with pytest.raises(ValueError, match="is taken"):
            sdk.new_plugin(name, tmp_path)
