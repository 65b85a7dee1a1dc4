"""Conversions of masks to and from scipy, torch, FlexAttention and FlashInfer, and pictures. Methods of
reticle.Mask."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

import reticle._core as _core
from reticle._core import Mask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import scipy.sparse
    import torch
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from torch.nn.attention.flex_attention import BlockMask


def from_scipy(matrix: scipy.sparse.sparray | scipy.sparse.spmatrix, shape: Sequence[int]) -> Mask:
    """From a sparse matrix (batch * heads * queries, keys) of p, which is not modified; `shape` is the mask's."""
    if not hasattr(matrix, "tocsr"):
        raise TypeError(f"from_scipy: a {type(matrix).__name__}; expected a sparse matrix of scipy")
    _require_rows_and_keys(matrix.shape, shape)
    if np.issubdtype(matrix.dtype, np.complexfloating) or matrix.dtype == object:
        raise TypeError(f"from_scipy: dtype is {matrix.dtype}; expected numbers p in [0, 1]")
    csr: Any = matrix.tocsr(copy=True)
    csr.data = csr.data.astype(np.float64)  # sums of narrow integers would wrap around
    csr.sum_duplicates()
    csr.eliminate_zeros()
    p = None if (csr.data == 1).all() else csr.data
    return Mask.csr(shape, csr.indptr, csr.indices, p)


def from_torch_sparse(matrix: torch.Tensor, shape: Sequence[int]) -> Mask:
    """From a tensor (batch * heads * queries, keys) of p, in any of torch's layouts; `shape` is the mask's.

    Duplicate entries are summed and zeros are dropped. A mask has no gradients.
    """
    import torch

    if not isinstance(matrix, torch.Tensor):
        raise TypeError(f"from_torch_sparse: a {type(matrix).__name__}; expected a tensor of torch")
    if matrix.is_complex():
        raise TypeError(f"from_torch_sparse: dtype is {matrix.dtype}; expected numbers p in [0, 1]")
    _require_rows_and_keys(matrix.shape, shape)
    given = matrix.detach().cpu()
    given = given.to_sparse() if given.layout == torch.strided else given.to_sparse(layout=torch.sparse_coo)
    values = given._values()
    values = values.float() if values.dtype.is_floating_point else values.to(torch.int64).float()
    # Conversions from other layouts set the coalesced flag even if there are duplicates, so the tensor is coalesced
    # again.
    entries = torch.sparse_coo_tensor(given._indices(), values, given.shape, is_coalesced=False).coalesce()
    kept = entries.values() != 0
    (rows, columns), p = entries.indices()[:, kept], entries.values()[kept]
    row_ptr = np.zeros(matrix.shape[0] + 1, np.int64)
    np.cumsum(np.bincount(rows.numpy(), minlength=matrix.shape[0]), out=row_ptr[1:])
    return Mask.csr(shape, row_ptr, columns.numpy(), None if bool((p == 1).all()) else p.numpy())


def _require_rows_and_keys(given: Sequence[int], shape: Sequence[int]) -> None:
    from reticle import ShapeError

    if len(shape) != 4:
        raise ShapeError(f"shape is {tuple(shape)}; expected (batch, heads, queries, keys)")
    batch, heads, queries, keys = shape
    if tuple(given) != (batch * heads * queries, keys):
        raise ShapeError(
            f"a matrix {tuple(given)} for a mask {tuple(shape)}; expected (batch * heads * queries, keys), "
            f"({batch * heads * queries}, {keys})"
        )


def from_mask_mod(
    mask_mod: Callable[..., Any], shape: Sequence[int], *, tile: int = 1 << 22, module: Any = None
) -> Mask:
    """From a predicate mask_mod(b, h, q, k) as FlexAttention takes it: True if query q of head h of sequence b sees key
    k.

    A torch predicate is called as FlexAttention calls it, with scalars under torch.vmap. A numpy predicate is called
    with arrays that broadcast, q (rows, 1) and k (1, keys), and its answers are compared with those for some scalars.
    Either is evaluated on at most `tile` positions at a time, which bounds memory; the mask is stored in the smallest
    representation.

    Args:
        module: torch or numpy, for predicates that accept both; by default torch if the predicate accepts its tensors.

    Raises:
        ValueError: when the predicate can be called in neither way, or its answers depend on the other positions of a
            call.
    """
    if module is not None and getattr(module, "__name__", None) not in ("numpy", "torch"):
        raise ValueError(f"module is {module!r}; expected numpy or torch")
    if tile < 1:
        raise ValueError(f"tile is {tile}; expected at least one position")
    if module is None or module.__name__ == "torch":
        try:
            return from_tiles(_by_vmap(mask_mod), shape, tile=tile)
        except Exception as error:
            if module is not None:
                raise
            reason = error
    try:
        return from_tiles(_by_broadcasting(mask_mod), shape, tile=tile)
    except Exception as error:
        if module is None:
            raise ValueError(
                f"mask_mod: fails with tensors of torch ({reason}) and arrays of numpy ({error})"
            ) from error
        raise


