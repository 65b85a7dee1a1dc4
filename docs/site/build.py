"""Builds the documentation site: pages, gallery, playground, and the references of both APIs, searchable together.

    python docs/site/build.py BUILD_FOLDER

BUILD_FOLDER holds the Python package (`python/`) and the headers (`include/`); the site is written to BUILD_FOLDER/site.
"""

from __future__ import annotations

import base64
import html
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SITE = Path(__file__).resolve().parent
ROOT = SITE.parents[1]
LENGTH, LAYER, HEAD = 256, 2, 3  # of the playground: a head that needs its window and what lies before it


def pages(target: Path) -> None:
    """docs/*.md, and those of the root; links between them are those of one folder."""
    shutil.copytree(ROOT / "docs/images", target / "images")
    named = {"README.md": "index.md", "CHANGELOG.md": "", "CONTRIBUTING.md": "", "SECURITY.md": ""}
    sources = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in named)]
    for source in sources:
        text = source.read_text(encoding="utf-8")
        text = text.replace("](docs/", "](").replace('="docs/', '="').replace("](../", "](")
        text = re.sub(r"\]\((CITATION\.cff|LICENSE)\)", "]", text)
        (target / (named.get(source.name) or source.name)).write_text(text, encoding="utf-8")


def playground(target: Path) -> None:
    """The page, and what it computes over."""
    import reticle

    tensors = reticle.load_tensors(ROOT / "examples/data/attention_4096.safetensors")
    queries, keys = tensors[f"layers.{LAYER}.queries"], tensors[f"layers.{LAYER}.keys"]
    first = keys.shape[2] - queries.shape[2]  # the key of the first query's own position

    def text(rows: np.ndarray) -> str:
        return base64.b64encode(np.ascontiguousarray(rows, np.float32).tobytes()).decode()

    data = {
        "length": LENGTH,
        "dim": queries.shape[3],
        "queries": text(queries[0, HEAD, :LENGTH]),
        "keys": text(keys[0, HEAD * keys.shape[1] // queries.shape[1], first : first + LENGTH]),
    }
    (target / "site").mkdir()
    (target / "site/playground_data.js").write_text(f"const PLAYGROUND_DATA = {json.dumps(data)};\n")
    for name in ("playground.js", "style.css"):
        shutil.copy(SITE / name, target / "site")
    shutil.copy(SITE / "playground.md", target)


def gallery(target: Path) -> None:
    """A page with a picture, the rule and the paper of every masker: of the first config that has it, or alone."""
    import reticle
    from reticle import _core

    tensors = reticle.load_tensors(ROOT / "examples/data/attention_4096.safetensors")
    q, k, v = (tensors[f"layers.1.{name}"] for name in ("queries", "keys", "values"))
    configs = [(path.name, json.loads(path.read_text())) for path in sorted((ROOT / "configs").glob("*.json"))]
    (target / "images/maskers").mkdir()
    plt.style.use("reticle.pictures")
    cards = []
    for kind in _core.masker_types():
        described = reticle._core.describe_masker(kind)
        source = re.search(r"^- Source: (.*)$", described, re.MULTILINE)
        summary = described.split("\n\n")[1]
        name, sparse, stage = _pipeline_with(kind, configs)
        config = "" if sparse is None else f"```json\n{_maskers_of(sparse, kind)}\n```\n\nOf `{name}`.\n"
        rows = (q, k, v) if stage == "prefill" else (q[:, :, -64:], k, v)
        try:
            if sparse is None:
                raise reticle.Error(name)
            state = reticle.SequenceState()
            if stage == "generation":
                sparse.mask(q[:, :, :-64], k[:, :, :-64], v[:, :, :-64], state, causal=True, layer=1)
            found = sparse.contributions(*rows, state, causal=True, layer=1, stage=stage)
            figure, axis = plt.subplots(figsize=(4.6, 2.3), layout="constrained")
            reticle.plot_contributions(found, head=1, ax=axis, legend=False)
            axis.set(xlabel="", ylabel="", xticks=[], yticks=[])
            figure.savefig(target / f"images/maskers/{kind}.png")
            plt.close(figure)
            types = [each for each, _ in found]
            colors = dict(zip(types, _core.masker_colors(types), strict=True))
            legend = " ".join(f'<span style="color: {color}">■</span> {each}' for each, color in colors.items())
            picture = f"![what {kind} keeps](images/maskers/{kind}.png)\n\n{legend}\n\n"
        except reticle.Error as error:
            why = "it needs a file or tensors of yours" if sparse is None else html.escape(str(error))
            picture = f"<p><em>No picture: {why}.</em></p>\n\n"
        cards.append(
            f"<div markdown>\n### [{kind}](maskers.md#{kind})\n\n{picture}{summary}\n\n"
            f"{source.group(1) if source else ''}.\n\n{config}</div>\n"
        )
    text = (
        "# Every masker\n\nWho chose which key: 512 queries, or the last 64 "
        "for patterns of generation, over 4096 recorded keys of layer 1, head 1. Under each the config that is drawn.\n\n"
        '<div class="gallery" markdown>\n' + "\n".join(cards) + "</div>\n"
    )
    (target / "gallery.md").write_text(text, encoding="utf-8")


def _maskers_of(sparse: Any, kind: str) -> str:
    """The stage of a pipeline's config that has a masker, one masker to a line."""
    config = json.loads(sparse.to_json())
    stages = [config, *(config[stage] for stage in ("prefill", "generation") if stage in config)]
    found = next(stage["maskers"] for stage in stages if any(each["type"] == kind for each in stage.get("maskers", [])))
    return "[" + ",\n ".join(json.dumps(each) for each in found) + "]"


def _pipeline_with(kind: str, configs: list[tuple[str, Any]]) -> tuple[str, Any, Any]:
    """(the config's name, its pipeline, the stage that has the masker)."""
    import reticle

    entry = f'"type": "{kind}"'
    for name, config in configs:
        if entry in json.dumps(config):
            stage = "generation" if entry in json.dumps(config.get("generation", [])) else "prefill"
            return f"configs/{name}", reticle.SparseAttention.from_json(json.dumps(config), ROOT / "configs"), stage
    alone = json.dumps({"causal": True, "maskers": [{"type": kind}]})
    try:
        return alone, reticle.SparseAttention.from_json(alone), "prefill"
    except reticle.ConfigError as error:
        return f"needs parameters: {error}", None, "prefill"


def python_api(source: Path, target: Path, package: Path) -> None:
    """A page for each public module, except the old paths of those that moved."""
    from reticle._moved import MOVED

    shutil.copytree(package, source / "python/reticle", symlinks=False, ignore=shutil.ignore_patterns("__pycache__"))
    modules = ["reticle"]
    for folder, prefix, hidden in (("", "reticle", MOVED), ("research", "reticle.research", ())):
        entries = sorted((ROOT / "bindings/reticle" / folder).glob("[!_]*"))
        stems = [path.stem for path in entries if path.suffix == ".py" or path.is_dir()]
        modules += [f"{prefix}.{stem}" for stem in stems if stem not in hidden]
    (target / "api").mkdir()
    lines = ["# Python API\n"]
    for module in modules:
        members = "".join(f"\n        - {name}" for name in _public(module))
        text = f"# {module}\n\n::: {module}\n    options:\n      show_root_heading: false\n      members:{members or ' false'}\n"
        (target / f"api/{module}.md").write_text(text)
        lines.append(f"- [{module}]({module}.md)")
    (target / "api/index.md").write_text("\n".join(lines) + "\n")


def _public(module: str) -> list[str]:
    """What a module offers: its __all__, or the functions and classes that it defines."""
    found = importlib.import_module(module)
    if hasattr(found, "__all__"):
        return list(found.__all__)
    mine = {name: value for name, value in vars(found).items() if getattr(value, "__module__", None) == module}
    return [name for name, value in mine.items() if not name.startswith("_") and callable(value) and value.__doc__]


def headers(source: Path, include: Path) -> None:
    """What is installed: no kernels, no sources."""
    for folder in ("core", "attention"):
        for header in sorted((ROOT / folder).rglob("*.hpp")):
            if header.name.endswith("-inl.hpp") or "block" in header.name or "cuda" in header.parts:
                continue
            to = source / "include/reticle" / header.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(header, to)


def main() -> None:
    build = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(build / "python"))
    source = build / "site-source"
    shutil.rmtree(source, ignore_errors=True)
    target = source / "docs"
    target.mkdir(parents=True)
    pages(target)
    playground(target)
    gallery(target)
    python_api(source, target, build / "python/reticle")
    headers(source, build / "include")
    shutil.copy(SITE / "mkdocs.yml", source)
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet"], cwd=source, check=True)
    print(f"{build / 'site/index.html'}")


if __name__ == "__main__":
    main()
