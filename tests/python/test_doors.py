"""Careless calls: each argument is read as stated, or refused by name; nothing crashes."""

import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import reticle
import reticle.maskers
from reticle import Mask

SHAPE = (1, 1, 1, 8)


def columns(mask):
    return mask.to_csr()[1].tolist()


# --- memory ---------------------------------------------------------------------------------------------------------


def test_probabilities_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match=r"p: is not an array of numbers|p: dtype is"):
        Mask.from_row_indices((1, 1, 1, 9), [[[[1]]]], "x")
    with pytest.raises(TypeError, match="indices: dtype is object"):
        Mask.from_row_indices((1, 1, 1, 9), np.array([None]))


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        ("Mask", "shape"),
        ("SparseAttention", "to_json"),
        ("InferenceState", "reset"),
        ("SequenceState", "fork"),
        ("StageRecord", "density"),
    ],
)
def test_objects_made_without_init_are_refused(kind, use):
    made = getattr(reticle, kind).__new__(getattr(reticle, kind))
    with pytest.raises(TypeError, match="was made without __init__"):
        _ = getattr(made, use) if use in ("shape", "density") else getattr(made, use)()


def test_an_array_that_changes_while_it_is_read_gives_a_mask_or_an_error():
    array = np.zeros((1, 1, 64, 4096), np.float32)
    stop = threading.Event()

    def change():
        random = np.random.default_rng(0)
        while not stop.is_set():
            array[...] = random.random(array.shape, np.float32) < random.random()

    thread = threading.Thread(target=change)
    thread.start()
    for _ in range(30):
        try:
            mask = Mask.dense(array)
            assert 0 <= mask.nnz <= array.size and (mask | mask).nnz == mask.nnz
        except reticle.InvalidValueError as error:
            assert "changed meanwhile" in str(error)
    stop.set()
    thread.join()


@pytest.mark.parametrize("state", [(), ((1, 1, 1, 4, False, False, False), 9, ()), ((1, 1, 1, 4, 0, 0, 0), 4, ())])
def test_crafted_pickles_are_refused(state):
    _, (_, *rest), *_ = Mask.full(SHAPE).__reduce_ex__(2)
    assert rest == []
    made = Mask.__new__(Mask)
    with pytest.raises((reticle.FormatError, TypeError)):
        made.__setstate__(state)


def test_a_pickled_odd_end_of_an_interval_is_refused():
    runs = Mask.runs((1, 1, 1, 200), [0, 2], [[0, 60], [70, 160]])
    shape, kind, (row_ptr, ends, p) = runs.__getstate__()
    with pytest.raises(ValueError, match="expected pairs"):
        Mask.__new__(Mask).__setstate__((shape, kind, (row_ptr, ends[:-1], p)))
    assert pickle.loads(pickle.dumps(runs)) == runs


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask.csr(SHAPE, [0, 1], np.array([1.7])), "indices: dtype is float64; expected integers"),
        (lambda: Mask.csr(SHAPE, np.array([0.0, 1.0]), [1]), "row_ptr: dtype is float64"),
        (lambda: Mask.csr(SHAPE, [0, 1], [2**32 + 3]), r"indices: holds 4294967299; expected numbers below 2\^31"),
        (lambda: Mask.runs(SHAPE, [0, 1], [[2**32, 2**32 + 2]]), "intervals: holds 4294967296"),
        (
            lambda: Mask.from_row_indices(SHAPE, np.array([[2**64 - 1]], np.uint64)),
            "indices: holds 18446744073709551615",
        ),
        (lambda: Mask.from_row_indices(SHAPE, [[2.9]]), "indices: dtype is float64"),
        (lambda: Mask.dense(np.full(SHAPE, 1 + 1j)), "p: dtype is complex128"),
        (lambda: Mask.dense(np.ma.array(np.ones(SHAPE), mask=True)), "p: is a masked array"),
        (lambda: Mask.dense(np.full(SHAPE, 1e-45)), r"p is 1\.4013e-45; expected 0 or a p in \[2\^-126, 1\]"),
        (lambda: Mask.csr(SHAPE, [0, 1], [1], [1e-40]), r"expected a p in \[2\^-126, 1\]"),
        (lambda: Mask.full(SHAPE).append_keys(2**63 - 1), r"at most 2\^31 - 1"),
        (lambda: Mask.full(SHAPE)[None], "indexed by integers, slices and an ellipsis; got None"),
        (lambda: Mask.full(SHAPE)[1.5], r"got 1\.5"),
        (lambda: Mask.full(SHAPE)[True], "got True"),
    ],
)
def test_numbers_that_say_something_else_are_refused(make, message):
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        make()


