"""Native Sparse Attention (Yuan et al. 2025, arXiv 2502.11089) for torch, trainable, on Reticle's C++ operations.

Sequences are packed: activations (tokens, ...), and cu_seqlens, (sequences + 1) offsets from 0. Names, shapes and
semantics are those of native-sparse-attention-triton, whose state dicts load without conversion. On the CPU the C++
operations compute in float32; on a GPU `reticle.nsa_gpu` computes in the tensors' dtype.

    module = reticle.nsa.NativeSparseAttention("weightedpool", 256, num_q_heads=8, num_kv_heads=2, head_dim=32)
    y = module(x, cu_seqlens)  # (tokens, 256)
    y.sum().backward()
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

import reticle._core as _core
from reticle import nsa_gpu

if TYPE_CHECKING:
    from collections.abc import Mapping

Offsets = Tensor | list[int]
Compression = Literal["avgpool", "weightedpool", "linear"]


def _offsets(cu_seqlens: Offsets) -> list[int]:
    return cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else list(cu_seqlens)


def checked_offsets(cu_seqlens: Offsets, x: Tensor, name: str = "cu_seqlens") -> list[int]:
    """cu_seqlens as Python integers.

    Raises:
        ShapeError: when they do not partition the tokens of x, (tokens, ...), into consecutive sequences.
    """
    offsets = _offsets(cu_seqlens)
    ascending = all(begin <= end for begin, end in pairwise(offsets))
    if not offsets or offsets[0] != 0 or offsets[-1] != x.shape[0] or not ascending:
        raise _core.ShapeError(
            f"{name}: {offsets}; expected ascending offsets from 0 to the number of tokens, {x.shape[0]}"
        )
    return offsets


def _checked_scale(scale: float | None, name: str) -> float | None:
    """Refuses a value that cannot be a scale: a positional argument that has another place in the reference's
    signature."""
    if scale is not None and (isinstance(scale, (bool, Tensor)) or not isinstance(scale, (int, float))):
        raise TypeError(f"{name} is {type(scale).__name__}; expected a number or None for 1 / sqrt(head_dim)")
    return scale


def _checked_longest(given: int | None, lengths: list[int], name: str) -> None:
    longest = max(lengths, default=0)
    if given is not None and given < longest:
        raise _core.ShapeError(f"{name} is {given}; expected at least the longest sequence, {longest}")


@dataclass
class RopeConfig:
    """Rotary positions with native-sparse-attention-triton's parameters; `rope_scaling` as in Hugging Face configs, of
    type llama3 or linear. Positions are computed, not looked up, so max_position_embeddings limits nothing."""

    max_position_embeddings: int = 131072
    head_dim: int = 128
    rope_theta: float = 500000.0
    rope_scaling: Mapping[str, Any] | None = field(
        default_factory=lambda: {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        }
    )

    def rope(self, head_dim: int) -> _core.Rope:
        """The rotation for heads of this size.

        Raises:
            ConfigError: when the config has another size.
        """
        if self.head_dim != head_dim:
            raise _core.ConfigError(
                f"rope_config.head_dim is {self.head_dim}; expected the module's head_dim, {head_dim}"
            )
        return _core.Rope(head_dim, self.rope_theta, None if self.rope_scaling is None else dict(self.rope_scaling))


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, module: NativeSparseAttention, cu_seqlens: list[int], *parameters: Tensor
    ) -> Tensor:
        ctx.core = module._core_module()
        ctx.names = [name for name, _ in module.named_parameters()]
        ctx.dtypes = [x.dtype, *(parameter.dtype for parameter in parameters)]
        output: Tensor
        output, ctx.tape = ctx.core.forward(x.detach().float(), cu_seqlens)
        return output.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, gradients = ctx.core.backward(ctx.tape, dy.float().contiguous())
        found = [dx, *(gradients.get(name) for name in ctx.names)]
        dx, *d_parameters = (None if g is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))
        return dx, None, None, *d_parameters


class NativeSparseAttention(nn.Module):
    """Three attentions of the same queries - over compressed keys, over the blocks that compressed attention selects,
    and over a window - mixed by learned gates.

    Parameters: proj_q.weight (num_q_heads * head_dim, hidden_size), proj_k.weight and proj_v.weight
    (num_kv_heads * head_dim, hidden_size), proj_o.weight, gate.0.weight (3 * num_q_heads, hidden_size), intra_block_pe
    (num_kv_heads, kernel_size, head_dim), and compress_key and compress_value: none for avgpool, (num_kv_heads,
    kernel_size) for weightedpool, (num_kv_heads, kernel_size * head_dim, head_dim) for linear. No biases.
    """

    def __init__(
        self,
        compress_type: Compression,
        hidden_size: int,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        kernel_size: int = 32,
        kernel_stride: int = 16,
        block_size: int = 64,
        topk: int = 16,
        init_blocks: int = 1,
        local_blocks: int = 2,
        window_size: int = 512,
        rope_config: RopeConfig | None = None,
        rope_device: Any = None,
        *,
        rope_theta: float = 500000.0,
        rope_scaling: Mapping[str, Any] | None = None,
    ) -> None:
        """Initialises parameters with Xavier-uniform, as the reference does.

        Args:
            kernel_size, kernel_stride: tokens per compressed token, and the distance between compressed tokens; the
                stride divides kernel_size and block_size.
            block_size, topk: tokens per selected block, and blocks that a query selects, always including the first
                init_blocks and the last local_blocks.
            window_size: tokens before the query's position that the window includes.
            rope_config: the rotary positions; alternatively rope_theta and rope_scaling by keyword, scaling as in
                Hugging Face configs, of type llama3 or linear.
            rope_device: where the reference keeps its table of positions; there is no table here, and it has no effect.

        Raises:
            ConfigError: naming the field and the rule.
            TypeError: for a rope_config of another type.
        """
        super().__init__()
        self._config = _core.NsaConfig(
            compress_type=compress_type,
            kernel_size=kernel_size,
            kernel_stride=kernel_stride,
            block_size=block_size,
            topk=topk,
            init_blocks=init_blocks,
            local_blocks=local_blocks,
            window_size=window_size,
        )
        self.hidden_size, self.num_q_heads, self.num_kv_heads = hidden_size, num_q_heads, num_kv_heads
        if rope_config is None:
            rope_config = RopeConfig(head_dim=head_dim, rope_theta=rope_theta, rope_scaling=rope_scaling)
        elif not isinstance(rope_config, RopeConfig):
            raise TypeError(f"rope_config is {type(rope_config).__name__}; expected a RopeConfig")
        self._rope = rope_config.rope(head_dim)
        self.proj_q = nn.Linear(hidden_size, num_q_heads * head_dim, bias=False)
        self.proj_k = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.proj_v = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.proj_o = nn.Linear(num_q_heads * head_dim, hidden_size, bias=False)
        self.gate = nn.Sequential(nn.Linear(hidden_size, 3 * num_q_heads, bias=False), nn.Sigmoid())
        learned: dict[str, tuple[int, ...]] = {
            "weightedpool": (num_kv_heads, kernel_size),
            "linear": (num_kv_heads, kernel_size * head_dim, head_dim),
        }
        shape = learned.get(compress_type)
        self.compress_key = None if shape is None else nn.Parameter(torch.empty(shape))
        self.compress_value = None if shape is None else nn.Parameter(torch.empty(shape))
        self.intra_block_pe = nn.Parameter(torch.empty(num_kv_heads, kernel_size, head_dim))
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter)

    def _core_module(self) -> _core.NsaModule:
        parameters = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return _core.NsaModule(
            self._config, self.hidden_size, self.num_q_heads, self.num_kv_heads, self._rope, parameters
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor, cu_seqlens: Offsets) -> Tensor:
        """Attention of whole sequences x (tokens, hidden_size): (tokens, hidden_size). x and every parameter have
        gradients."""
        if x.is_cuda:
            return nsa_gpu.forward(self, x, checked_offsets(cu_seqlens, x))
        y: Tensor = _Forward.apply(x, self, _offsets(cu_seqlens), *self.parameters())  # type: ignore[no-untyped-call]
        return y

    def start(self, sequences: int, capacity: int) -> _core.NsaState | nsa_gpu.State:
        """An empty cache on the module's device, for decoding a batch of sequences of up to `capacity` tokens each."""
        if self.proj_q.weight.is_cuda:
            return nsa_gpu.State(self, sequences, capacity)
        return self._core_module().start(sequences, capacity)

    @torch.no_grad()
    def extend(self, x: Tensor, cu_seqlens: Offsets, state: _core.NsaState | nsa_gpu.State) -> Tensor:
        """Attention of the next tokens of each sequence, whole prompts or single tokens, through its cache; equal to
        those rows of `forward` over all tokens. If it fails, the caches are unchanged."""
        if isinstance(state, nsa_gpu.State):
            return nsa_gpu.extend(self, x, checked_offsets(cu_seqlens, x), state)
        return self._core_module().extend(x.float(), _offsets(cu_seqlens), state).to(x.dtype)


