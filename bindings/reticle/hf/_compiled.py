"""Attention of models that torch.compile traces for training: one operator per layer, so that no graph breaks there.

torch cannot trace maskers, so the operator runs them when it is executed: in the forward pass and, if they would choose
the same keys again, in the backward pass. Custom operators accept only tensors and numbers, so layers and masks travel
as ids.
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor  # needed at run time: torch reads operators' annotations

import reticle.torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reticle import Mask
    from reticle.hf._attach import Patterns
    from reticle.hf._visibility import Visibility

_numbers = itertools.count(1)
_layers: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

#: The number of forward passes whose masks are kept for the backward pass.
_REMEMBERED = 64
_seen: OrderedDict[int, Visibility] = OrderedDict()


def number_layer(module: torch.nn.Module) -> None:
    """Gives an attached layer an id, by which the operator finds it."""
    number: Any = next(_numbers)
    module._reticle_number = number
    _layers[number] = module


def ticket_of(seen: Visibility) -> Tensor:
    """A tensor that holds the id of a visibility."""
    number = next(_numbers)
    _seen[number] = seen
    while len(_seen) > _REMEMBERED:
        _seen.popitem(last=False)
    return torch.tensor(number)


def _visibility_of(ticket: Tensor) -> Visibility:
    try:
        return _seen[int(ticket)]
    except KeyError:
        raise RuntimeError(
            f"a compiled model is differentiated more than {_REMEMBERED} forward passes later; its masks are forgotten"
        ) from None


def _parts(
    query: Tensor, key: Tensor, value: Tensor, seen: Visibility, layer: int, scaling: float
) -> Iterator[tuple[tuple[Any, ...], Mask | None, bool, Tensor | None]]:
    """(index of sequences and tokens, mask, causal, bias) of each part of what a layer's prompt attends to."""
    from reticle.hf._attention import dense_terms, follows_pattern, real_tokens

    module: Any = _layers.get(layer)
    attached: Patterns | None = getattr(module, "_reticle", None)
    length = query.shape[2]
    if attached is None or not attached.chooses(length, length) or not follows_pattern(module, seen):
        if attached is not None:
            attached.refuse_patterns(module, seen)
        mask, causal, bias = dense_terms(query, key, seen, None)
        yield (slice(None), slice(None), slice(None)), mask, causal, bias
        return
    for i in range(query.shape[0]):
        tokens: Any = real_tokens(seen, i)
        index = (slice(i, i + 1), slice(None), slice(None) if tokens is None else tokens)
        q, k, v = (tensor.detach()[index] for tensor in (query, key, value))
        yield index, attached.choose_for_prompt(int(module.layer_idx), q, k, v, scaling), True, None


@torch.library.custom_op("reticle::hf_attention", mutates_args=())
def _attend(
    query: Tensor, key: Tensor, value: Tensor, ticket: Tensor, layer: int, scaling: float, soft_cap: float | None
) -> tuple[Tensor, Tensor]:
    output = query.new_zeros((*query.shape[:3], value.shape[3]))
    lse = torch.full(query.shape[:3], -torch.inf, dtype=torch.float32, device=query.device)
    for index, mask, causal, bias in _parts(query, key, value, _visibility_of(ticket), layer, scaling):
        q, k, v = (tensor.detach()[index] for tensor in (query, key, value))
        output[index], lse[index] = reticle.attention(
            q,
            k,
            v,
            mask,
            scaling=scaling,
            causal=causal,
            attention_mask=bias,
            soft_cap=soft_cap,
        )
    return output, lse


@_attend.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, ticket: Tensor, layer: int, scaling: float, soft_cap: float | None
) -> tuple[Tensor, Tensor]:
    rows = query.shape[:3]
    return query.new_empty((*rows, value.shape[3])), query.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op("reticle::hf_attention_backward", mutates_args=())
def _attend_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    ticket: Tensor,
    layer: int,
    scaling: float,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (query, key, value)
    gradients = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]
    for index, mask, causal, bias in _parts(query, key, value, _visibility_of(ticket), layer, scaling):
        q, k, v, attended, sums, upstream = (tensor[index] for tensor in (*inputs, output, lse, d_output))
        found = reticle.torch.backward(
            q,
            k,
            v,
            attended,
            sums,
            upstream,
            mask,
            scaling=scaling,
            causal=causal,
            attention_mask=bias,
            soft_cap=soft_cap,
        )
        for gradient, part in zip(gradients, found, strict=True):
            gradient[index] = part
    return gradients[0], gradients[1], gradients[2]


@_attend_backward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    ticket: Tensor,
    layer: int,
    scaling: float,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, ticket, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, *output, ticket)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, output, lse, ticket = ctx.saved_tensors
    gradients = _attend_backward(query, key, value, output, lse, d_output, ticket, *ctx.options)
    return (*gradients, None, None, None, None)


_attend.register_autograd(_differentiate, setup_context=_save)


def traceable(
    attention_mask: Any, query: Tensor, key: Tensor, others: dict[str, Any], understood: frozenset[str]
) -> bool:
    """True if the operator can compute a call: the prompt of a training step, under a Visibility, without keyword
    arguments other than those in `understood`, which change nothing."""
    return (
        torch.is_grad_enabled()
        and getattr(attention_mask, "ticket", None) is not None
        and query.shape[2] == key.shape[2]
        and all(given is None or word in understood for word, given in others.items())
    )


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Visibility,
    scaling: float | None,
    soft_cap: float | None,
) -> Tensor:
    """The output, (batch, queries, heads, value_dim), contiguous."""
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    number: int = getattr(module, "_reticle_number", 0)
    output: Tensor = _attend(query, key, value, seen.ticket, number, factor, soft_cap)[0]
    return output.transpose(1, 2).contiguous()