@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_of_either_byte_order_are_read(order):
    q = np.random.default_rng(0).standard_normal((1, 2, 5, 16)).astype(np.float32)
    wanted, _ = reticle.attention(q, q, q)
    given = q.astype(f"{order}f4")
    found, _ = reticle.attention(given, given, given)
    assert np.array_equal(found, wanted)
    assert columns(Mask.csr(SHAPE, np.array([0, 2], f"{order}i8"), np.array([1, 5], f"{order}i4"))) == [1, 5]


def test_integer_tensors_of_every_dtype_are_loaded_as_they_are(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    given = {
        str(np.dtype(dtype)): np.array([0, 1, np.iinfo(dtype).max], dtype)
        for dtype in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
    }
    given["bool"] = np.array([True, False])
    safetensors.save_file(given, tmp_path / "t.safetensors")
    found = reticle.load_tensors(tmp_path / "t.safetensors")
    for name, wanted in given.items():
        assert found[name].dtype == wanted.dtype and np.array_equal(found[name], wanted)


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bool"])
def test_attention_masks_broadcast_from_any_number_of_dimensions(dims, dtype):
    random = np.random.default_rng(1)
    q = random.standard_normal((2, 2, 6, 16)).astype(np.float32)
    shape = (1, 2, 6, 6)[4 - dims :]
    seen = random.random(shape) < 0.6
    seen[..., 0] = True
    given = seen if dtype == "bool" else np.where(seen, random.standard_normal(shape), -np.inf).astype(dtype)
    added = np.where(seen, 0.0, -np.inf) if dtype == "bool" else given
    scores = q @ q.transpose(0, 1, 3, 2) / 4 + added
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    found, _ = reticle.attention(q, q, q, attention_mask=given)
    assert np.allclose(found, weights / weights.sum(-1, keepdims=True) @ q, atol=1e-5)


def test_what_a_forbidden_key_holds_does_not_matter():
    random = np.random.default_rng(2)
    for queries, keys in ((1, 300), (200, 200), (5, 37)):
        q = random.standard_normal((1, 4, queries, 16)).astype(np.float32)
        k, v = random.standard_normal((2, 1, 2, keys, 16)).astype(np.float32)
        bias = np.where(random.random((1, 1, queries, keys)) < 0.3, -np.inf, 0.0).astype(np.float32)
        bias[..., 7] = -np.inf
        wanted, lse = reticle.attention(q, k, v, attention_mask=bias)
        k[:, :, 7], v[:, :, 7] = np.nan, np.inf
        found, same = reticle.attention(q, k, v, attention_mask=bias)
        assert np.allclose(found, wanted, atol=1e-6) and np.allclose(same, lse, atol=1e-6)


# --- conventions ----------------------------------------------------------------------------------------------------


def test_masks_compare_with_anything():
    mask = Mask.full(SHAPE)
    assert mask != None and mask != 3 and mask in [None, mask]  # noqa: E711
    with pytest.raises(TypeError):
        mask | 3


def test_pipelines_and_handlers_are_values_and_states_are_forked():
    sparse = reticle.SparseAttention.from_json('{"maskers": [{"type": "sink", "sink_size": 3}]}')
    handler = reticle.InferenceHandler(sparse, sparse, keep_masks=True)
    assert copy.copy(sparse) is sparse and copy.deepcopy(sparse) is sparse
    assert copy.deepcopy(handler).sparse is handler.sparse
    assert pickle.loads(pickle.dumps(sparse)).to_json() == sparse.to_json()
    assert pickle.loads(pickle.dumps(handler)).keeps_masks
    for state in (reticle.SequenceState(), reticle.InferenceState()):
        assert copy.deepcopy(state).record == state.record
        with pytest.raises(TypeError, match="cannot be pickled; keep the tensors"):
            pickle.dumps(state)


def test_predicates_are_called_as_they_are_written():
    torch = pytest.importorskip("torch")
    places = torch.tensor([(i // 8, i % 8) for i in range(64)], dtype=torch.float32)
    near = (places[:, None] - places[None]).abs().amax(-1) <= 2
    assert near.sum() == 1156
    shape = (1, 1, 64, 64)
    assert Mask.from_mask_mod(lambda b, h, q, k: (places[q] - places[k]).abs().amax() <= 2, shape) == Mask.dense(
        near.numpy()[None, None]
    )
    causal = Mask.dense(np.tri(64, dtype=bool)[None, None])
    for module in (None, np, torch):
        assert Mask.from_mask_mod(lambda b, h, q, k: q >= k, shape, module=module) == causal
    assert Mask.from_mask_mod(lambda b, h, q, k: np.abs(q - k) < 100, shape) == Mask.full(shape)
    with pytest.raises(ValueError, match="expected an answer for each position by itself"):
        Mask.from_mask_mod(lambda b, h, q, k: q + 0 * k > q.mean(), shape, module=np)
    with pytest.raises(ValueError, match=r"fails with tensors of torch .* and arrays of numpy"):
        Mask.from_mask_mod(lambda b, h, q, k: q >= k if q > 3 else False, shape)
    assert Mask.from_mask_mod(lambda b, h, q, k: q >= k, (1, 1, 2048, 2048)).nbytes < 100_000


def test_scipy_matrices_stay_as_they_were():
    sparse = pytest.importorskip("scipy.sparse")
    given = sparse.csr_array((np.array([1, 1, 0, 1.0]), np.array([2, 0, 1, 3]), np.array([0, 2, 4])), shape=(2, 4))
    before = (given.data.copy(), given.indices.copy())
    assert columns(Mask.from_scipy(given, (1, 1, 2, 4))) == [0, 2, 3]
    assert np.array_equal(given.data, before[0]) and np.array_equal(given.indices, before[1])
    with pytest.raises(reticle.ShapeError, match=r"expected \(batch \* heads \* queries, keys\), \(2, 5\)"):
        Mask.from_scipy(given, (1, 1, 2, 5))


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc", "dense"])
def test_tensors_of_every_layout_of_torch_are_masks(layout):
    torch = pytest.importorskip("torch")
    dense = (torch.rand(8, 12, generator=torch.Generator().manual_seed(0)) < 0.4).float() * 0.5
    dense.requires_grad_()
    given = {
        "coo": dense.to_sparse,
        "csr": dense.to_sparse_csr,
        "csc": dense.to_sparse_csc,
        "bsr": lambda: dense.to_sparse_bsr((2, 3)),
        "bsc": lambda: dense.to_sparse_bsc((2, 3)),
        "dense": lambda: dense,
    }[layout]()
    found = Mask.from_torch_sparse(given, (1, 2, 4, 12)).to_dense().reshape(8, 12)
    assert np.array_equal(found, dense.detach().numpy())


def test_entries_of_torch_in_any_order_and_of_one_position_are_summed():
    torch = pytest.importorskip("torch")
    ends, p = torch.tensor([0, 3]), torch.tensor([0.25, 0.5, 0.25])
    given = torch.sparse_csr_tensor(ends, torch.tensor([5, 1, 5]), p, (1, 8))
    assert Mask.from_torch_sparse(given, SHAPE).to_dense().ravel().tolist() == [0, 0.5, 0, 0, 0, 0.5, 0, 0]


def test_transforms_of_torch_that_are_not_supported_are_named():
    torch = pytest.importorskip("torch")
    q = torch.randn(3, 1, 2, 9, 16)
    for transform in (
        torch.func.vmap(lambda x: reticle.attention(x, x, x)[0]),
        torch.func.grad(lambda x: reticle.attention(x, x, x)[0].sum()),
    ):
        with pytest.raises(NotImplementedError, match=r"torch\.func"):
            transform(q if "vmap" in repr(transform) else q[0])


def test_what_has_gradients_that_are_not_given_is_refused():
    torch = pytest.importorskip("torch")
    q = torch.randn(1, 2, 9, 16)
    for word in (
        {"attention_mask": torch.zeros(9, 9, requires_grad=True)},
        {"sink_logits": torch.zeros(2, requires_grad=True)},
    ):
        with pytest.raises(NotImplementedError, match=next(iter(word))):
            reticle.attention(q, q, q, **word)
    with torch.no_grad():
        for word in ({"attention_mask": torch.zeros(9, 9, requires_grad=True)}, {"sink_logits": torch.zeros(2)}):
            reticle.attention(q, q, q, **word)


def test_a_float_mask_is_refused_and_says_what_it_may_be():
    torch = pytest.importorskip("torch")
    q = torch.randn(1, 2, 4, 16)
    for mask in (torch.zeros(4, 4), torch.full((4, 4), 2)):
        with pytest.raises(reticle.ShapeError, match=r"expected booleans.*attention_mask=.*Mask\.dense"):
            reticle.attention(q, q, q, mask)
    assert torch.equal(reticle.attention(q, q, q, torch.ones(4, 4).long())[0], reticle.attention(q, q, q)[0])


# --- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [-1, 1025, 10**9])
def test_numbers_of_threads_that_make_no_sense_are_refused(threads):
    with pytest.raises(ValueError, match="expected a number in"):
        reticle.set_num_threads(threads)


def test_an_environment_that_is_no_number_is_said():
    code = (
        "import reticle; reticle.Mask.full((1, 1, 2, 2)) | reticle.Mask.empty((1, 1, 2, 2)); reticle.get_num_threads()"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RETICLE_NUM_THREADS": "abc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode != 0 and 'RETICLE_NUM_THREADS is "abc"; expected a number' in found.stderr


def _compute(_):
    reticle.set_num_threads(2)
    return Mask.dense(np.tri(300, dtype=bool)[None, None]).nnz


def test_forked_workers_compute():
    assert _compute(0) == 45150
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_compute, range(4)).get(timeout=60) == [45150] * 4


def test_files_are_replaced_whole_and_nothing_else_is(tmp_path):
    secret, link, pipe = tmp_path / "secret", tmp_path / "link", tmp_path / "pipe"
    secret.write_text("old")
    secret.chmod(0o600)
    link.symlink_to("secret")
    os.mkfifo(pipe)
    mask = Mask.full(SHAPE)
    mask.save(link)
    assert link.is_symlink() and Mask.load(secret) == mask and secret.stat().st_mode & 0o777 == 0o600
    with pytest.raises(reticle.FormatError, match="nobody reads from it"):
        mask.save(pipe)
    assert pipe.is_fifo() and sorted(os.listdir(tmp_path)) == ["link", "pipe", "secret"]
    mask.save("/dev/null")


# --- calls ----------------------------------------------------------------------------------------------------------


def drawn(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def test_keys_of_one_sequence_serve_a_batch_of_queries():
    queries, keys, values = drawn(3, 4, 5, 8), drawn(1, 2, 9, 8), drawn(1, 2, 9, 8)
    output, lse = reticle.attention(queries, keys, values)
    repeated = [np.repeat(tensor, 3, axis=0) for tensor in (keys, values)]
    expected, expected_lse = reticle.attention(queries, *repeated)
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(lse, expected_lse)
    mask = reticle.SparseAttention.from_json('{"maskers": [{"type": "oracle_top_k", "heavy_size": 3}]}').mask(
        queries, keys, values, reticle.SequenceState()
    )
    assert mask.shape == (3, 4, 5, 9)
    with pytest.raises(reticle.ShapeError, match="keys"):
        reticle.attention(queries, keys, drawn(2, 2, 9, 8))


def test_gradients_by_keys_of_one_sequence_are_summed_over_the_batch():
    torch = pytest.importorskip("torch")
    queries, keys, values = (torch.tensor(drawn(*shape)) for shape in ((3, 4, 5, 8), (1, 2, 9, 8), (1, 2, 9, 8)))
    found, expected = [], []
    for repeat, gradients in ((False, found), (True, expected)):
        own_keys, own_values = keys.clone().requires_grad_(), values.clone().requires_grad_()
        given = [t.expand(3, -1, -1, -1) if repeat else t for t in (own_keys, own_values)]
        reticle.attention(queries, *given)[0].square().sum().backward()
        gradients += [own_keys.grad, own_values.grad]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (1, 2, 9, 8)
        torch.testing.assert_close(one, other)


def test_no_heads_give_no_output():
    output, lse = reticle.attention(drawn(2, 0, 5, 8), drawn(2, 0, 9, 8), drawn(2, 0, 9, 8))
    assert output.shape == (2, 0, 5, 8)
    assert lse.shape == (2, 0, 5)


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 1e6), ("bfloat16", 3.4e38)])
def test_an_output_that_its_dtype_cannot_hold_is_an_error(dtype, largest):
    torch = pytest.importorskip("torch")
    queries = torch.zeros(1, 1, 1, 4, dtype=getattr(torch, dtype))
    keys, values = torch.zeros(1, 1, 1, 4), torch.full((1, 1, 1, 4), largest)
    with pytest.raises(ValueError, match="too large for the queries' dtype"):
        reticle.attention(queries, keys, values)
    assert reticle.attention(queries, keys, values / 1e5)[0].isfinite().all()


def test_a_fraction_of_a_short_context_is_at_least_one_key():
    inputs = drawn(1, 1, 1, 8), drawn(1, 1, 6, 8), drawn(1, 1, 6, 8)
    for masker in ({"type": "oracle_top_k", "heavy_size": 0.05}, {"type": "sink", "sink_size": 0.1}):
        pipeline = reticle.SparseAttention.from_json(f'{{"maskers": [{masker}]}}'.replace("'", '"'))
        assert pipeline.mask(*inputs, reticle.SequenceState()).nnz == 1


def test_a_config_that_names_plugins_is_refused_where_none_may_be_loaded(tmp_path):
    text = '{"plugins": ["evil.so"], "maskers": []}'
    with pytest.raises(reticle.ConfigError, match=r"/plugins: names evil.so, whose code would run"):
        reticle.SparseAttention.from_json(text, plugins=False)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(reticle.ConfigError, match="whose code would run"):
        reticle.SparseAttention.from_file(tmp_path / "config.json", plugins=False)
    with pytest.raises(reticle.PluginError, match="no plugin"):
        reticle.SparseAttention.from_json(text)


@reticle.register("resets_its_state")
@dataclass(frozen=True)
class Resetting(reticle.Masker):
    """Resets its state during a call, which is forbidden."""

    way: str = "reset"

    def select(self, inputs, previous, state):
        outer = Resetting.state
        {
            "reset": lambda: outer.reset(),
            "truncate": lambda: outer.truncate(1),
            "select": lambda: outer.select([0, 0]),
            "fork": lambda: outer.fork(),
            "run": lambda: Resetting.pipeline.mask(*Resetting.inputs, outer),
        }[self.way]()
        return Mask.full(inputs.shape)


@pytest.mark.parametrize("way", ["reset", "truncate", "select", "fork", "run"])
def test_a_state_is_not_changed_from_inside_of_a_call(way):
    Resetting.inputs = drawn(1, 1, 3, 8), drawn(1, 1, 3, 8), drawn(1, 1, 3, 8)
    Resetting.state = reticle.SequenceState()
    Resetting.pipeline = reticle.maskers.pipeline([Resetting(way=way)])
    with pytest.raises(ValueError, match="in use by another call"):
        Resetting.pipeline.mask(*Resetting.inputs, Resetting.state)
    Resetting.state.reset()


# --- regressions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 1])
def test_old_protocols_of_pickle_work_or_are_refused(protocol):
    mask = Mask.from_row_indices((1, 1, 1, 9), [[[[1, 4]]]])
    assert pickle.loads(pickle.dumps(mask, protocol)) == mask
    sparse = reticle.SparseAttention.from_json('{"maskers": []}')
    assert pickle.loads(pickle.dumps(sparse, protocol)).to_json() == sparse.to_json()
    with pytest.raises(TypeError):
        pickle.dumps(reticle.SequenceState(), protocol)


@pytest.mark.parametrize("second", ["random_sampling", "adaptive_sampling", "magic_pig"])
def test_two_samplers_for_one_head_are_refused(second):
    first = {"type": "random_sampling", "sampling_rate": 0.1}
    with pytest.raises(reticle.ConfigError, match=rf'/maskers/1: "{second}" samples keys that "random_sampling", at 0'):
        reticle.SparseAttention.from_json(json.dumps({"maskers": [first, {"type": second}]}))
    apart = [first | {"heads": [0, 1]}, {"type": second, "heads": ["2-"]}]
    reticle.SparseAttention.from_json(json.dumps({"maskers": apart}))
    apart = [first | {"layers": [0]}, {"type": second, "layers": ["1-3"]}]
    reticle.SparseAttention.from_json(json.dumps({"maskers": apart}))


def test_numbers_that_float32_rounds_to_zero_are_refused():
    with pytest.raises(reticle.ShapeError, match="p: holds numbers too small for float32"):
        Mask.dense(np.full((1, 1, 1, 3), 1e-300))
    assert Mask.dense(np.array([[[[0.0, 0.5]]]])).nnz == 1


def test_the_hash_of_a_mask_does_not_count_what_it_shares():
    assert isinstance(hash(Mask.full((2**40, 1, 2, 40)).restrict_causal()), int)
    one, other = (Mask.dense(np.full((2, 3, 4, 5), p, np.float32)) for p in (0.5, 0.25))
    assert hash(one) != hash(other)


def test_what_is_no_number_for_a_mask_is_refused_by_name():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="complex64"):
        Mask.from_torch_sparse(torch.ones(1, 4, dtype=torch.complex64).to_sparse(), (1, 1, 1, 4))
    with pytest.raises(TypeError, match="a ndarray; expected a sparse matrix"):
        Mask.from_scipy(np.ones((1, 4)), (1, 1, 1, 4))
    with pytest.raises(ValueError, match="tile is 0"):
        Mask.from_mask_mod(lambda b, h, q, k: k <= q, (1, 1, 2, 2), tile=0)


def test_configs_take_numbers_of_numpy_and_name_what_is_none():
    from reticle import maskers

    sparse = maskers.pipeline([maskers.OracleTopKConfig(heavy_size=np.int64(3))])
    assert json.loads(sparse.to_json())["maskers"][0]["heavy_size"] == 3
    with pytest.raises(TypeError, match=r"a masker is 'sink'; expected a config"):
        maskers.pipeline(["sink"])
    with pytest.raises(reticle.ConfigError, match="maskers beside prefill"):
        maskers.pipeline([maskers.SinkConfig()], prefill=[maskers.LocalConfig()])


def test_modules_of_native_sparse_attention_copy_and_pickle():
    torch = pytest.importorskip("torch")
    from reticle import nsa

    module = nsa.NativeSparseAttention("weightedpool", 32, 2, 1, 16)
    copied = copy.deepcopy(module)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(copied.state_dict()[name], tensor)
    pickle.loads(pickle.dumps(module))
    with pytest.raises(reticle.ConfigError, match="block_size: 0"):
        nsa.topk_sparse_attention(*(torch.ones(4, 1, 8),) * 3, torch.zeros(1, 4, 1, dtype=torch.int32), 0, [0, 4])