class _Compress(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, pe: Tensor | None, cu_seqlens: list[int], config: _core.NsaConfig
    ) -> tuple[Tensor, Tensor]:
        tokens = x.detach().float()
        weights = [None if tensor is None else tensor.detach().float() for tensor in (weight, pe)]
        ctx.save_for_backward(tokens, *weights)
        ctx.settings = (cu_seqlens, config, [None if tensor is None else tensor.dtype for tensor in (x, weight, pe)])
        y, offsets = _core.nsa_compress(tokens, cu_seqlens, weights[0], weights[1], config)
        windows = torch.tensor(offsets, dtype=torch.int32)
        ctx.mark_non_differentiable(windows)
        return y.to(x.dtype), windows

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, pe = ctx.saved_tensors
        cu_seqlens, config, dtypes = ctx.settings
        gradients = _core.nsa_compress_backward(x, cu_seqlens, weight, pe, config, dy.float().contiguous())
        cast = (None if g is None else g.to(dtype) for g, dtype in zip(gradients, dtypes, strict=True))
        return *cast, None, None


def compress(
    x: Tensor,
    weight: Tensor | None,
    cu_seqlens: Offsets,
    kernel_size: int,
    kernel_stride: int,
    pe: Tensor | None = None,
    *,
    compress_type: Compression,
) -> tuple[Tensor, Tensor]:
    """Compresses windows of kernel_size tokens of x (tokens, heads, head_dim), kernel_stride apart, to one token each.

    Returns (compressed, its cu_seqlens). A trailing partial window is dropped. Differentiable in x, weight and pe
    (heads, kernel_size, head_dim), which is added to the tokens of every window.
    """
    config = _core.NsaConfig(
        compress_type=compress_type, kernel_size=kernel_size, kernel_stride=kernel_stride, block_size=kernel_stride
    )
    if x.is_cuda:
        compressed, offsets = nsa_gpu.compress(x, weight, pe, checked_offsets(cu_seqlens, x), config)
        return compressed, torch.tensor(offsets, dtype=torch.int32, device=x.device)
    y, windows = _Compress.apply(x, weight, pe, _offsets(cu_seqlens), config)  # type: ignore[no-untyped-call]
    return y, windows


