"""Native Sparse Attention (Yuan et al. 2025, arXiv 2502.11089) for torch, trainable, on Reticle's C++ operations.

Sequences are packed: activations (tokens, ...), and cu_seqlens, (sequences + 1) offsets from 0. Names, shapes and
semantics are those of native-sparse-attention-triton, whose state dicts load as they are. Float32 in C++ on the CPU; on
a GPU in the tensors' dtype, see `reticle.nsa_gpu`.

    module = reticle.nsa.NativeSparseAttention("weightedpool", 256, num_q_heads=8, num_kv_heads=2, head_dim=32)
    y = module(x, cu_seqlens)  # (tokens, 256)
    y.sum().backward()
"""

from __future__ import annotations

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


def _checked(cu_seqlens: Offsets, x: Tensor) -> list[int]:
    """As the C++ operations check them."""
    offsets = _offsets(cu_seqlens)
    ascending = all(begin <= end for begin, end in pairwise(offsets))
    if not offsets or offsets[0] != 0 or offsets[-1] != x.shape[0] or not ascending:
        raise _core.ShapeError(
            f"cu_seqlens: needed are ascending offsets from 0 to the number of tokens, {x.shape[0]}; given are {offsets}"
        )
    return offsets


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
        dx, *own = (None if g is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))
        return dx, None, None, *own


class NativeSparseAttention(nn.Module):
    """Three attentions of the same queries - over compressed keys, over the blocks that those point at, and over a
    window - mixed by learned gates.

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
        rope_theta: float = 500000.0,
        rope_scaling: Mapping[str, Any] | None = None,
    ) -> None:
        """Fresh parameters, Xavier-uniform as the reference's.

        Args:
            kernel_size, kernel_stride: tokens in a compressed one, and from one to the next; the stride divides
                kernel_size and block_size.
            block_size, topk: tokens in a selected block, and blocks that a query selects, among them always the first
                init_blocks and the last local_blocks.
            window_size: tokens before the query's own that the window sees.
            rope_theta, rope_scaling: of rotary positions; scaling as in Hugging Face configs, of type llama3 or linear.

        Raises:
            ConfigError: that names the field and the rule.
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
        self._rope = _core.Rope(head_dim, rope_theta, None if rope_scaling is None else dict(rope_scaling))
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
        """(tokens, hidden_size) of whole sequences x (tokens, hidden_size); gradients reach x and every parameter."""
        if x.is_cuda:
            return nsa_gpu.forward(self, x, _checked(cu_seqlens, x))
        y: Tensor = _Forward.apply(x, self, _offsets(cu_seqlens), *self.parameters())  # type: ignore[no-untyped-call]
        return y

    def start(self, sequences: int, capacity: int) -> _core.NsaState | nsa_gpu.State:
        """An empty cache, where the module is, for decoding a batch of sequences of up to `capacity` tokens each."""
        if self.proj_q.weight.is_cuda:
            return nsa_gpu.State(self, sequences, capacity)
        return self._core_module().start(sequences, capacity)

    @torch.no_grad()
    def extend(self, x: Tensor, cu_seqlens: Offsets, state: _core.NsaState | nsa_gpu.State) -> Tensor:
        """The next tokens of each sequence, whole prompts or single tokens, through its cache; the rows that `forward`
        over all tokens would give. When it fails the caches are as before."""
        if isinstance(state, nsa_gpu.State):
            return nsa_gpu.extend(self, x, _checked(cu_seqlens, x), state)
        return self._core_module().extend(x.float(), _offsets(cu_seqlens), state).to(x.dtype)


