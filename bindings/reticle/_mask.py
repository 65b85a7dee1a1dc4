"""What masks are to other packages: scipy, torch, FlexAttention, FlashInfer, matplotlib. Methods of reticle.Mask."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from reticle._core import Mask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import scipy.sparse
    import torch
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from torch.nn.attention.flex_attention import BlockMask


def from_scipy(matrix: scipy.sparse.sparray | scipy.sparse.spmatrix, shape: Sequence[int]) -> Mask:
    """From a sparse matrix (batch * heads * queries, keys) of p; shape is the mask's."""
    csr: Any = matrix.tocsr()
    csr.sum_duplicates()
    csr.eliminate_zeros()
    p = None if (csr.data == 1).all() else csr.data.astype(np.float32)
    return Mask.csr(shape, csr.indptr, csr.indices, p)


def from_torch_sparse(matrix: torch.Tensor, shape: Sequence[int]) -> Mask:
    """From a sparse tensor (batch * heads * queries, keys) of p, in any of torch's layouts; shape is the mask's."""
    csr = matrix.coalesce().to_sparse_csr() if matrix.is_sparse else matrix.to_sparse_csr()
    p = csr.values().float()
    weights = None if bool((p == 1).all()) else p.numpy()
    return Mask.csr(shape, csr.crow_indices().numpy(), csr.col_indices().numpy(), weights)


def from_mask_mod(mask_mod: Callable[..., Any], shape: Sequence[int], *, tile: int = 1 << 22, module: Any = np) -> Mask:
    """From a predicate mask_mod(b, h, q, k) over broadcast index arrays, as FlexAttention's.

    Called on tiles of at most `tile` positions, so memory stays small. `module` makes the index arrays (`arange`):
    numpy, or torch for predicates that need tensors.
    """
    batch, heads, queries, keys = shape
    rows = max(1, min(queries, tile // max(1, keys)))
    k = module.arange(keys).reshape(1, -1)
    counts, columns = [np.zeros(1, np.int64)], [np.empty(0, np.int32)]
    for b in range(batch):
        for h in range(heads):
            for first in range(0, queries, rows):
                q = module.arange(first, min(queries, first + rows)).reshape(-1, 1)
                own_b, own_h = module.asarray(b), module.asarray(h)
                kept = np.broadcast_to(np.asarray(mask_mod(own_b, own_h, q, k), bool), (len(q), keys))
                counts.append(kept.sum(1, dtype=np.int64))
                columns.append(np.nonzero(kept)[1].astype(np.int32))
    return Mask.csr(shape, np.cumsum(np.concatenate(counts)), np.concatenate(columns))


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
        ShapeError: when a block is attended to in part only, which BSR without a mask cannot say.
    """
    from reticle import ShapeError

    indptr, indices, full = self.to_blocks(block_q, block_k)
    if not full.all():
        raise ShapeError(
            f"to_bsr: {np.count_nonzero(~full)} of {len(full)} blocks of {block_q} x {block_k} are attended to in part"
        )
    return indptr, indices


def to_block_mask(self: Mask, block_size: int = 128) -> BlockMask:
    """FlexAttention's BlockMask, with the mask itself to decide within partial blocks: one byte per
    position, for that is what FlexAttention can read.

    Raises:
        ShapeError: for a weighted mask, of which FlexAttention knows nothing.
    """
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    from reticle import ShapeError

    if self.weighted:
        raise ShapeError("to_block_mask: the mask is weighted; FlexAttention's masks are 0 or 1")
    dense = torch.from_numpy(self.to_dense()) > 0
    batch, heads, queries, keys = self.shape

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return dense[b, h, q, k]

    return create_block_mask(mask_mod, batch, heads, queries, keys, device="cpu", BLOCK_SIZE=block_size)


def plot(self: Mask, batch: int = 0, head: int = 0, ax: Axes | None = None) -> Axes:
    """Draws one head: queries downwards, keys to the right, darker means more is attended to."""
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
    axes.set_xlabel("keys")
    axes.set_ylabel("queries")
    axes.set_title(f"head {head}, {100 * self.density:.1f} % of all positions")
    return axes


def _repr_png_(self: Mask) -> bytes | None:
    """For notebooks: the first head; nothing without positions or matplotlib."""
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
