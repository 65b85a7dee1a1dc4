"""Pipelines of maskers over torch tensors on a GPU: any masker chooses, on the host; attention runs on the GPU.

`SparseAttention.run`, `SparseAttention.mask` and `InferenceHandler.attend` come here when tensors lie on a GPU, and
so do models that `reticle.hf` attaches to. Keys and values are copied to the host once, when a sequence begins, and then
token by token as they come; the mask goes to the GPU with every call. Where sinks, a window and the best keys are all
that is wanted, `reticle.torch.TopKAttention` chooses on the GPU.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import reticle.torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reticle import InferenceHandler, InferenceState, Mask, SequenceState, SparseAttention


class HostCopies:
    """One sequence's keys and values on the host, layer by layer, with room to grow."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor, int]] = {}

    def follow(self, layer: int, keys: Tensor, values: Tensor, *, begins: bool) -> tuple[Tensor, Tensor]:
        """What the host has, brought up to date: new tokens are copied, or all of them when a sequence begins."""
        length = keys.shape[2]
        held = self._layers.get(layer)
        if begins or held is None or held[2] >= length or not _same_sequence(held, keys, values):
            held = (_with_room(keys, 0), _with_room(values, 0), 0)
        known = held[2]
        if held[0].shape[2] < length:
            room = length // 4
            grown = (_with_room(keys, room), _with_room(values, room), known)
            for new, old in zip(grown[:2], held[:2], strict=True):
                new[:, :, :known] = old[:, :, :known]
            held = grown
        for copy, tensor in zip(held[:2], (keys, values), strict=True):
            copy[:, :, known:length].copy_(tensor[:, :, known:])
        self._layers[layer] = (held[0], held[1], length)
        return held[0][:, :, :length], held[1][:, :, :length]


def _with_room(tensor: Tensor, room: int) -> Tensor:
    batch, heads, length, width = tensor.shape
    return torch.empty((batch, heads, length + room, width), dtype=tensor.dtype)


def _same_sequence(held: tuple[Tensor, Tensor, int], keys: Tensor, values: Tensor) -> bool:
    return all(
        copy.dtype == tensor.dtype and copy.shape[:2] == tensor.shape[:2] and copy.shape[3] == tensor.shape[3]
        for copy, tensor in zip(held[:2], (keys, values), strict=True)
    )


def _on_host(
    queries: Tensor, keys: Tensor, values: Tensor, state: Any, call: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """What a masker is called with."""
    warnings.warn(
        "maskers choose on the host, and keys are copied to it; reticle.torch.TopKAttention chooses on the GPU",
        RuntimeWarning,
        stacklevel=4,
    )
    copies: HostCopies | None = getattr(state, "_host_copies", None)
    if copies is None:
        copies = state._host_copies = HostCopies()
    begins = queries.shape[2] == keys.shape[2]
    on_host = copies.follow(call["layer"], keys.detach(), values.detach(), begins=begins)
    extras: Mapping[str, Any] | None = call["extras"]
    own = dict(call)
    if extras is not None:
        own["extras"] = {name: _to_host(extra) for name, extra in extras.items()}
    own["attention_mask"] = _to_host(call["attention_mask"])
    return (queries.detach().cpu(), *on_host), own


def _to_host(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def mask(
    pipeline: SparseAttention, queries: Tensor, keys: Tensor, values: Tensor, state: SequenceState, **call: Any
) -> Mask:
    """`SparseAttention.mask`, of tensors on a GPU."""
    tensors, own = _on_host(queries, keys, values, state, call)
    return pipeline.mask(*tensors, state, **own)


def run(
    pipeline: SparseAttention,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    state: SequenceState,
    *,
    soft_cap: float | None,
    sink_logits: Sequence[float],
    **call: Any,
) -> tuple[Tensor, Mask]:
    """`SparseAttention.run`, of tensors on a GPU. The output has no gradient."""
    tensors, own = _on_host(queries, keys, values, state, call)
    chosen = pipeline.mask(*tensors, state, **own)
    options: Any = {"attention_mask": own["attention_mask"], "soft_cap": soft_cap, "sink_logits": sink_logits}
    output, _ = reticle.torch.on_gpu(queries, keys, values, chosen, scaling=call["scaling"], **options)
    return output, chosen


def attend(
    handler: InferenceHandler,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    state: InferenceState,
    *,
    soft_cap: float | None,
    sink_logits: Sequence[float],
    **call: Any,
) -> tuple[Tensor, Tensor]:
    """`InferenceHandler.attend`, of tensors on a GPU. The output has no gradient."""
    tensors, own = _on_host(queries, keys, values, state, call)
    chosen = handler.mask(*tensors, state, **own)
    options: Any = {"attention_mask": own["attention_mask"], "soft_cap": soft_cap, "sink_logits": sink_logits}
    return reticle.torch.on_gpu(queries, keys, values, chosen, scaling=call["scaling"], **options)
