"""Native Sparse Attention for torch tensors on a GPU: the implementation behind `reticle.nsa` there.

Reticle's kernels compute attention and its gradients, planned on the device, and select blocks. torch's operations
compute projections, compression, and block scores in float32 or for head sizes without a kernel. Block scores are kept
for one chunk of queries at a time, so memory does not grow with the square of the length. No call synchronises with the
device. The module also runs on the CPU, where it is tested.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import reticle
import reticle._core as _core
from reticle.torch import Band, SelectedBlocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reticle.nsa import NativeSparseAttention
    from reticle.torch import AnyMask

# The largest number of scores kept at once while blocks are selected: 64 MB in float32.
_MOST_SCORES = 1 << 24


def compress(
    x: Tensor, weight: Tensor | None, pe: Tensor | None, cu_seqlens: list[int], config: _core.NsaConfig
) -> tuple[Tensor, list[int]]:
    """`reticle.nsa.compress`, differentiable by autograd: (windows, heads, head_dim), and the offsets of the
    windows."""
    if (weight is None) != (config.compress_type == "avgpool"):
        raise _core.ShapeError("compress: weightedpool and linear need a weight, avgpool takes none")
    kernel, counts, parts = config.kernel_size, [0], []
    for begin, end in pairwise(cu_seqlens):
        counts.append(config.compressed_length(end - begin))
        if counts[-1]:
            parts.append(x[begin:end].unfold(0, kernel, config.kernel_stride).transpose(2, 3))
    windows = torch.cat(parts) if parts else x.new_zeros((0, x.shape[1], kernel, x.shape[2]))
    if pe is not None:
        windows = windows + pe
    if weight is None:
        y = windows.mean(2)
    elif config.compress_type == "weightedpool":
        y = (windows * weight[:, :, None]).sum(2)
    else:
        y = torch.einsum("whi,hio->who", windows.flatten(2), weight)
    return y, list(accumulate(counts))


@torch.no_grad()
def choose_blocks(
    queries: Tensor,
    compressed_keys: Tensor,
    first_query: int,
    scaling: float | None,
    config: _core.NsaConfig,
    lse: Tensor | None = None,
) -> Tensor:
    """Selects blocks for queries (n, heads, head_dim), from position first_query on, by the scores of the compressed
    keys (m, kv_heads, head_dim): (kv_heads, n, topk or fewer) int32, ascending, padded with -1 at the end. Equal scores
    go to the first block. `lse` (heads, n) is that of compressed attention; None: computed if needed."""
    (n, heads, d), (compressed, kv_heads, _), device = queries.shape, compressed_keys.shape, queries.device
    positions = torch.arange(first_query, first_query + n, device=device)
    blocks = torch.arange((first_query + n - 1) // config.block_size + 1 if n else 0, device=device)
    width, query_blocks = min(config.topk, len(blocks)), (positions // config.block_size)[:, None]
    always = (blocks < config.init_blocks) | (blocks > query_blocks - config.local_blocks)
    factor = d**-0.5 if scaling is None else scaling
    by_kernel = queries.is_cuda and _core.cuda_block_scores_serve(_by_head(queries), _by_head(compressed_keys), config)
    if by_kernel and lse is None:
        _, lse = attend_compressed(queries, compressed_keys, compressed_keys, first_query, config, scaling)
    step = max(1, _MOST_SCORES // max(1, kv_heads * len(blocks) if by_kernel else heads * compressed))
    chosen = [torch.zeros((kv_heads, 0, width), dtype=torch.int32, device=device)]
    for begin in range(0, n, step):
        rows = slice(begin, begin + step)
        if by_kernel and lse is not None:
            held = queries.new_empty((1, kv_heads, min(step, n - begin), len(blocks)), dtype=torch.float32)
            _core.cuda_block_scores(
                _by_head(queries[rows]),
                _by_head(compressed_keys),
                lse[:, rows].contiguous(),
                held,
                first_query=first_query + begin,
                scaling=factor,
                config=config,
            )
            scores = held[0]
        else:
            scores = _block_scores(
                queries[rows].float() * factor, compressed_keys, positions[rows], len(blocks), config
            )
        scores = scores.masked_fill(always[rows], torch.inf).masked_fill(blocks > query_blocks[rows], -torch.inf)
        chosen.append(_highest(scores, width))
    return torch.cat(chosen, 1)


def _by_head(x: Tensor) -> Tensor:
    """A view (1, heads, n, head_dim) of (n, heads, head_dim)."""
    return x.detach().transpose(0, 1)[None]


def _highest(scores: Tensor, k: int) -> Tensor:
    """Indices of the k highest values of the last dimension that are not -infinity: int32, ascending, padded with
    -1."""
    count = scores.shape[-1]
    if scores.is_cuda:
        indices, found = reticle.torch.top_k(scores.flatten(0, -2), k)
        beyond = torch.arange(k, device=scores.device) >= found[:, None]
        return indices.masked_fill(beyond, -1).view(*scores.shape[:-1], k)
    best = scores.sort(dim=-1, descending=True, stable=True)
    ascending = best.indices[..., :k].masked_fill(best.values[..., :k] == -torch.inf, count).sort(-1).values
    return ascending.masked_fill(ascending == count, -1).to(torch.int32)


def _block_scores(
    queries: Tensor, compressed_keys: Tensor, positions: Tensor, blocks: int, config: _core.NsaConfig
) -> Tensor:
    """Scores of blocks, (kv_heads, n, blocks): probabilities of compressed tokens, weighted by their overlap with a
    block's tokens, and summed over the heads of the KV head."""
    (n, heads, d), (compressed, kv_heads, _) = queries.shape, compressed_keys.shape
    group = heads // kv_heads
    by_kv_head = queries.view(n, kv_heads, group, d).transpose(0, 1).flatten(1, 2)
    products = torch.bmm(by_kv_head, compressed_keys.float().permute(1, 2, 0)).view(kv_heads, n, group, compressed)
    visible = torch.div(positions + 1 - config.kernel_size, config.kernel_stride, rounding_mode="floor") + 1
    hidden = torch.arange(compressed, device=queries.device) >= visible[:, None, None]
    p = products.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num(0).sum(2)  # 0 for queries that see no key
    in_token, in_block = config.kernel_size // config.kernel_stride, config.block_size // config.kernel_stride
    overlap = torch.zeros(in_token + in_block - 1, device=queries.device)
    for m in range(in_token):
        overlap[m : m + in_block] += 1
    beyond = max(0, blocks * in_block - compressed)
    around = torch.nn.functional.pad(p, (in_token - 1, beyond)).unfold(-1, len(overlap), in_block)
    scores: Tensor = around[:, :, :blocks] @ overlap
    return scores


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: AnyMask, scaling: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention (n, heads, head_dim) of one packed sequence over a mask, and its LSE (heads, n)."""
    n, heads = queries.shape[:2]
    if keys.shape[0] == 0 or n == 0:
        return queries.new_zeros((n, heads, values.shape[2])), queries.new_full(
            (heads, n), -torch.inf, dtype=torch.float32
        )
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (queries, keys, values))
    output, lse = reticle.attention(q, k, v, mask, scaling=scaling)
    return output[0].transpose(0, 1), lse[0]


def attend_compressed(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    first_query: int,
    config: _core.NsaConfig,
    scaling: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`attend` over compressed keys whose windows end at or before each query's position, which starts at
    first_query."""
    windows = Band(first_query=first_query, kernel=config.kernel_size, stride=config.kernel_stride)
    return attend(queries, keys, values, windows, scaling)


