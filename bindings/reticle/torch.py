"""Attention over a mask as a torch operator: autograd, torch.compile, fake tensors."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor  # by name at run time: torch reads operators' annotations

import reticle._core as _core

if TYPE_CHECKING:
    from reticle import Mask

# Operators take no objects but tensors and numbers, so masks cross by number. Whoever calls keeps the mask alive; a
# backward pass keeps its own.
_masks: weakref.WeakValueDictionary[int, Mask] = weakref.WeakValueDictionary()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _number_of(mask: Mask) -> int:
    _masks[id(mask)] = mask
    return id(mask)


@torch.library.custom_op("reticle::attention", mutates_args=())
def _attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: int,
    attention_mask: Tensor | None,
    scaling: float,
    causal: bool,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor]:
    return _core.attention(
        queries,
        keys,
        values,
        _masks[mask],
        scaling=scaling,
        causal=causal,
        attention_mask=attention_mask,
        soft_cap=soft_cap,
    )


@_attention.register_fake
def _(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: int,
    attention_mask: Tensor | None,
    scaling: float,
    causal: bool,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor]:
    rows = queries.shape[:3]
    return queries.new_empty((*rows, values.shape[3])), queries.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op("reticle::attention_backward", mutates_args=())
def _attention_backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    mask: int,
    attention_mask: Tensor | None,
    scaling: float,
    causal: bool,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    d_queries, d_keys, d_values = _core.attention_backward(
        queries,
        keys,
        values,
        _masks[mask],
        output,
        lse,
        d_output,
        scaling=scaling,
        causal=causal,
        attention_mask=attention_mask,
        soft_cap=soft_cap,
    )
    return d_queries.to(queries.dtype), d_keys.to(keys.dtype), d_values.to(values.dtype)


@_attention_backward.register_fake
def _(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    mask: int,
    attention_mask: Tensor | None,
    scaling: float,
    causal: bool,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        queries.new_empty(queries.shape),
        keys.new_empty(keys.shape),
        values.new_empty(values.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, keys, values, mask, attention_mask, scaling, causal, soft_cap = inputs
    ctx.save_for_backward(queries, keys, values, attention_mask, *output)
    ctx.mask = mask
    ctx.kept_alive = _masks.get(mask)
    ctx.options = (scaling, causal, soft_cap)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    queries, keys, values, attention_mask, output, lse = ctx.saved_tensors
    scaling, causal, soft_cap = ctx.options
    gradients = _attention_backward(
        queries,
        keys,
        values,
        output,
        lse,
        d_output,
        ctx.mask,
        attention_mask,
        scaling,
        causal,
        soft_cap,
    )
    return (*gradients, None, None, None, None, None)


_attention.register_autograd(_differentiate, setup_context=_save)


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Mask | None = None,
    *,
    scaling: float | None = None,
    causal: bool = False,
    attention_mask: Tensor | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`reticle.attention` with gradients by queries, keys and values; the mask and the LSE get none.

    Called by `reticle.attention` where a gradient is asked for. Under torch.compile the mask is a constant of the
    graph.
    """
    if mask is None:
        mask = _core.Mask.full((queries.shape[0], queries.shape[1], queries.shape[2], keys.shape[2]))
    factor = queries.shape[-1] ** -0.5 if scaling is None else scaling
    number: int = _number_of(mask)
    output, lse = _attention(queries, keys, values, number, attention_mask, factor, causal, soft_cap)
    return output, lse
