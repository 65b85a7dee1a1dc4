"""Keys and values in 8 or 4 bits: what codes stand for, attention over them, and what refuses them."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import reticle

rng = np.random.default_rng(0)


def tensors(keys: int = 300, heads: int = 4, kv_heads: int = 2, queries: int = 1, width: int = 64):
    return (
        rng.standard_normal((1, heads, queries, width), dtype=np.float32),
        rng.standard_normal((1, kv_heads, keys, width), dtype=np.float32),
        rng.standard_normal((1, kv_heads, keys, width), dtype=np.float32),
    )


def reference(q, k, v, allowed=None):
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.astype(np.float64), group, 1) for x in (k, v))
    scores = q.astype(np.float64) @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights @ v / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize(("bits", "bytes_per_row", "error"), [(8, 136, 0.006), (4, 72, 0.09)])
def test_codes_stand_for_the_tensor_within_the_error_of_their_bits(bits, bytes_per_row, error):
    x = rng.standard_normal((2, 3, 40, 128), dtype=np.float32)
    quantised = reticle.quantise(x, bits)
    assert quantised.shape == x.shape
    assert quantised.codes.shape == (2, 3, 40, bytes_per_row)
    assert quantised.nbytes == 2 * 3 * 40 * bytes_per_row
    back = quantised.dequantise()
    assert back.dtype == np.float32
    assert np.linalg.norm(back - x) / np.linalg.norm(x) < error


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("queries", [1, 3, 70])
@pytest.mark.parametrize("recent", [None, 1, 128, 300])
def test_attention_is_that_of_what_the_codes_and_the_recent_rows_stand_for(bits, queries, recent):
    q, k, v = tensors(queries=queries)
    given, stands_for = [], []
    for x in (k, v):
        quantised = reticle.quantise(x, bits)
        floats = quantised.dequantise().copy()
        if recent is not None:
            quantised = reticle.QuantisedTensor(quantised.codes, bits, 64, x[:, :, -recent:])
            floats[:, :, -recent:] = x[:, :, -recent:]
        given.append(quantised)
        stands_for.append(floats)
    allowed = rng.random((1, 4, queries, 300)) < 0.3
    allowed[..., 0] = True
    output, _ = reticle.attention(q, *given, reticle.Mask.dense(allowed.astype(np.float32)))
    assert np.abs(output - reference(q, *stands_for, allowed)).max() < 2e-3
    output, _ = reticle.attention(q, *given, causal=True)
    causal = np.tri(queries, 300, 300 - queries, dtype=bool)
    assert np.abs(output - reference(q, *stands_for, causal)).max() < 2e-3


def test_keys_and_values_may_differ_in_their_bits():
    q, k, v = tensors()
    k8, v4 = reticle.quantise(k), reticle.quantise(v, 4)
    for keys, values in ((k8, v4), (k8, v), (k, v4)):
        output, _ = reticle.attention(q, keys, values)
        floats = [x.dequantise() if isinstance(x, reticle.QuantisedTensor) else x for x in (keys, values)]
        assert np.abs(output - reference(q, *floats)).max() < 2e-3


def test_the_recent_rows_of_one_tensor_are_those_of_the_other_that_is_not_quantised():
    q, k, v = tensors()
    keys = reticle.QuantisedTensor(reticle.quantise(k, 4).codes, 4, 64, k[:, :, -100:])
    floats = keys.dequantise().copy()
    floats[:, :, -100:] = k[:, :, -100:]
    output, _ = reticle.attention(q, keys, v)
    assert np.abs(output - reference(q, floats, v)).max() < 2e-3


@pytest.mark.parametrize("masker", ["oracle_top_k", "quest_top_k", "pq_cache", "magic_pig", "tova", "h2o", "local"])
def test_a_pipeline_chooses_and_attends_by_what_the_codes_stand_for(masker):
    q, k, v = tensors(keys=500)
    sparse = reticle.SparseAttention.from_json(json.dumps({"maskers": [{"type": masker}]}))
    k8, v8 = reticle.quantise(k), reticle.quantise(v)
    floats = k8.dequantise(), v8.dequantise()
    chosen = sparse.mask(q, k8, v8).to_dense() > 0
    expected = sparse.mask(q, *floats).to_dense() > 0
    assert (chosen != expected).mean() < 0.02, "scores of codes are rounded like the query, so near ties may differ"
    mask = sparse.mask(q, k8, v8)
    output = sparse.run(q, k8, v8)[0]
    assert np.abs(output - reticle.attention(q, *floats, mask)[0]).max() < 2e-3


def test_indexing_takes_rows_and_their_recent_values_but_no_channels():
    _, k, _ = tensors(keys=300)
    keys = reticle.QuantisedTensor(reticle.quantise(k).codes, 8, 64, k[:, :, -100:])
    assert keys[0].shape == (2, 300, 64)
    assert np.array_equal(keys[:, :, :250].recent, k[:, :, 200:250])
    assert keys[:, :, :200].recent is None
    assert np.array_equal(keys[:, 1:, 220:].recent, k[:, 1:, 220:])
    assert keys[:, :, [3, 5]].recent is None
    assert np.array_equal(keys[:, :, 10:20].dequantise(), keys.dequantise()[:, :, 10:20])
    with pytest.raises(IndexError, match="channels"):
        keys[..., :8]
    with pytest.raises(IndexError, match="channels"):
        keys[0, 0, 0, 0]


def test_codes_can_be_appended_row_by_row():
    _, k, _ = tensors(keys=10)
    whole = reticle.quantise(k).codes
    parts = np.concatenate([reticle.quantise(k[:, :, i : i + 1]).codes for i in range(10)], 2)
    assert np.array_equal(whole, parts)


def test_a_row_that_is_not_finite_is_reported_where_it_is_attended_to():
    q, k, v = tensors()
    v[0, 1, 7, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        reticle.attention(q, reticle.quantise(k), reticle.quantise(v))


@pytest.mark.parametrize("bits", [2, 16, "8", True, None, 8.0])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match="expected 8 or 4"):
        reticle.quantise(np.zeros((4, 64), np.float32), bits)


def test_what_cannot_be_quantised_or_read_as_codes_is_refused_by_name():
    q, k, v = tensors()
    k8, v8 = reticle.quantise(k), reticle.quantise(v)
    with pytest.raises(reticle.ShapeError, match="expected F32, F16 or BF16"):
        reticle.quantise(np.zeros((4, 64), np.int32))
    with pytest.raises(reticle.ShapeError, match="1024"):
        reticle.quantise(np.zeros((4, 1025), np.float32))
    with pytest.raises(TypeError, match="tensor"):
        reticle.quantise([1.0, 2.0])
    with pytest.raises(ValueError, match="expected 70 bytes"):
        reticle.QuantisedTensor(k8.codes[..., 1:], 8, 64)
    with pytest.raises(ValueError, match="recent"):
        reticle.QuantisedTensor(k8.codes, 8, 64, k[:, :, :, :10])
    with pytest.raises(reticle.ShapeError, match="queries"):
        reticle.attention(reticle.quantise(q), k8, v8)
    with pytest.raises(reticle.ShapeError, match="head_dim"):
        reticle.attention(q[..., :32], k8, v8)
    with pytest.raises(reticle.ShapeError, match="recent"):
        reticle.attention(q, reticle.QuantisedTensor(k8.codes, 8, 64, k[:, :, -5:]), v8)
    with pytest.raises(ValueError, match="gradients"):
        reticle.attention_backward(q, k8, v8, reticle.Mask.full((1, 4, 1, 300)), q, q[..., 0], q)
    codes = reticle.QuantisedTensor(np.asfortranarray(k8.codes), 8, 64)
    with pytest.raises(reticle.ShapeError, match="one after the other"):
        reticle.attention(q, codes, v8)


def test_torch_tensors_are_quantised_as_torch_tensors_and_have_no_gradients():
    torch = pytest.importorskip("torch")
    q, k, v = (torch.from_numpy(x) for x in tensors())
    k8, v8 = reticle.quantise(k), reticle.quantise(v.bfloat16())
    assert isinstance(k8.codes, torch.Tensor)
    assert k8.codes.dtype == torch.uint8
    output, _ = reticle.attention(q, k8, v8)
    assert isinstance(output, torch.Tensor)
    assert np.abs(output.numpy() - reference(q.numpy(), k8.dequantise().numpy(), v8.dequantise().numpy())).max() < 2e-3
    with pytest.raises(NotImplementedError, match="dequantise"):
        reticle.attention(q.requires_grad_(), k8, v8)
    with torch.no_grad():
        reticle.attention(q, k8, v8)
    again = copy.deepcopy(k8)
    assert torch.equal(again.codes, k8.codes)


def test_dequantise_gives_what_attention_reads():
    _, k, _ = tensors()
    keys = reticle.QuantisedTensor(reticle.quantise(k, 4).codes, 4, 64, k[:, :, -100:])
    floats = keys.dequantise()
    assert np.array_equal(floats[:, :, -100:], k[:, :, -100:])
    assert np.array_equal(floats[:, :, :-100], reticle.quantise(k, 4).dequantise()[:, :, :-100])


def test_rows_are_selected_by_arrays_too():
    _, k, _ = tensors()
    keys = reticle.QuantisedTensor(reticle.quantise(k).codes, 8, 64, k[:, :, -100:])
    for rows in (np.array([250, 3]), np.arange(300) % 2 == 0):
        assert np.array_equal(keys[:, :, rows].codes, keys.codes[:, :, rows])
        assert keys[:, :, rows].recent is None


def test_a_group_far_below_the_largest_of_its_row_keeps_the_steps_of_the_row():
    x = rng.standard_normal((1, 64), dtype=np.float32)
    x[0, 5] = 1000
    error = np.abs(reticle.quantise(x).dequantise() - x)[0, 32:].max()
    assert error <= 1000 / 4096 * 1.4 / 2


def test_only_attention_reads_a_quantised_tensor():
    torch = pytest.importorskip("torch")
    keys = reticle.quantise(torch.zeros(1, 2, 8, 64))
    with pytest.raises(TypeError, match=r"linear: given a QuantisedTensor.*attach"):
        torch.nn.functional.linear(keys, torch.zeros(64, 64))
    with pytest.raises(AttributeError, match=r"'expand'.*attach"):
        keys.expand(2, -1)
    with pytest.raises(TypeError, match="dequantise"):
        np.asarray(keys)
    again = pickle.loads(pickle.dumps(reticle.quantise(np.ones((2, 32), np.float32))))
    assert np.array_equal(again.dequantise(), np.ones((2, 32)))


def test_codes_and_recent_rows_must_be_arrays_of_one_kind():
    torch = pytest.importorskip("torch")
    codes = reticle.quantise(np.ones((2, 32), np.float32)).codes
    with pytest.raises(TypeError, match="codes: a list"):
        reticle.QuantisedTensor(codes.tolist(), 8, 32)
    with pytest.raises(TypeError, match="expected uint8"):
        reticle.QuantisedTensor(codes.astype(np.float32), 8, 32)
    with pytest.raises(TypeError, match="beside codes"):
        reticle.QuantisedTensor(codes, 8, 32, torch.ones(1, 32))
