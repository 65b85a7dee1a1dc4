"""sparse-attention-hub's Mask: probabilities over the last dimension of a shape of any rank, stored as a
reticle.Mask."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import reticle._core as _core

Shape = tuple[int, ...]


def _shape_of_rank_four(shape: Shape) -> tuple[int, int, int, int]:
    """The shape as (batch, heads, queries, keys). Missing leading dimensions have extent 1; additional ones are folded
    into the batch. The order of rows does not change."""
    if not shape:
        raise ValueError("shape must have at least one dimension")
    padded = (1,) * (4 - len(shape)) + shape
    return (math.prod(padded[:-3]), padded[-3], padded[-2], padded[-1])


def _numbers(tensor: Tensor | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    return None if tensor is None else tensor.detach().float().cpu().numpy()


class Mask:
    """The probability that each position of `shape` (..., n) was included with: 0 means absent, 1 certain.

    A value type: maskers and `merge_mask(inplace=False)` make new masks. Positions are stored as runs, indices or bits,
    whichever is smallest, in host memory (`pattern`, a reticle.Mask); `dtype` and `device` are those of the tensors it
    returns.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        mask: Tensor | None = None,
        indices: Tensor | None = None,
        ptr: Tensor | None = None,
        data: Tensor | None = None,
        from_dense_mask: bool = False,
        from_index: bool = False,
        is_full: bool = False,
        is_empty: bool = False,
    ) -> None:
        """Makes a mask from one of four forms: see `create_mask_from_dense_mask`, `create_mask_from_indices`,
        `create_full_mask` and `create_empty_mask`.

        Raises:
            ValueError: when no form is given, or tensors do not fit the shape; ShapeError (a ValueError): for indices
                outside their row and probabilities outside [0, 1].
        """
        if isinstance(device, Tensor):
            raise TypeError("device: is a Tensor; masks come after the device, as mask=, indices=, ptr= and data=")
        self.shape: Shape = tuple(int(extent) for extent in shape)
        self.dtype = dtype
        self.from_dense_mask, self.from_index = from_dense_mask, from_index
        shape4 = _shape_of_rank_four(self.shape)
        if (is_full or is_empty) and device is None:
            raise ValueError(f"device must be specified for {'full' if is_full else 'empty'} masks")
        if is_full:
            self.pattern = _core.Mask.full(shape4)
        elif is_empty:
            self.pattern = _core.Mask.empty(shape4)
        elif from_dense_mask and mask is not None:
            if tuple(mask.shape) != self.shape:
                raise ValueError(f"mask.shape must be {self.shape}, got {tuple(mask.shape)}")
            self.pattern = _core.Mask.dense(mask.detach().float().cpu().numpy().reshape(shape4))
        elif from_index and indices is not None and ptr is not None:
            rows = math.prod(self.shape[:-1])
            if ptr.numel() != rows + 1:
                raise ValueError(f"ptr.numel() must be {rows + 1}, got {ptr.numel()}")
            flat = (ptr.cpu().numpy(), indices.cpu().numpy())
            self.pattern = _core.Mask.from_flat_indices(shape4, *flat, _numbers(data))
        else:
            raise ValueError(
                "Must specify either from_dense_mask with mask, from_index with indices and ptr, is_full=True, or is_empty=True"
            )
        given = next((tensor for tensor in (mask, indices) if tensor is not None), None)
        self.device = torch.device(device) if device is not None else given.device if given is not None else None

    # --- construction -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pattern(
        cls,
        pattern: _core.Mask,
        shape: Shape | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Mask:
        """A hub mask from a reticle.Mask; `shape` is the pattern's by default."""
        made = cls.create_empty_mask(pattern.shape if shape is None else shape, dtype, device)
        if _shape_of_rank_four(made.shape) != pattern.shape:
            raise ValueError(f"shape {made.shape} does not hold a mask {pattern.shape}")
        made.pattern = pattern
        held = pattern.nnz > 0 and made.pattern.kind != "full"
        made.from_dense_mask = held
        return made

    @classmethod
    def create_full_mask(
        cls, shape: Shape, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Mask:
        """Every position with probability 1; takes no memory."""
        return cls(shape, dtype, is_full=True, device=device)

    @classmethod
    def create_empty_mask(
        cls, shape: Shape, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Mask:
        """No position; takes no memory."""
        return cls(shape, dtype, is_empty=True, device=device)

    @classmethod
    def create_mask_from_dense_mask(cls, shape: Shape, mask: Tensor, dtype: torch.dtype = torch.float32) -> Mask:
        """From probabilities (bool, or numbers in [0, 1]) of exactly this shape, which are copied."""
        return cls(shape, dtype, mask=mask, from_dense_mask=True)

    @classmethod
    def create_mask_from_indices(
        cls, shape: Shape, indices: Tensor, ptr: Tensor, data: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> Mask:
        """From positions in the flattened tensor: row r has indices[ptr[r] : ptr[r + 1]]; data are their probabilities
        (default: all 1). The last of repeated positions counts."""
        return cls(shape, dtype, indices=indices, ptr=ptr, data=data, from_index=True)

    @classmethod
    def create_from_row_wise_idx(
        cls,
        shape: Shape,
        row_wise_idx: Tensor,
        data: Tensor,
        type: Literal["index", "dense"] = "index",
        dtype: torch.dtype = torch.float32,
        use_padding: bool = False,
        mode: Literal["sparse", "dense"] = "dense",
        *,
        mask_type: Literal["index", "dense"] | None = None,
    ) -> Mask:
        """From positions within each row, (..., m), -1 for none, and their probabilities of the same shape.

        `type` (in newer versions `mask_type`), `use_padding` and `mode` choose a representation in
        sparse-attention-hub. Here they have no effect, and -1 always pads.
        """
        type = type if mask_type is None else mask_type
        shape = tuple(shape)
        if not shape:
            raise ValueError("shape must have at least one dimension")
        if type not in ("index", "dense"):
            raise ValueError(f"type must be 'index' or 'dense', got {type}")
        _check_mode(mode)
        if row_wise_idx.dim() == 0 or row_wise_idx.shape[-1] == 0:
            raise ValueError("row_wise_idx must have at least one column")
        expected = (*shape[:-1], row_wise_idx.shape[-1])
        if tuple(row_wise_idx.shape) != expected:
            raise ValueError(f"row_wise_idx.shape must be {expected}, got {tuple(row_wise_idx.shape)}")
        if data.shape != row_wise_idx.shape:
            raise ValueError(
                f"data.shape must match row_wise_idx.shape {tuple(row_wise_idx.shape)}, got {tuple(data.shape)}"
            )
        rows = row_wise_idx.reshape(-1, expected[-1]).cpu().numpy()
        p = data.detach().float().reshape(-1, expected[-1]).cpu().numpy()
        pattern = _core.Mask.from_row_indices(_shape_of_rank_four(shape), rows, p)
        made = cls.from_pattern(pattern, shape, dtype, row_wise_idx.device)
        made.from_dense_mask, made.from_index = type == "dense", type == "index"
        return made

    # --- inspection ---------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """The same as `is_full_mask`."""
        return self.is_full_mask()

    @property
    def is_empty(self) -> bool:
        """The same as `is_empty_mask`."""
        return self.is_empty_mask()

    @property
    def mask(self) -> Tensor | None:
        """A copy of the dense form if the mask was made from one; else None."""
        return self.get_dense_mask() if self.from_dense_mask else None

    @property
    def indices(self) -> Tensor | None:
        """The positions as `get_index_mask` returns them if the mask was made from positions; else None."""
        return self.get_index_mask()[0] if self.from_index else None

    @property
    def ptr(self) -> Tensor | None:
        """The begins of rows in `indices`, with the total at the end."""
        return self.get_index_mask()[1] if self.from_index else None

    @property
    def data(self) -> Tensor | None:
        """The probabilities at `indices`."""
        return self.get_index_mask()[2] if self.from_index else None

    def is_full_mask(self) -> bool:
        """True if every position has probability 1, however the mask was made."""
        return self.pattern.nnz == math.prod(self.shape) and not self.pattern.weighted

    def is_empty_mask(self) -> bool:
        """True if the mask has no positions, however it was made."""
        return self.pattern.nnz == 0

    def get_density(self) -> float:
        """The share of positions that are present."""
        return self.pattern.density

    def get_dense_mask(self) -> Tensor:
        """The probabilities of all positions, a new tensor of `shape`."""
        dense = torch.from_numpy(self.pattern.to_dense()).reshape(self.shape)
        return dense.to(device=self.device, dtype=self.dtype)

    def get_index_mask(self) -> tuple[Tensor, Tensor, Tensor]:
        """(indices, ptr, data) in the form of `create_mask_from_indices`, ascending."""
        ptr, indices, data = (torch.from_numpy(array).to(self.device) for array in self.pattern.to_flat_indices())
        return indices, ptr, data.to(self.dtype)

    def __repr__(self) -> str:
        form = f"is_full={self.is_full}, is_empty={self.is_empty}, kind={self.pattern.kind}"
        return f"Mask(shape={self.shape}, dtype={self.dtype}, {form}, density={self.get_density():.4f})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.shape == other.shape and self.pattern == other.pattern

    def __hash__(self) -> int:
        return hash((self.shape, self.pattern))

    # --- combination and application ----------------------------------------------------------------------------------

    def merge_mask(self, other_mask: Mask, inplace: bool, mode: Literal["sparse", "dense"] = "dense") -> Mask:
        """The union; probabilities add up, to at most 1. In place, this mask becomes the result; the other never
        changes.

        Raises:
            ValueError: for masks of different shapes; TypeError: when other_mask is not a Mask.
        """
        _check_mode(mode)
        if not isinstance(other_mask, Mask):
            raise TypeError(f"merge_mask got {type(other_mask).__name__}; expected a Mask")
        if self.shape != other_mask.shape:
            raise ValueError(f"Cannot merge masks with different shapes: {self.shape} vs {other_mask.shape}")
        merged = self.pattern.merge(other_mask.pattern)
        result = self if inplace else Mask.from_pattern(merged, self.shape, self.dtype, self.device or "cpu")
        result.pattern = merged
        has_form = not (result.is_full_mask() or result.is_empty_mask())
        result.from_dense_mask, result.from_index = has_form and mode == "dense", has_form and mode == "sparse"
        return result

    def merge_mask_dense(self, other_mask: Mask, inplace: bool = False) -> Mask:
        """The same as `merge_mask`; the result's form is dense."""
        return self.merge_mask(other_mask, inplace, mode="dense")

    def merge_mask_sparse(self, other_mask: Mask, inplace: bool = False) -> Mask:
        """The same as `merge_mask`; the result's form is positions."""
        return self.merge_mask(other_mask, inplace, mode="sparse")

    def apply_mask(self, input_tensor: Tensor, mode: Literal["sparse", "dense"] = "dense") -> Tensor:
        """input_tensor (of the mask's shape) times the probabilities, which is 0 under an empty mask;
        differentiable."""
        p = self._for(input_tensor, mode)
        return input_tensor if self.is_full_mask() else input_tensor * p

    def apply_inv_mask(self, input_tensor: Tensor, mode: Literal["sparse", "dense"] = "dense") -> Tensor:
        """input_tensor (of the mask's shape) divided by the probabilities, 0 where a probability is 0;
        differentiable."""
        p = self._for(input_tensor, mode)
        if self.is_full_mask():
            return input_tensor
        return torch.where(p > 0, input_tensor / p.masked_fill(p == 0, 1), 0)

    def apply_mask_dense(self, input_tensor: Tensor) -> Tensor:
        """The same as `apply_mask`."""
        return self.apply_mask(input_tensor)

    def apply_mask_sparse(self, input_tensor: Tensor) -> Tensor:
        """The same as `apply_mask`."""
        return self.apply_mask(input_tensor, mode="sparse")

    def apply_inv_mask_dense(self, input_tensor: Tensor) -> Tensor:
        """The same as `apply_inv_mask`."""
        return self.apply_inv_mask(input_tensor)

    def apply_inv_mask_sparse(self, input_tensor: Tensor) -> Tensor:
        """The same as `apply_inv_mask`."""
        return self.apply_inv_mask(input_tensor, mode="sparse")

    def _for(self, tensor: Tensor, mode: str) -> Tensor:
        _check_mode(mode)
        if tuple(tensor.shape) != self.shape:
            raise ValueError(f"input_tensor.shape must be {self.shape}, got {tuple(tensor.shape)}")
        # The product of an integer with a probability is a fraction, so integer tensors become floating.
        dtype = tensor.dtype if tensor.is_floating_point() else torch.get_default_dtype()
        return self.get_dense_mask().to(device=tensor.device, dtype=dtype)


def _check_mode(mode: str) -> None:
    """Accepts the names of sparse-attention-hub's two equivalent algorithms and refuses any other."""
    if mode not in ("sparse", "dense"):
        raise ValueError(f"Invalid mode: {mode}")


def apply_inv_mask_sum(input_tensor: Tensor, mask: Mask) -> Tensor:
    """The sum of `mask.apply_inv_mask(input_tensor)` over each row, (..., 1)."""
    return mask.apply_inv_mask(input_tensor).sum(-1, keepdim=True)
