"""Attention over packed sequences as torch modules: Native Sparse Attention, and full attention."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import reticle
import reticle._core as _core
from reticle import nsa_gpu
from reticle.nsa import NativeSparseAttention, RopeConfig, checked_offsets

if TYPE_CHECKING:
    from reticle.nsa import Offsets

__all__ = ["KVCache", "NativeSparseAttention", "RopeConfig", "SelfAttention"]


class KVCache:
    """Rotated keys, and values, of a batch of sequences, with room for `capacity` tokens of each."""

    def __init__(self, sequences: int, capacity: int, like: Tensor, heads: int, head_dim: int) -> None:
        self.keys = like.new_empty((sequences, capacity, heads, head_dim))
        self.values = torch.empty_like(self.keys)
        self.lengths = [0] * sequences

    def extend(self, keys: Tensor, values: Tensor, offsets: list[int]) -> None:
        """Appends the next tokens of each sequence, (tokens, heads, head_dim); if they do not fit, nothing changes."""
        lengths = [known + end - begin for known, (begin, end) in zip(self.lengths, pairwise(offsets), strict=True)]
        if max(lengths, default=0) > self.keys.shape[1]:
            raise _core.ShapeError(f"sequences of {lengths} tokens; expected up to the cache's {self.keys.shape[1]}")
        for row, (begin, end) in enumerate(pairwise(offsets)):
            self.keys[row, self.lengths[row] : lengths[row]] = keys[begin:end]
            self.values[row, self.lengths[row] : lengths[row]] = values[begin:end]
        self.lengths = lengths


class SelfAttention(nn.Module):
    """Causal attention of every query to all keys, with rotary positions.

    Parameters: proj_q.weight (num_q_heads * head_dim, hidden_size), proj_k.weight and proj_v.weight (num_kv_heads *
    head_dim, hidden_size), proj_o.weight (hidden_size, num_q_heads * head_dim). No biases.
    """

    def __init__(
        self,
        hidden_size: int,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope_config: RopeConfig,
        rope_device: Any = None,
    ) -> None:
        """Initialises parameters with Xavier-uniform, as the reference does. `rope_device` has no effect: rotary angles
        are computed on use and not kept in a table.

        Raises:
            ConfigError: when KV heads do not divide the heads, or rope_config has another head size.
        """
        super().__init__()
        if num_kv_heads < 1 or num_q_heads % num_kv_heads:
            raise _core.ConfigError(
                f"num_q_heads is {num_q_heads}; expected a multiple of num_kv_heads, {num_kv_heads}"
            )
        self.hidden_size, self.num_q_heads, self.num_kv_heads, self.head_dim = (
            hidden_size,
            num_q_heads,
            num_kv_heads,
            head_dim,
        )
        self._rope = rope_config.rope(head_dim)
        self.proj_q = nn.Linear(hidden_size, num_q_heads * head_dim, bias=False)
        self.proj_k = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.proj_v = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.proj_o = nn.Linear(num_q_heads * head_dim, hidden_size, bias=False)
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter)

    def _projected(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            projection(x).unflatten(-1, (heads, self.head_dim))
            for projection, heads in (
                (self.proj_q, self.num_q_heads),
                (self.proj_k, self.num_kv_heads),
                (self.proj_v, self.num_kv_heads),
            )
        )
        return nsa_gpu.rotated(q, positions, self._rope), nsa_gpu.rotated(k, positions, self._rope), v

    def _mixed(self, q: Tensor, keys: list[Tensor], values: list[Tensor], offsets: list[int]) -> Tensor:
        """Attention of each sequence's queries over its keys; the last query is at the last key."""
        found = [q.new_zeros((0, *q.shape[1:]))]
        for (begin, end), k, v in zip(pairwise(offsets), keys, values, strict=True):
            if begin < end:
                inputs = (tensor.transpose(0, 1)[None] for tensor in (q[begin:end], k, v))
                output, _ = reticle.attention(*inputs, causal=True)
                found.append(output[0].transpose(0, 1))
        y: Tensor = self.proj_o(torch.cat(found).flatten(1))
        return y

    def forward(self, x: Tensor, cu_seqlens: Offsets) -> Tensor:
        """Attention of whole sequences x (tokens, hidden_size): (tokens, hidden_size). x and every parameter have
        gradients."""
        offsets = checked_offsets(cu_seqlens, x)
        q, k, v = self._projected(x, nsa_gpu.packed_positions(offsets, x.device))
        sequences = [slice(begin, end) for begin, end in pairwise(offsets)]
        return self._mixed(q, [k[part] for part in sequences], [v[part] for part in sequences], offsets)

    def start(self, sequences: int, capacity: int) -> KVCache:
        """An empty cache on the module's device for sequences of up to `capacity` tokens each."""
        return KVCache(sequences, capacity, self.proj_k.weight.detach(), self.num_kv_heads, self.head_dim)

    @torch.no_grad()
    def extend(self, x: Tensor, cu_seqlens: Offsets, state: KVCache) -> Tensor:
        """Attention of the next tokens of each sequence, through its cache; equal to those rows of `forward` over all
        tokens."""
        offsets = checked_offsets(cu_seqlens, x)
        if len(offsets) != len(state.lengths) + 1:
            raise _core.ShapeError(f"cu_seqlens: {len(offsets)} offsets; expected {len(state.lengths) + 1}")
        steps = zip(state.lengths, pairwise(offsets), strict=True)
        positions = [torch.arange(known, known + end - begin, device=x.device) for known, (begin, end) in steps]
        q, k, v = self._projected(x, torch.cat(positions) if positions else torch.arange(0, device=x.device))
        state.extend(k, v, offsets)
        keys, values = (
            [row[:length] for row, length in zip(tokens, state.lengths, strict=True)]
            for tokens in (state.keys, state.values)
        )
        return self._mixed(q, keys, values, offsets)
