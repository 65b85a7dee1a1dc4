"""The site's playground, which computes in the browser, gives Reticle's results."""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import reticle

SITE = Path(os.environ["RETICLE_SOURCE_DIR"]) / "docs/site"
CONFIGS = [
    [{"type": "sink", "sink_size": 4}, {"type": "local", "window_size": 16, "dilation": 1}],
    [{"type": "local", "window_size": 9, "dilation": 3}, {"type": "strided", "stride": 32}],
    [{"type": "sink", "sink_size": 4}, {"type": "oracle_top_k", "heavy_size": 16}],
    [{"type": "local", "window_size": 16, "dilation": 1}, {"type": "oracle_top_p", "top_p": 0.5}],
    [{"type": "quest_top_k", "heavy_size": 32, "page_size": 8, "min_pages": 1}],
    [{"type": "quest_top_k", "heavy_size": 8, "page_size": 16, "min_pages": 3}, {"type": "sink", "sink_size": 1}],
]
PAGE = """<script src="site/playground_data.js"></script><script src="site/playground.js"></script><pre id="out"></pre>
<script>document.getElementById("out").textContent = JSON.stringify(CONFIGS.map((config) => {
  const {mask, density, mass} = reticle.build(config);
  return {density, mass, kept: Array.from(mask.map((place) => place > 0 ? 1 : 0)).join("")};
}))</script>"""


def test_the_playground_chooses_what_reticle_chooses(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium")
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("site_build", SITE / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    build.playground(tmp_path)
    (tmp_path / "check.html").write_text(PAGE.replace("CONFIGS", json.dumps(CONFIGS)))
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=20000", "--dump-dom", (tmp_path / "check.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(done.stdout.partition('<pre id="out">')[2].partition("</pre>")[0])

    tensors = reticle.load_tensors(SITE.parents[1] / "examples/data/attention_4096.safetensors")
    n, layer, head = build.LENGTH, build.LAYER, build.HEAD
    queries, keys = tensors[f"layers.{layer}.queries"], tensors[f"layers.{layer}.keys"]
    first = keys.shape[2] - queries.shape[2]
    q = np.ascontiguousarray(queries[:, [head], :n])
    k = np.ascontiguousarray(keys[:, [head * keys.shape[1] // queries.shape[1]], first : first + n])
    for config, ours in zip(CONFIGS, found, strict=True):
        sparse = reticle.SparseAttention.from_json(json.dumps({"causal": True, "maskers": config}))
        _, mask, metrics = sparse.measure(q, k, k, reticle.SequenceState())
        kept = np.array(list(ours["kept"]), dtype=np.int8).reshape(n, n)
        different = (kept != mask.to_dense()[0, 0]).sum()
        assert different <= 4, (config, different)  # float and double sums order a few near ties differently
        assert abs(ours["density"] - mask.density) < 1e-4 and abs(ours["mass"] - metrics["mean_mass"]) < 1e-3, config