class _Compress(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, pe: Tensor | None, cu_seqlens: list[int], config: _core.NsaConfig
    ) -> tuple[Tensor, Tensor]:
        inputs = [None if tensor is None else tensor.detach().float() for tensor in (x, weight, pe)]
        ctx.save_for_backward(*inputs)
        ctx.settings = (cu_seqlens, config, [None if tensor is None else tensor.dtype for tensor in (x, weight, pe)])
        y, offsets = _core.nsa_compress(inputs[0], cu_seqlens, inputs[1], inputs[2], config)
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
    """Windows of kernel_size tokens of x (tokens, heads, head_dim), kernel_stride apart, each made into one.

    Returns (compressed, cu_seqlens of it). A trailing partial window is dropped. Differentiable by x, weight and pe
    (heads, kernel_size, head_dim), which is added to the tokens of every window.
    """
    config = _core.NsaConfig(
        compress_type=compress_type, kernel_size=kernel_size, kernel_stride=kernel_stride, block_size=kernel_stride
    )
    if x.is_cuda:
        compressed, offsets = nsa_gpu.compress(x, weight, pe, _checked(cu_seqlens, x), config)
        return compressed, torch.tensor(offsets, dtype=torch.int32, device=x.device)
    y, windows = _Compress.apply(x, weight, pe, _offsets(cu_seqlens), config)  # type: ignore[no-untyped-call]
    return y, windows


def avgpool_compress(
    x: Tensor, w: None, cu_seqlens: Offsets, kernel_size: int, kernel_stride: int, pe: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`compress` to the mean of each window."""
    return compress(x, w, cu_seqlens, kernel_size, kernel_stride, pe, compress_type="avgpool")


def weightedpool_compress(
    x: Tensor, w: Tensor, cu_seqlens: Offsets, kernel_size: int, kernel_stride: int, pe: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`compress` to a weighted sum, w (heads, kernel_size)."""
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
    sm_scale: float | None = None,
    init_blocks: int = 1,
    local_blocks: int = 2,
) -> tuple[Tensor, Tensor]:
    """Attention of q (tokens, heads, head_dim) over compressed k and v (compressed tokens, kv_heads, head_dim), and the
    blocks that it finds worth a closer look.

    Returns (output, blocks): blocks (kv_heads, tokens, topk or fewer) int32, ascending, -1 on the right. Differentiable
    by q, k and v; the choice of blocks is not.
    """
    config = _core.NsaConfig(
        compress_type="avgpool",
        kernel_size=kernel_size,
        kernel_stride=kernel_stride,
        block_size=block_size,
        topk=topk,
        init_blocks=init_blocks,
        local_blocks=local_blocks,
    )
    offsets, windows = _offsets(cu_seqlens_q), _offsets(cu_seqlens_k)
    outputs, width = [q.new_zeros((0, q.shape[1], v.shape[2]))], 0
    blocks = torch.full((k.shape[1], q.shape[0], topk), -1, dtype=torch.int32, device=q.device)
    for (begin, end), (first, last) in zip(pairwise(offsets), pairwise(windows), strict=True):
        own_q, own_k, own_v = q[begin:end], k[first:last], v[first:last]
        output, lse = nsa_gpu.attend_compressed(own_q, own_k, own_v, 0, config, sm_scale)
        outputs.append(output)
        chosen = _choose_blocks(own_q, own_k, own_v, lse, sm_scale, config)
        blocks[:, begin:end, : chosen.shape[2]] = chosen
        width = max(width, chosen.shape[2])
    return torch.cat(outputs), blocks[..., :width]


def topk_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    topk_idx: Tensor,
    block_size: int,
    cu_seqlens: Offsets,
    softmax_scale: float | None = None,
) -> Tensor:
    """Causal attention over selected blocks: topk_idx (kv_heads, tokens, any) int32, -1 for none.

    q (tokens, heads, head_dim); k, v (tokens, kv_heads, head_dim). Differentiable by q, k and v. A token without blocks
    gets 0.
    """
    outputs = [q.new_zeros((0, q.shape[1], v.shape[2]))]
    for begin, end in pairwise(_offsets(cu_seqlens)):
        own_q, own_k, own_v, own_blocks = (q[begin:end], k[begin:end], v[begin:end], topk_idx[:, begin:end])
        outputs.append(nsa_gpu.attend_selected(own_q, own_k, own_v, own_blocks, block_size, softmax_scale))
    return torch.cat(outputs)
