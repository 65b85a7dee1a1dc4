"""Conversion of HashAttention's published weights to safetensors."""

import collections
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reticle
from reticle.maskers import from_dict, pipeline

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
safetensors = pytest.importorskip("safetensors.torch")
hat = pytest.importorskip("reticle.research.hat")

HEADS, DIM, HIDDEN, BITS = 4, 8, 6, 16


def hub_form(as_array=lambda x: x):
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: as_array(torch.randn(*shape, generator=generator))
    return {
        layer: {
            f"{side}_{kind}": [
                random(HEADS, *((a, b) if kind == "matrix" else (b,))) for a, b in ((DIM, HIDDEN), (HIDDEN, BITS))
            ]
            for side in ("query", "key")
            for kind in ("matrix", "bias")
        }
        for layer in (0, 1)
    }


def state_form():
    state = collections.OrderedDict()
    for layer, sides in hub_form().items():
        for side in ("query", "key"):
            for i, place in enumerate((0, 2)):
                for head in range(HEADS):
                    name = f"{layer}.learning_to_hash_transformation_{side[0]}.{head}.{place}"
                    state[f"{name}.weight"] = sides[f"{side}_matrix"][i][head].T
                    state[f"{name}.bias"] = torch.nn.Parameter(sides[f"{side}_bias"][i][head])
    return state


def dump(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


def test_both_forms_in_every_container_are_the_same_weights(tmp_path):
    expected = hat.tensors_of(hub_form())
    assert expected["hat.1.key_matrix.1"].shape == (HEADS, HIDDEN, BITS)
    torch.save(state_form(), tmp_path / "new.pt")
    torch.save(state_form(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    files = [
        dump(tmp_path / "hub.pkl", hub_form()),
        dump(tmp_path / "numpy.pkl", hub_form(lambda x: x.numpy())),
        dump(tmp_path / "state.pkl", state_form()),
        tmp_path / "new.pt",
        tmp_path / "old.pt",
    ]
    for file in files:
        hat.convert(file, tmp_path / "out.safetensors")
        found = safetensors.load_file(tmp_path / "out.safetensors")
        assert found.keys() == expected.keys(), file
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name])


def test_what_is_written_is_what_the_masker_reads(tmp_path):
    config = hat.convert(dump(tmp_path / "hub.pkl", hub_form()), tmp_path / "hat.safetensors")
    sparse = pipeline([from_dict({**config, "heavy_size": 5, "hat_mlp_activation": "relu"})])
    random = np.random.default_rng(0)
    q, k = (random.standard_normal((1, heads, n, DIM), dtype=np.float32) for heads, n in ((HEADS, 1), (2, 40)))
    mask = sparse.mask(q, k, k, reticle.SequenceState(), layer=1)
    mlp = hub_form()[1]

    def code(x, side):
        first = np.maximum(x @ mlp[f"{side}_matrix"][0].numpy() + mlp[f"{side}_bias"][0].numpy()[:, None], 0)
        return np.sign(first @ mlp[f"{side}_matrix"][1].numpy() + mlp[f"{side}_bias"][1].numpy()[:, None])

    scores = code(q[0], "query") @ code(k[0].repeat(2, 0), "key").transpose(0, 2, 1)
    row_ptr, indices, _ = mask.to_csr()
    for head in range(HEADS):
        chosen = indices[row_ptr[head] : row_ptr[head + 1]]
        assert sorted(scores[head, 0, chosen]) == sorted(np.sort(scores[head, 0])[-5:])


class Bomb:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (os.remove, (str(self.victim),))


def test_nothing_that_is_no_number_is_executed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("alive")
    inside = io.BytesIO()
    torch.save({"a": Bomb(victim)}, inside, _use_new_zipfile_serialization=False)

    class Nested:
        def __reduce__(self):
            return (torch.storage._load_from_bytes, (inside.getvalue(),))

    torch.save({"a": Bomb(victim)}, tmp_path / "zip.pt")
    files = [
        dump(tmp_path / "bomb.pkl", {0: {"query_matrix": Bomb(victim)}}),
        dump(tmp_path / "nested.pkl", {0: Nested()}),
        tmp_path / "zip.pt",
    ]
    for file in files:
        with pytest.raises(reticle.FormatError, match=file.name):
            hat.convert(file, tmp_path / "out.safetensors")
    assert victim.read_text() == "alive" and not (tmp_path / "out.safetensors").exists()


def damaged(change):
    content = hub_form()
    change(content)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "in a form that is known"),
        ([1, 2], "in a form that is known"),
        ({"model.weight": torch.zeros(2)}, "in a form that is known"),
        (damaged(lambda c: c[1].pop("key_bias")), "layer 1: has no key_bias"),
        (damaged(lambda c: c[0]["key_bias"].pop()), r"key_matrix.1: is \(4, 6, 16\) with a bias None"),
        (damaged(lambda c: c[0]["query_matrix"].reverse()), "query_matrix.0: is"),
        (damaged(lambda c: c[0].update(query_matrix=["x"])), "expected numbers"),
    ],
)
def test_what_is_wrong_is_named(content, message, tmp_path):
    with pytest.raises(reticle.FormatError, match=message):
        hat.convert(dump(tmp_path / "hub.pkl", content), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_truncated_files_are_refused(tmp_path):
    data = pickle.dumps(hub_form())
    torch.save(state_form(), tmp_path / "whole.pt")
    zipped = (tmp_path / "whole.pt").read_bytes()
    for name, content in (("a.pkl", data[: len(data) // 2]), ("b.pt", zipped[: len(zipped) // 2]), ("c.pkl", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(reticle.FormatError, match=name):
            hat.read(tmp_path / name)


def test_the_command_converts_and_says_what_is_wrong(tmp_path):
    run = lambda *arguments: subprocess.run(
        [sys.executable, "-m", "reticle", "convert-hat", *map(str, arguments)], capture_output=True, text=True
    )
    done = run(dump(tmp_path / "hub.pkl", hub_form()), tmp_path / "hat.safetensors")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.split(":\n", 1)[1])["hat_bits"] == BITS
    missing = run(tmp_path / "no.pkl", tmp_path / "out")
    assert missing.returncode == 2 and "no.pkl" in missing.stderr and len(missing.stderr.splitlines()) == 1
    assert Path(tmp_path / "hat.safetensors").exists()