def avgpool_compress(
    x: Tensor, w: None, cu_seqlens: Offsets, kernel_size: int, kernel_stride: int, pe: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`compress` by the mean of each window."""
    return compress(x, w, cu_seqlens, kernel_size, kernel_stride, pe, compress_type="avgpool")


def weightedpool_compress(
    x: Tensor, w: Tensor, cu_seqlens: Offsets, kernel_size: int, kernel_stride: int, pe: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`compress` by a weighted sum, w (heads, kernel_size)."""
    return compress(x, w, cu_seqlens, kernel_size, kernel_stride, pe, compress_type="weightedpool")


def linear_compress(
    x: Tensor, w: Tensor, cu_seqlens: Offsets, kernel_size: int, kernel_stride: int, pe: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`compress` by a linear map of the window, w (heads, kernel_size * head_dim, head_dim)."""
    return compress(x, w, cu_seqlens, kernel_size, kernel_stride, pe, compress_type="linear")


def _choose_blocks(
    queries: Tensor, keys: Tensor, values: Tensor, lse: Tensor, scaling: float | None, config: _core.NsaConfig
) -> Tensor:
    if queries.is_cuda:
        return nsa_gpu.choose_blocks(queries, keys, 0, scaling, config, lse)
    q, k, v = (tensor.detach().float() for tensor in (queries, keys, values))
    return torch.from_numpy(_core.nsa_compressed_attention(q, k, v, 0, scaling, config)[2])


def compressed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: int,
    kernel_stride: int,
    block_size: int,
    topk: int,
    cu_seqlens_q: Offsets,
    cu_seqlens_k: Offsets,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    sm_scale: float | None = None,
    init_blocks: int = 1,
    local_blocks: int = 2,
    parallel_topk_compute: bool | Literal["auto"] = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention of q (tokens, heads, head_dim) over compressed k and v (compressed tokens, kv_heads, head_dim), and the
    blocks that it selects for each query.

    Returns (output, blocks): blocks (kv_heads, tokens, topk or fewer) int32, ascending, padded with -1 at the end. The
    output is differentiable in q, k and v; the selection is not.

    Args:
        max_seqlen_q, max_seqlen_k: lengths of the longest sequences, if known; a larger max_seqlen_q makes room for
            more blocks.
        parallel_topk_compute: how the reference distributes the selection over a GPU; the result does not depend on it.

    Raises:
        ShapeError: when offsets do not cover the tokens, or k and v are not what `compress` returns for the sequences
            of q.
    """
    if parallel_topk_compute not in (True, False, "auto"):
        raise ValueError(f'parallel_topk_compute is {parallel_topk_compute!r}; expected "auto", True or False')
    config = _core.NsaConfig(
        compress_type="avgpool",
        kernel_size=kernel_size,
        kernel_stride=kernel_stride,
        block_size=block_size,
        topk=topk,
        init_blocks=init_blocks,
        local_blocks=local_blocks,
    )
    scale = _checked_scale(sm_scale, "sm_scale")
    offsets = checked_offsets(cu_seqlens_q, q, "cu_seqlens_q")
    windows = checked_offsets(cu_seqlens_k, k, "cu_seqlens_k")
    lengths = [end - begin for begin, end in pairwise(offsets)]
    compressed = [end - begin for begin, end in pairwise(windows)]
    if compressed != [config.compressed_length(length) for length in lengths]:
        raise _core.ShapeError(
            f"cu_seqlens_k: sequences of {lengths} tokens have {compressed} compressed ones; expected "
            f"{[config.compressed_length(length) for length in lengths]}"
        )
    _checked_longest(max_seqlen_q, lengths, "max_seqlen_q")
    _checked_longest(max_seqlen_k, compressed, "max_seqlen_k")
    width = min(topk, -(-max([*lengths, max_seqlen_q or 0], default=0) // block_size))
    outputs = [q.new_zeros((0, q.shape[1], v.shape[2]))]
    blocks = torch.full((k.shape[1], q.shape[0], width), -1, dtype=torch.int32, device=q.device)
    for (begin, end), (first, last) in zip(pairwise(offsets), pairwise(windows), strict=True):
        own_q, own_k, own_v = q[begin:end], k[first:last], v[first:last]
        output, lse = nsa_gpu.attend_compressed(own_q, own_k, own_v, 0, config, scale)
        outputs.append(output)
        chosen = _choose_blocks(own_q, own_k, own_v, lse, scale, config)
        blocks[:, begin:end, : chosen.shape[2]] = chosen
    return torch.cat(outputs), blocks


def topk_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    topk_idx: Tensor,
    block_size: int,
    cu_seqlens: Offsets,
    softmax_scale: float | None = None,
) -> Tensor:
    """Causal attention over selected blocks: topk_idx (kv_heads, tokens, n) integers in any order, -1 for none. A
    repeated block counts once, and keys after a token are excluded.

    q (tokens, heads, head_dim); k, v (tokens, kv_heads, head_dim). Differentiable in q, k and v. A token without blocks
    gets 0.

    Raises:
        ShapeError: when offsets do not cover the tokens, or topk_idx does not match them; ConfigError for a block_size
            below 1.
    """
    if not 1 <= block_size < 2**31:
        raise _core.ConfigError(f"block_size: {block_size}; expected tokens of a block, in [1, 2^31)")
    scale = _checked_scale(softmax_scale, "softmax_scale")
    offsets = checked_offsets(cu_seqlens, q)
    if k.shape[0] != q.shape[0] or v.shape[0] != q.shape[0]:
        raise _core.ShapeError(f"k and v have {k.shape[0]} and {v.shape[0]} tokens; expected those of q, {q.shape[0]}")
    expected = (k.shape[1], q.shape[0])
    if topk_idx.dim() != 3 or tuple(topk_idx.shape[:2]) != expected or topk_idx.is_floating_point():
        raise _core.ShapeError(
            f"topk_idx: {topk_idx.dtype} {tuple(topk_idx.shape)}; expected integers (kv_heads, tokens, any), {expected}"
        )
    outputs = [q.new_zeros((0, q.shape[1], v.shape[2]))]
    for begin, end in pairwise(offsets):
        own_q, own_k, own_v, own_blocks = (q[begin:end], k[begin:end], v[begin:end], topk_idx[:, begin:end])
        outputs.append(nsa_gpu.attend_selected(own_q, own_k, own_v, own_blocks, block_size, scale))
    return torch.cat(outputs)