def _by_vmap(mask_mod: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    by_key = torch.vmap(mask_mod, in_dims=(None, None, None, 0))
    by_query = torch.vmap(by_key, in_dims=(None, None, 0, None))

    def evaluate(b: int, h: int, q: NDArray[np.int64], k: NDArray[np.int64]) -> Any:
        return by_query(torch.tensor(b), torch.tensor(h), torch.from_numpy(q), torch.from_numpy(k)).cpu().numpy()

    return evaluate


def _by_broadcasting(mask_mod: Callable[..., Any]) -> Callable[..., Any]:
    random = np.random.default_rng(0)

    def evaluate(b: int, h: int, q: NDArray[np.int64], k: NDArray[np.int64]) -> Any:
        seen = np.broadcast_to(
            np.asarray(mask_mod(np.asarray(b), np.asarray(h), q[:, None], k[None])), (len(q), len(k))
        )
        for i, j in zip(random.integers(0, len(q), 16), random.integers(0, len(k), 16), strict=True):
            alone = np.asarray(mask_mod(np.asarray(b), np.asarray(h), q[i], k[j]))
            if alone.size != 1 or bool(alone.reshape(-1)[0]) != bool(seen[i, j]):
                raise ValueError(
                    f"mask_mod answers {bool(seen[i, j])} for query {q[i]} and key {k[j]} among others and {alone} alone; "
                    "expected an answer for each position by itself"
                )
        return seen

    return evaluate


def from_tiles(evaluate: Callable[..., Any], shape: Sequence[int], *, tile: int = 1 << 22) -> Mask:
    """From a function of (b, h, q (rows), k (keys)) that returns (rows, keys) booleans, for at most `tile` positions a
    call."""
    batch, heads, queries, keys = shape
    rows = max(1, min(queries, tile // max(1, keys)))
    k = np.arange(keys)
    counts, intervals = [np.zeros(1, np.int64)], [np.empty((0, 2), np.int32)]
    for b in range(batch):
        for h in range(heads):
            for first in range(0, queries if keys else 0, rows):
                q = np.arange(first, min(queries, first + rows))
                seen = np.asarray(evaluate(b, h, q, k))
                if seen.shape != (len(q), keys) or seen.dtype.kind not in "biu":
                    raise ValueError(
                        f"mask_mod gives {seen.dtype} {seen.shape} for {len(q)} queries and {keys} keys; expected booleans"
                    )
                edges = np.diff(np.pad(seen != 0, ((0, 0), (1, 1))).astype(np.int8), axis=1)
                begins, ends = np.nonzero(edges == 1), np.nonzero(edges == -1)[1]
                counts.append(np.bincount(begins[0], minlength=len(q)).astype(np.int64))
                intervals.append(np.stack([begins[1], ends], 1).astype(np.int32))
    if keys == 0:
        counts.append(np.zeros(batch * heads * queries, np.int64))
    return Mask.runs(shape, np.cumsum(np.concatenate(counts)), np.concatenate(intervals)).compact()


def to_scipy(self: Mask) -> scipy.sparse.csr_array:
    """A sparse array (batch * heads * queries, keys) of p."""
    import scipy.sparse

    row_ptr, indices, p = self.to_csr()
    data = np.ones(len(indices), np.float32) if p is None else p
    return scipy.sparse.csr_array((data, indices, row_ptr), shape=(len(row_ptr) - 1, self.shape[3]))


def to_torch(self: Mask) -> torch.Tensor:
    """A sparse CSR tensor (batch * heads * queries, keys) of p."""
    import torch

    row_ptr, indices, p = self.to_csr()
    data = torch.ones(len(indices)) if p is None else torch.from_numpy(p)
    return torch.sparse_csr_tensor(
        torch.from_numpy(row_ptr), torch.from_numpy(indices).long(), data, size=(len(row_ptr) - 1, self.shape[3])
    )


def to_bsr(self: Mask, block_q: int, block_k: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """FlashInfer's (indptr, indices) over batch * heads * ceil(queries / block_q) block rows.

    Raises:
        ShapeError: when a block is attended to only in part, which BSR without a mask cannot express.
    """
    from reticle import ShapeError

    indptr, indices, full = self.to_blocks(block_q, block_k)
    if not full.all():
        raise ShapeError(
            f"to_bsr: {np.count_nonzero(~full)} of {len(full)} blocks of {block_q} x {block_k} are attended to in part"
        )
    return indptr, indices


def to_block_mask(self: Mask, block_size: int = 128) -> BlockMask:
    """FlexAttention's BlockMask. The mask itself decides within partial blocks, from one byte per position, because
    that is what FlexAttention can read.

    Raises:
        ShapeError: for a weighted mask, which FlexAttention cannot express.
    """
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    from reticle import ShapeError

    if block_size < 1:
        raise ShapeError(f"to_block_mask: block_size is {block_size}; expected at least 1")
    if self.weighted:
        raise ShapeError("to_block_mask: the mask is weighted; FlexAttention's masks are 0 or 1")
    dense = torch.from_numpy(self.to_dense()) > 0
    batch, heads, queries, keys = self.shape

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return dense[b, h, q, k]

    return create_block_mask(mask_mod, batch, heads, queries, keys, device="cpu", BLOCK_SIZE=block_size)


def plot(self: Mask, batch: int = 0, head: int = 0, ax: Axes | None = None) -> Axes:
    """Draws one head: queries downwards, keys to the right; the darker, the more keys are attended to."""
    import matplotlib.pyplot as plt

    axes = plt.subplots()[1] if ax is None else ax
    queries, keys = self.shape[2:]
    axes.imshow(
        self.picture(batch, head),
        cmap="Greys",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        aspect="auto",
        extent=(0, keys, queries, 0),
    )
    axes.grid(visible=False)
    axes.set_xlabel("keys")
    axes.set_ylabel("queries")
    axes.set_title(f"head {head}, {100 * self.density:.1f} % of all positions")
    return axes


def plot_contributions(
    contributions: Sequence[tuple[str, Mask]],
    batch: int = 0,
    head: int = 0,
    ax: Axes | None = None,
    *,
    legend: bool = True,
) -> Axes:
    """Draws which masker chose which key: one head, queries downwards, keys to the right, one color per masker.

    Args:
        contributions: the result of `SparseAttention.contributions`.
        batch, head: the batch entry and the head to draw.
        ax: matplotlib axes to draw into; None: new ones.
        legend: whether to name the maskers.

    Returns:
        The axes. Keys that nobody chose have the axes' background color.
    """
    import matplotlib.colors
    import matplotlib.patches
    import matplotlib.pyplot as plt

    axes = plt.subplots()[1] if ax is None else ax
    red, green, blue = (round(255 * part) for part in matplotlib.colors.to_rgb(axes.get_facecolor()))
    queries, keys = contributions[0][1].shape[2:]
    pixels = _core.overlay(list(contributions), batch, head, ground=(red, green, blue))
    axes.imshow(pixels, interpolation="nearest", aspect="auto", extent=(0, keys, queries, 0))
    axes.grid(visible=False)
    axes.set_xlabel("keys")
    axes.set_ylabel("queries")
    if legend:
        types = [type_ for type_, _ in contributions]
        colors = dict(zip(types, _core.masker_colors(types), strict=True))
        patches = [matplotlib.patches.Patch(color=color, label=type_) for type_, color in colors.items()]
        # The legend stands above the picture, where it hides no key.
        corner = (1, 1)
        axes.legend(
            handles=patches,
            ncols=len(patches),
            fontsize="small",
            loc="lower right",
            bbox_to_anchor=corner,
            borderaxespad=0.2,
        )
    return axes


def _repr_png_(self: Mask) -> bytes | None:
    """The picture that notebooks show: the first head; None if the mask is empty or matplotlib is missing."""
    try:
        import matplotlib.image
    except ImportError:
        return None
    if 0 in self.shape:
        return None
    file = io.BytesIO()
    matplotlib.image.imsave(file, 1 - self.picture(0, 0), cmap="gray", vmin=0, vmax=1, format="png")
    return file.getvalue()


for _function in (from_scipy, from_torch_sparse, from_mask_mod):
    setattr(Mask, _function.__name__, staticmethod(_function))
for _method in (to_scipy, to_torch, to_bsr, to_block_mask, plot, _repr_png_):
    setattr(Mask, _method.__name__, _method)