def attend_selected(
    queries: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, block_size: int, scaling: float | None = None
) -> Tensor:
    """`attend` over selected blocks (kv_heads, n, any), in any order and possibly repeated, -1 for none. Causal; the
    last query is at the last key."""
    last = torch.iinfo(torch.int32).max
    ascending = blocks.to(torch.int32).masked_fill(blocks < 0, last).sort(-1).values
    repeated = torch.nn.functional.pad(ascending[..., 1:] == ascending[..., :-1], (1, 0))
    ascending = ascending.masked_fill(repeated, last).sort(-1).values
    numbers = ascending.masked_fill(ascending == last, -1)
    output, _ = attend(queries, keys, values, SelectedBlocks(numbers[None], block_size), scaling)
    return output


def _branches(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    compressed_keys: Tensor,
    compressed_values: Tensor,
    first_query: int,
    config: _core.NsaConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three attentions of one sequence's queries, (n, heads, head_dim) each."""
    compressed, lse = attend_compressed(queries, compressed_keys, compressed_values, first_query, config)
    blocks = choose_blocks(queries, compressed_keys, first_query, None, config, lse)
    window = Band(width=config.window_size + 1, first_query=first_query)  # that many before the query, and its key
    return (
        compressed,
        attend_selected(queries, keys, values, blocks, config.block_size),
        attend(queries, keys, values, window)[0],
    )


@functools.cache
def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device)


