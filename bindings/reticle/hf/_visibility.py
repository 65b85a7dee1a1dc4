"""Which keys a model lets each query see: transformers' mask interface, without a tensor of queries x keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import masking_utils

import reticle._core as _core
from reticle._mask import from_tiles
from reticle.hf._compiled import ticket_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from reticle import Mask

    MaskFunction = Callable[[Any, Any, Any, Any], Any]


class Visibility:
    """Which keys the queries of one forward pass may see.

    Models pass it from layer to layer instead of an attention mask. A model that computes with its mask gets the dense
    mask: every attribute and operation that this class lacks is forwarded to `dense()`.
    """

    def __init__(
        self,
        function: MaskFunction,
        *,
        batch: int,
        queries: int,
        keys: int,
        query_offset: int = 0,
        key_offset: int = 0,
        padding: Tensor | None = None,
        by_vmap: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.function = function
        #: The number of keys of the layer; a static cache has unused slots after the first `keys`.
        self.given_keys = keys
        if function is masking_utils.causal_mask_function or _window_of(function) is not None:
            keys = min(keys, query_offset - key_offset + queries)
        self.batch, self.queries, self.keys = batch, queries, keys
        self.query_offset, self.key_offset = query_offset, key_offset
        self.by_vmap, self.dtype, self.device_of_mask = by_vmap, dtype, device
        #: (batch, keys) bool, for the keys from key_offset on; None if every key is a real token.
        self.padding = None
        if padding is not None:
            real = padding[:, key_offset : key_offset + keys].to(torch.bool)
            if real.shape[1] < keys:
                real = torch.nn.functional.pad(real, (0, keys - real.shape[1]))
            self.padding = None if bool(real.all()) else real
        self._mask: Mask | None = None
        self._plain: bool | None = None
        self._dense: Tensor | None = None
        #: (batch, tokens): the document of each token of packed sequences; None if there is only one.
        self.documents = _documents_of(function) if queries == keys else None
        #: The tensor that stands for this object in compiled graphs; None if no gradients are required.
        self.ticket: Tensor | None = None

    @property
    def first(self) -> int:
        """The position of the first query among the keys."""
        return self.query_offset - self.key_offset

    @property
    def causal(self) -> bool:
        """True if a query sees exactly the keys up to its position, padding aside, and the last query is at the last
        key."""
        if self._plain is None:
            at_end = self.first + self.queries == self.keys
            if self.function is masking_utils.causal_mask_function:
                self._plain = at_end
            elif not at_end or self.bidirectional:
                self._plain = False
            else:
                seen = self.mask
                self._plain = seen.nnz == seen.restrict_causal().nnz and seen.nnz == self._causal_entries()
        return self._plain

    def _causal_entries(self) -> int:
        batch = self.mask.shape[0]
        return batch * sum(self.first + 1 + query for query in range(self.queries))

    @property
    def bidirectional(self) -> bool:
        """True if every query sees every key, padding aside."""
        return self.function is masking_utils.bidirectional_mask_function

    @property
    def mask(self) -> Mask:
        """The mask of the visibility function, padding aside: (batch or 1, 1, queries, keys); computed once for all
        layers."""
        if self._mask is None:
            self._mask = self._by_window() or self._by_function()
        return self._mask

    def _by_window(self) -> Mask | None:
        """The mask of a sliding window, recognised by its closure, without evaluating queries x keys; None for
        others."""
        width = _window_of(self.function)
        if width is None or self.first < 0:
            return None
        ends = torch.arange(self.first + 1, self.first + self.queries + 1).clamp(max=self.keys)
        intervals = torch.stack([(ends - width).clamp(min=0), ends], 1)
        shape = (1, 1, self.queries, self.keys)
        return _core.Mask.runs(shape, torch.arange(self.queries + 1).numpy(), intervals.to(torch.int32).numpy())

    def _by_function(self) -> Mask:
        function, by_vmap = self.function, self.by_vmap
        if by_vmap:
            function = torch.vmap(torch.vmap(function, in_dims=(None, None, None, 0)), in_dims=(None, None, 0, None))

        def evaluate(b: int, h: int, queries: NDArray[np.int64], keys: NDArray[np.int64]) -> Any:
            q, k = torch.from_numpy(queries) + self.query_offset, torch.from_numpy(keys) + self.key_offset
            if not by_vmap:
                q, k = q[:, None], k[None]
            seen = function(torch.tensor(b), torch.tensor(h), q, k)
            return seen.expand(len(queries), len(keys)).cpu().numpy()

        return from_tiles(evaluate, (self.batch, 1, self.queries, self.keys))

    def dense(self) -> Tensor:
        """The mask of `eager` attention: (batch, 1, queries, keys), 0 for visible keys and the dtype's lowest number
        elsewhere."""
        if self._dense is None:
            shape = (self.batch, 1, self.queries, self.keys)
            seen = torch.from_numpy(self.mask.broadcast_to(shape).to_dense() > 0).to(self.device_of_mask)
            if self.padding is not None:
                seen = seen & self.padding[:, None, None].to(seen.device)
            self._dense = torch.zeros(shape, dtype=self.dtype, device=seen.device).masked_fill(
                ~seen, torch.finfo(self.dtype).min
            )
        return self._dense

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.dense(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def dense(given: Any) -> Any:
            return given.dense() if isinstance(given, cls) else given

        return function(*map(dense, args), **{name: dense(value) for name, value in (kwargs or {}).items()})


def _operation(name: str) -> Any:
    def operate(self: Visibility, *others: Any) -> Any:
        return getattr(self.dense(), name)(*others)

    return operate


for _name in (
    "add",
    "radd",
    "sub",
    "mul",
    "rmul",
    "getitem",
    "and",
    "or",
    "invert",
    "eq",
    "ne",
    "lt",
    "gt",
    "le",
    "ge",
    "neg",
):
    setattr(Visibility, f"__{_name}__", _operation(f"__{_name}__"))
Visibility.__hash__ = object.__hash__  # type: ignore[method-assign]


def _window_of(function: MaskFunction) -> int | None:
    """The width, in keys, of a causal sliding window as masking_utils makes it; None for any other function."""
    parts = _closure(function).get("mask_functions", ())
    if len(parts) != 2 or masking_utils.causal_mask_function not in parts:
        return None
    overlay = parts[0] if parts[1] is masking_utils.causal_mask_function else parts[1]
    if not overlay.__qualname__.startswith("sliding_window_overlay."):
        return None
    width = _closure(overlay).get("sliding_window")
    return width if isinstance(width, int) else None


def _documents_of(function: MaskFunction) -> Tensor | None:
    """The document of each token from masking_utils' causal mask of packed sequences; None for any other function."""
    parts = _closure(function).get("mask_functions", ())
    packed = [part for part in parts if part.__qualname__.startswith("packed_sequence_mask_function.")]
    if len(parts) != 2 or len(packed) != 1:
        return None
    within = parts[0] if parts[1] is packed[0] else parts[1]
    if within.__qualname__.startswith("remap_positions_for_packed_sequence."):  # counts restart in each document
        within = _closure(within).get("mask_function")
    documents = _closure(packed[0]).get("packed_sequence_mask")
    if within is not masking_utils.causal_mask_function or not isinstance(documents, Tensor):
        return None
    return documents


def _closure(function: Any) -> dict[str, Any]:
    code = getattr(function, "__code__", None)
    if code is None or function.__closure__ is None:
        return {}
    return dict(zip(code.co_freevars, (cell.cell_contents for cell in function.__closure__), strict=True))


def visibility(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = masking_utils.causal_mask_function,
    attention_mask: Tensor | Visibility | None = None,
    use_vmap: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Visibility:
    """The function that masking_utils calls for "reticle". Unused arguments tell which shortcuts other interfaces may
    take."""
    if isinstance(attention_mask, Visibility):  # generate calls this before the model does
        return attention_mask
    seen = Visibility(
        mask_function,
        batch=batch_size,
        queries=q_length,
        keys=kv_length,
        query_offset=int(q_offset),
        key_offset=int(kv_offset),
        padding=attention_mask,
        by_vmap=use_vmap,
        dtype=dtype,
        device=device,
    )
    if torch.is_grad_enabled():
        seen.ticket = ticket_of(seen)
    return seen
