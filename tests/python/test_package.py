"""The Python package: tensors pass without copies, results return in the caller's framework, errors are specific."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import reticle
from reticle._moved import MOVED

SOURCE = Path(os.environ["RETICLE_SOURCE_DIR"])


def tensors(heads=4, kv_heads=2, queries=3, keys=50, d=16, seed=1):
    random = np.random.default_rng(seed)
    make = lambda *shape: random.standard_normal(shape, dtype=np.float32)
    return make(2, heads, queries, d), make(2, kv_heads, keys, d), make(2, kv_heads, keys, d)


def dense_attention(q, k, v, p):
    """Attention in numpy, with p given for every position."""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    scores = np.where(p > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True)) / np.where(p > 0, p, 1)
    total = weights.sum(-1, keepdims=True)
    return weights @ v / total, (np.log(total) + scores.max(-1, keepdims=True))[..., 0]


def test_attention_agrees_with_numpy_for_weighted_masks():
    q, k, v = tensors()
    p = np.random.default_rng(2).random((2, 4, 3, 50), dtype=np.float32)
    p[p < 0.4] = 0
    output, lse = reticle.attention(q, k, v, reticle.Mask.dense(p))
    expected, expected_lse = dense_attention(q, k, v, p)
    assert isinstance(output, np.ndarray) and output.dtype == np.float32
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5)


def test_strided_and_read_only_arrays_are_used_as_they_are():
    q, k, v = tensors()
    expected, _ = reticle.attention(q, k, v)
    strided = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)]
    for array in strided:
        array.flags.writeable = False
    output, _ = reticle.attention(*strided)
    np.testing.assert_array_equal(output, expected)


def test_half_precision_keeps_its_dtype():
    q, k, v = (x.astype(np.float16) for x in tensors())
    output, lse = reticle.attention(q, k, v)
    assert output.dtype == np.float16 and lse.dtype == np.float32


def test_torch_tensors_come_back_as_torch_tensors():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    q, k, v = (torch.from_numpy(x) for x in tensors())
    allowed = torch.rand(2, 4, 3, 50) < 0.3
    allowed[..., 0] = True
    mask = reticle.Mask.dense(allowed.numpy())
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        typed = [x.to(dtype) for x in (q, k, v)]
        output, _ = reticle.attention(*typed, mask)
        expected = torch.nn.functional.scaled_dot_product_attention(*typed, attn_mask=allowed, enable_gqa=True)
        assert output.dtype == dtype
        torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)


def test_masks_are_values_with_an_algebra():
    random = np.random.default_rng(3)
    a, b = (random.random((1, 2, 5, 100)) < 0.3 for _ in range(2))
    mask_a, mask_b = reticle.Mask.dense(a), reticle.Mask.dense(b)
    np.testing.assert_array_equal((mask_a | mask_b).to_dense(), a | b)
    np.testing.assert_array_equal((mask_a & mask_b).to_dense(), a & b)
    np.testing.assert_array_equal((mask_a - mask_b).to_dense(), a & ~b)
    np.testing.assert_array_equal((~mask_a).to_dense(), ~a)
    assert mask_a == reticle.Mask.dense(a) and hash(mask_a) == hash(reticle.Mask.dense(a))
    assert mask_a.shape == (1, 2, 5, 100) and mask_a.nnz == a.sum() and mask_a.density == a.mean()
    assert repr(reticle.Mask.full((1, 1, 2, 3))).startswith("Mask (1, 1, 2, 3), full")


def test_masks_from_csr_and_runs_say_what_they_were_given():
    row_ptr, indices = np.array([0, 2, 3]), np.array([1, 4, 0])
    mask = reticle.Mask.csr((1, 1, 2, 5), row_ptr, indices, [0.5, 1, 1])
    assert mask.weighted
    out_ptr, out_indices, p = mask.to_csr()
    np.testing.assert_array_equal(out_ptr, row_ptr)
    np.testing.assert_array_equal(out_indices, indices)
    np.testing.assert_array_equal(p, np.float32([0.5, 1, 1]))
    runs = reticle.Mask.runs((1, 1, 2, 5), [0, 1, 2], [[1, 3], [0, 5]])
    np.testing.assert_array_equal(runs.to_dense()[0, 0], [[0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert runs.to_csr()[2] is None
    with pytest.raises(reticle.ShapeError, match="row_ptr"):
        reticle.Mask.csr((1, 1, 3, 5), row_ptr, indices)
    with pytest.raises(ValueError):  # every error of a value is Python's ValueError too
        reticle.Mask.csr((1, 1, 2, 4), row_ptr, indices)


def test_pipelines_keep_state_between_decode_steps():
    config = {
        "causal": True,
        "maskers": [
            {"type": "sink", "sink_size": 2},
            {"type": "local", "window_size": 4},
            {"type": "oracle_top_k", "heavy_size": 3},
        ],
    }
    sparse = reticle.SparseAttention.from_json(json.dumps(config))
    assert [masker["type"] for masker in json.loads(sparse.to_json())["maskers"]] == ["sink", "local", "oracle_top_k"]
    q, k, v = tensors(queries=50)
    state = reticle.SequenceState()
    output, mask = sparse.run(q, k, v, state)
    assert (mask.to_dense().sum(-1)[0, 0, -1]) == 2 + 4 + 3
    expected, _ = dense_attention(q, k, v, mask.to_dense())
    np.testing.assert_allclose(output, expected, atol=1e-5)
    last, _ = sparse.run(q[:, :, -1:], k, v, reticle.SequenceState(), stage="generation")
    np.testing.assert_allclose(last, output[:, :, -1:], atol=1e-5)
    assert sparse.mask(q, k, v, reticle.SequenceState()) == mask
    from_file = reticle.SparseAttention.from_file(str(SOURCE / "configs" / "sink_local.json"))
    assert from_file.mask(q, k, v, reticle.SequenceState()).shape == (2, 4, 50, 50)


def test_plans_describe_themselves():
    q, k, _ = tensors(queries=40)
    text = repr(reticle.plan(q, k, reticle.Mask.full((2, 4, 40, 50))))
    assert "100.0 %" in text and "tiles" in text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda q, k, v: (q, k, 3), TypeError, "values: a int is not a tensor"),
        (lambda q, k, v: (q.astype(np.complex64), k, v), reticle.ShapeError, "queries: dtype is complex64"),
        (lambda q, k, v: (q, k, v[:, :, :5]), reticle.ShapeError, "values need the heads and the length of the keys"),
        (lambda q, k, v: (q[0], k, v), reticle.ShapeError, "queries: has 3 dimensions"),
        (lambda q, k, v: (q, k, v, reticle.Mask.full((1, 1, 1, 1))), reticle.ShapeError, "does not fit queries"),
        (lambda q, k, v: (q * np.nan, k, v), reticle.InvalidValueError, r"row \(0, 0, 0\) is not finite"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        reticle.attention(*arguments(*tensors()))
    assert raised.type is TypeError or isinstance(raised.value, (ValueError, reticle.Error))


def test_configs_are_refused_with_their_place():
    with pytest.raises(reticle.ConfigError, match=r"/maskers/0/window_sise.*did you mean.*window_size"):
        reticle.SparseAttention.from_json('{"maskers": [{"type": "local", "window_sise": 4}]}')


def test_other_threads_run_while_attention_does():
    q, k, v = tensors(heads=8, kv_heads=2, queries=2000, keys=2000, d=64)
    done = threading.Event()

    def work():
        reticle.attention(q, k, v)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    ticks = 0
    while not done.is_set():
        time.sleep(0.0005)
        ticks += 1
    thread.join()
    assert ticks > 3  # the loop could not have run while the GIL was held


def test_results_do_not_depend_on_the_number_of_threads():
    q, k, v = tensors(queries=100)
    one_and_more = []
    for threads in (1, 3):
        reticle.set_num_threads(threads)
        assert reticle.get_num_threads() == threads
        one_and_more.append(reticle.attention(q, k, v)[0])
    reticle.set_num_threads(0)
    np.testing.assert_array_equal(*one_and_more)


def test_jax_arrays_go_in_and_come_out():
    jax = pytest.importorskip("jax")
    q, k, v = tensors()
    for dtype in (jax.numpy.float32, jax.numpy.bfloat16):
        output, lse = reticle.attention(*(jax.numpy.asarray(x, dtype) for x in (q, k, v)))
        assert isinstance(output, jax.Array) and output.dtype == dtype and lse.dtype == jax.numpy.float32
        np.testing.assert_allclose(np.asarray(output, np.float32), reticle.attention(q, k, v)[0], atol=0.02)


def test_stubs_are_those_of_the_built_package():
    script = [sys.executable, "-B", SOURCE / "tools/make_stubs.py", "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_everything_public_is_documented():
    import importlib
    import inspect
    import pkgutil

    missing = []
    old = {f"reticle.{name}" for name in MOVED}
    modules = [f"reticle.{m.name}" for m in pkgutil.iter_modules(reticle.__path__)]
    modules += [f"reticle.research.{m.name}" for m in pkgutil.iter_modules(reticle.research.__path__)]
    for module in ["reticle", *modules]:
        if module.rpartition(".")[2].startswith("_") or module in old:
            continue
        try:
            loaded = importlib.import_module(module)
        except ImportError:  # torch or transformers is not installed
            continue
        names = [n for n, v in vars(loaded).items() if n[0] != "_" and getattr(v, "__module__", None) == module]
        for name in getattr(loaded, "__all__", names):
            thing = getattr(loaded, name)
            if not callable(thing):
                continue
            if not inspect.getdoc(thing):
                missing.append(f"{module}.{name}")
            members = vars(thing).items() if inspect.isclass(thing) else ()
            missing += [
                f"{module}.{name}.{key}"
                for key, member in members
                if key[0] != "_" and (callable(member) or isinstance(member, property)) and not inspect.getdoc(member)
            ]
    assert not missing