def rotated(x: Tensor, positions: Tensor, rope: _core.Rope) -> Tensor:
    """x (tokens, heads, head_dim) with pairs (x[i], x[i + head_dim / 2]) rotated by rotary positions."""
    frequencies = _on_device(tuple(rope.inverse_frequencies), x.device)
    angles = (positions.float()[:, None] * frequencies)[:, None]
    first, second = x.float().chunk(2, -1)
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1).to(x.dtype)


def packed_positions(cu_seqlens: list[int], device: torch.device, stride: int = 1) -> Tensor:
    """The positions 0, stride, 2 * stride, ... of each packed sequence."""
    lengths = (end - begin for begin, end in pairwise(cu_seqlens))
    return torch.cat([stride * torch.arange(length, device=device) for length in (0, *lengths)])


def _projected(module: NativeSparseAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values, (tokens, heads, head_dim), and gates (tokens, heads, 3)."""
    q, k, v = (
        projection(x).unflatten(-1, (heads, -1))
        for projection, heads in (
            (module.proj_q, module.num_q_heads),
            (module.proj_k, module.num_kv_heads),
            (module.proj_v, module.num_kv_heads),
        )
    )
    return q, k, v, module.gate(x).unflatten(-1, (module.num_q_heads, 3))


def _mixed(gates: Tensor, branches: Sequence[Tensor]) -> Tensor:
    return (gates.unsqueeze(-1) * torch.stack(tuple(branches), 2)).sum(2)


def forward(module: NativeSparseAttention, x: Tensor, cu_seqlens: list[int]) -> Tensor:
    """`NativeSparseAttention.forward`, differentiable by autograd."""
    config, rope = module._config, module._rope
    q, k, v, gates = _projected(module, x)
    compressed_k, windows = compress(k, module.compress_key, module.intra_block_pe, cu_seqlens, config)
    compressed_v, _ = compress(v, module.compress_value, None, cu_seqlens, config)
    positions = packed_positions(cu_seqlens, x.device)
    q, k = rotated(q, positions, rope), rotated(k, positions, rope)
    compressed_k = rotated(compressed_k, packed_positions(windows, x.device, config.kernel_stride), rope)
    mixed = [q.new_zeros((0, *q.shape[1:]))]
    for (begin, end), (first, last) in zip(pairwise(cu_seqlens), pairwise(windows), strict=True):
        tokens = slice(begin, end)
        compressed = (compressed_k[first:last], compressed_v[first:last])
        mixed.append(_mixed(gates[tokens], _branches(q[tokens], k[tokens], v[tokens], *compressed, 0, config)))
    y: Tensor = module.proj_o(torch.cat(mixed).flatten(1))
    return y


@dataclass
class _Sequence:
    """The cache of one sequence: rotated keys, values, compressed ones, and tokens of windows that are not complete."""

    keys: Tensor
    values: Tensor
    compressed_keys: Tensor
    compressed_values: Tensor
    pending_keys: Tensor
    pending_values: Tensor
    length: int = 0
    compressed: int = 0


class State:
    """The caches of a batch of sequences, on the module's device, with room for `capacity` tokens of each."""

    def __init__(self, module: NativeSparseAttention, sequences: int, capacity: int) -> None:
        weight = module.proj_k.weight
        shape = (module.num_kv_heads, weight.shape[0] // module.num_kv_heads)

        def room(tokens: int) -> Tensor:
            return torch.empty((tokens, *shape), dtype=weight.dtype, device=weight.device)

        windows = module._config.compressed_length(capacity)
        self._sequences = [
            _Sequence(room(capacity), room(capacity), room(windows), room(windows), room(0), room(0))
            for _ in range(sequences)
        ]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence so far."""
        return [sequence.length for sequence in self._sequences]


@torch.no_grad()
def extend(module: NativeSparseAttention, x: Tensor, cu_seqlens: list[int], state: State) -> Tensor:
    """`NativeSparseAttention.extend`."""
    sequences, config, rope = state._sequences, module._config, module._rope
    if len(cu_seqlens) != len(sequences) + 1:
        raise _core.ShapeError(
            f"cu_seqlens: has {len(cu_seqlens)} entries; expected {len(sequences) + 1}, for the sequences of the state"
        )
    for sequence, (begin, end) in zip(sequences, pairwise(cu_seqlens), strict=True):
        if sequence.length + end - begin > sequence.keys.shape[0]:
            raise _core.ShapeError(
                f"NSA: {sequence.length} tokens and {end - begin} more do not fit a cache of {sequence.keys.shape[0]}"
            )
    q, k, v, gates = _projected(module, x)
    mixed, grown = [q.new_zeros((0, *q.shape[1:]))], []
    for sequence, (begin, end) in zip(sequences, pairwise(cu_seqlens), strict=True):
        tokens, first, length = slice(begin, end), sequence.length, sequence.length + end - begin
        pending_k = torch.cat((sequence.pending_keys, k[tokens]))
        pending_v = torch.cat((sequence.pending_values, v[tokens]))
        new_k, (_, fresh) = compress(pending_k, module.compress_key, module.intra_block_pe, [0, len(pending_k)], config)
        new_v, _ = compress(pending_v, module.compress_value, None, [0, len(pending_v)], config)
        known, compressed = sequence.compressed, sequence.compressed + fresh
        at = config.kernel_stride * torch.arange(known, compressed, device=x.device)
        sequence.compressed_keys[known:compressed] = rotated(new_k, at, rope)
        sequence.compressed_values[known:compressed] = new_v
        positions = torch.arange(first, length, device=x.device)
        sequence.keys[first:length] = rotated(k[tokens], positions, rope)
        sequence.values[first:length] = v[tokens]
        taken = config.kernel_stride * fresh
        grown.append((pending_k[taken:], pending_v[taken:], length, compressed))
        if begin == end:
            continue
        tensors = (
            sequence.keys[:length],
            sequence.values[:length],
            sequence.compressed_keys[:compressed],
            sequence.compressed_values[:compressed],
        )
        mixed.append(_mixed(gates[tokens], _branches(rotated(q[tokens], positions, rope), *tensors, first, config)))
    y: Tensor = module.proj_o(torch.cat(mixed).flatten(1))
    for sequence, (pending_k, pending_v, length, compressed) in zip(sequences, grown, strict=True):
        sequence.pending_keys, sequence.pending_values = pending_k.clone(), pending_v.clone()
        sequence.length, sequence.compressed = length, compressed
    return y
