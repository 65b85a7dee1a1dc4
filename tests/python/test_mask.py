"""Masks in Python: conversions from and to other packages."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import reticle

SHAPE = (2, 3, 10, 37)


def p_of(density=0.3, weighted=False, seed=0):
    random = np.random.default_rng(seed)
    p = (random.random(SHAPE) < density).astype(np.float32)
    return p * random.choice([0.25, 0.5, 1.0], SHAPE).astype(np.float32) if weighted else p


def runs_mask():
    starts = np.arange(60) % 20
    return reticle.Mask.runs(SHAPE, np.arange(61), np.stack([starts, starts + 9], 1))


MASKS = {
    "empty": reticle.Mask.empty(SHAPE),
    "full": reticle.Mask.full(SHAPE),
    "bits": reticle.Mask.dense(p_of(0.5)),
    "csr": reticle.Mask.dense(p_of(0.02)),
    "weighted": reticle.Mask.dense(p_of(0.6, weighted=True)),
    "sampled": reticle.Mask.dense(p_of(0.02, weighted=True)),
    "runs": runs_mask(),
}


@pytest.mark.parametrize("name", MASKS)
def test_pickles_save_and_load_round_trip(name, tmp_path):
    mask = MASKS[name]
    again = pickle.loads(pickle.dumps(mask))
    assert again == mask and again.kind == mask.kind and again.nbytes == mask.nbytes
    mask.save(str(tmp_path / "mask.safetensors"))
    assert reticle.Mask.load(str(tmp_path / "mask.safetensors")) == mask


@pytest.mark.parametrize("name", MASKS)
def test_flat_and_scipy_and_torch_forms_round_trip(name):
    mask = MASKS[name]
    assert reticle.Mask.from_flat_indices(SHAPE, *mask.to_flat_indices()) == mask
    pytest.importorskip("scipy")
    matrix = mask.to_scipy()
    np.testing.assert_array_equal(matrix.toarray(), mask.to_dense().reshape(-1, SHAPE[3]))
    assert reticle.Mask.from_scipy(matrix, SHAPE) == mask
    torch = pytest.importorskip("torch")
    sparse = mask.to_torch()
    np.testing.assert_array_equal(sparse.to_dense().numpy(), matrix.toarray())
    assert reticle.Mask.from_torch_sparse(sparse, SHAPE) == mask
    assert reticle.Mask.from_torch_sparse(sparse.to_sparse_coo(), SHAPE) == mask
    assert isinstance(sparse, torch.Tensor)


def test_row_indices_are_padded_with_minus_one():
    indices = np.full((*SHAPE[:3], 4), -1)
    indices[0, 1, 2] = [5, 3, -1, 30]
    mask = reticle.Mask.from_row_indices(SHAPE, indices)
    assert mask.nnz == 3
    np.testing.assert_array_equal(np.nonzero(mask.to_dense()[0, 1, 2])[0], [3, 5, 30])
    with pytest.raises(reticle.ShapeError):
        reticle.Mask.from_row_indices(SHAPE, np.full((*SHAPE[:3], 4), 37))


@pytest.mark.parametrize("tile", [1, 100, 1 << 20])
def test_mask_mods_are_evaluated_in_tiles(tile):
    mask = reticle.Mask.from_mask_mod(lambda b, h, q, k: (k <= q + 27) & ((q + k + h) % 3 == b), SHAPE, tile=tile)
    b, h, q, k = np.ogrid[tuple(slice(extent) for extent in SHAPE)]
    np.testing.assert_array_equal(mask.to_dense() > 0, (k <= q + 27) & ((q + k + h) % 3 == b))


def test_mask_mods_may_use_torch():
    torch = pytest.importorskip("torch")
    mask = reticle.Mask.from_mask_mod(lambda b, h, q, k: torch.logical_and(q >= k, k > 2), SHAPE, module=torch)
    assert mask[0, 0, 9, 3].nnz == 1 and mask[0, 0, 9, 2].nnz == 0


def test_slicing_is_numpys_with_dimensions_kept():
    mask, dense = MASKS["weighted"], MASKS["weighted"].to_dense()
    for index in (1, -1, (slice(None), 2), (0, slice(1, 3), slice(-4, None)), (..., slice(5, 30)), (1, ..., 3), ...):
        items = index if isinstance(index, tuple) else (index,)
        keep = tuple(slice(i, i + 1 if i != -1 else None) if isinstance(i, int) else i for i in items)
        np.testing.assert_array_equal(mask[index].to_dense(), dense[keep])
    for index in (2, -3, (0, 0, 0, 37), (0, 0, 0, 0, 0), slice(None, None, 2), (..., ...)):
        with pytest.raises(IndexError):
            mask[index]


def test_the_algebra_has_names():
    a, b = MASKS["weighted"], MASKS["sampled"]
    dense_a, dense_b = a.to_dense(), b.to_dense()
    np.testing.assert_allclose(a.merge(b).to_dense(), np.minimum(1, dense_a + dense_b))
    np.testing.assert_allclose(a.merge(b, "max").to_dense(), np.maximum(dense_a, dense_b))
    np.testing.assert_allclose(a.merge(b, "independent").to_dense(), 1 - (1 - dense_a) * (1 - dense_b), atol=1e-7)
    with pytest.raises(ValueError, match="independent"):
        a.merge(b, "sum")
    np.testing.assert_array_equal(a.transpose().to_dense(), dense_a.swapaxes(2, 3))
    assert a.append_keys(3).shape == (2, 3, 10, 40)
    assert a.append_queries(b).shape == (2, 3, 20, 37)
    assert reticle.Mask.full((1, 1, 1, 37)).broadcast_to(SHAPE) == reticle.Mask.full(SHAPE)
    q, k = np.ogrid[:10, :37]
    np.testing.assert_array_equal(a.restrict_causal().to_dense(), dense_a * (k <= q + 27))


def test_apply_multiplies_and_its_inverse_divides():
    mask, x = MASKS["weighted"], np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    p = mask.to_dense()
    np.testing.assert_allclose(mask.apply(x), x * p)
    np.testing.assert_allclose(mask.apply_inverse(x), np.divide(x, p, out=np.zeros_like(x), where=p > 0))
    with pytest.raises(reticle.ShapeError):
        mask.apply(x[0])


def test_blocks_are_what_block_sparse_kernels_want():
    dense = np.zeros((1, 2, 64, 96), bool)
    dense[0, 0, :32, 32:64] = dense[0, 1, 32:, :32] = True
    mask = reticle.Mask.dense(dense)
    indptr, indices = mask.to_bsr(32, 32)
    np.testing.assert_array_equal(indptr, [0, 1, 1, 1, 2])
    np.testing.assert_array_equal(indices, [1, 0])
    dense[0, 0, 0, 40] = False
    with pytest.raises(reticle.ShapeError, match="1 of 2 blocks"):
        reticle.Mask.dense(dense).to_bsr(32, 32)


def test_block_masks_are_flex_attentions():
    torch = pytest.importorskip("torch")
    from torch.nn.attention.flex_attention import flex_attention

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 16, generator=generator) for _ in range(3))
    mask = reticle.Mask.from_mask_mod(lambda b, h, q, k: (k <= q) & (q - k < 20), (1, 2, 64, 64))
    expected = flex_attention(q, k, v, block_mask=mask.to_block_mask(32))
    torch.testing.assert_close(reticle.attention(q, k, v, mask)[0], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(reticle.ShapeError, match="weighted"):
        MASKS["weighted"].to_block_mask()


def test_pictures(tmp_path: Path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = MASKS["runs"].plot(1, 2)
    axes.figure.savefig(tmp_path / "mask.png")
    assert (tmp_path / "mask.png").stat().st_size > 1000
    assert MASKS["runs"]._repr_png_().startswith(b"\x89PNG")
    assert reticle.Mask.empty((1, 1, 0, 3))._repr_png_() is None
    assert MASKS["full"].picture(0, 0, 5, 5).shape == (5, 5)
