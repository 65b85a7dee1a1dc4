"""Attention over keys that are split among the ranks of torch.distributed.

Each rank attends to its share of keys and values; the states (output, LSE) of disjoint shares merge exactly, so every
rank ends with the result of a single process. Each rank sends one output and one LSE, whatever the number of keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

import reticle._core as _core

if TYPE_CHECKING:
    from torch import Tensor

    from reticle import Mask


def shard_of(length: int, group: dist.ProcessGroup | None = None) -> slice:
    """The keys of this rank when `length` keys are split evenly; the first ranks take the remainder, one key each."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    share, more = divmod(length, ranks)
    begin = rank * share + min(rank, more)
    return slice(begin, begin + share + (rank < more))


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Mask | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    scaling: float | None = None,
    attention_mask: Tensor | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`reticle.attention` over the keys of all ranks: (output, lse), the same on every rank.

    Args:
        queries: (batch, heads, queries, head_dim), the same on every rank.
        keys, values: this rank's share, (batch, kv_heads, local keys, head_dim); it may be empty.
        mask: over this rank's keys: `mask[..., shard_of(length)]` of a mask over all keys. Causality must be in the
            mask.
        attention_mask: over this rank's keys.
        group: a process group of torch.distributed; default: all ranks. Its backend must send CPU tensors, as gloo
            does.

    Gradients are not supported.
    """
    queries32 = queries.detach().float()  # states merge in float32, whatever the input dtype
    output, lse = _core.attention(
        queries32,
        keys.detach(),
        values.detach(),
        mask,
        scaling=scaling,
        attention_mask=attention_mask,
        soft_cap=soft_cap,
    )
    ranks = dist.get_world_size(group)
    outputs = [torch.empty_like(output) for _ in range(ranks)]
    lses = [torch.empty_like(lse) for _ in range(ranks)]
    dist.all_gather(outputs, output, group=group)
    dist.all_gather(lses, lse, group=group)
    output, lse = outputs[0], lses[0]
    for other_output, other_lse in zip(outputs[1:], lses[1:], strict=True):  # rank order: same bits everywhere
        output, lse = _core.merge_states(output, lse, other_output, other_lse)
    return output.to(queries.dtype), lse
