"""Attention over a mask as a torch operator: autograd, torch.compile, fake tensors."""

from __future__ import annotations

import math
import sys
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor  # by name at run time: torch reads operators' annotations
from torch.utils.dlpack import from_dlpack

import reticle._core as _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reticle import Mask, SparseAttention

# Operators take no objects but tensors and numbers, so masks cross by number. Whoever calls keeps the mask alive; a
# backward pass keeps its own.
_masks: weakref.WeakValueDictionary[int, AnyMask] = weakref.WeakValueDictionary()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _number_of(mask: AnyMask) -> int:
    _masks[id(mask)] = mask
    return id(mask)


def _numbered(number: int) -> Any:
    """On the CPU it is a Mask."""
    return _masks[number]


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
    if queries.is_cuda:
        options: Any = {"attention_mask": attention_mask, "soft_cap": soft_cap}
        return on_gpu(queries, keys, values, _numbered(mask), scaling=scaling, causal=causal, **options)
    return _core.attention(
        queries,
        keys,
        values,
        _numbered(mask),
        scaling=scaling,
        causal=causal,
        attention_mask=attention_mask,
        soft_cap=soft_cap,
    )


def on_gpu(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: AnyMask,
    *,
    scaling: float | None = None,
    causal: bool = False,
    attention_mask: Tensor | None = None,
    soft_cap: float | None = None,
    sink_logits: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """(output, lse) on the current stream of the queries' device, without gradients. A Mask goes to the device with every
    call; AttentionPlan keeps one."""
    bias = _bias(attention_mask, queries)
    options: Any = {"scaling": scaling, "causal": causal, "soft_cap": soft_cap, "sink_logits": sink_logits}
    plan = AttentionPlan(queries, keys, values, mask, attention_mask=bias, **options)
    return plan(queries, keys, values, attention_mask=bias)


def of_other_package(
    queries: Any, keys: Any, values: Any, mask: AnyMask | None, *, attention_mask: Any, **options: Any
) -> tuple[Any, Any]:
    """`reticle.attention` of arrays of cupy, jax, ... on a GPU: seen as torch's, without copies, and the results as theirs.
    DLPack makes each package's current stream wait for the other's."""
    import reticle

    q, k, v = (from_dlpack(tensor) for tensor in (queries, keys, values))
    bias = attention_mask if attention_mask is None else from_dlpack(attention_mask)
    results = reticle.attention(q, k, v, mask, attention_mask=bias, **options)
    if hasattr(queries, "__array_namespace__"):
        package = queries.__array_namespace__()
    else:
        package = sys.modules[type(queries).__module__.partition(".")[0]]
    output, lse = (package.from_dlpack(result) for result in results)
    return output, lse


def _backward_on_gpu(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    mask: AnyMask,
    *,
    scaling: float,
    causal: bool,
    attention_mask: Tensor | None,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients on the current stream. A Mask goes to the device with every call; one that is there already comes to the
    host first where the tensor cores do not serve (float32, head_dim 256, few rows, p)."""
    settings: Any = {
        "scaling": scaling,
        "causal": causal,
        "attention_mask": _bias(attention_mask, queries),
        "stream": torch.cuda.current_stream(queries.device).cuda_stream,
    }
    width, value_width = queries.shape[-1], values.shape[-1]
    q, k, v = inputs = _fitted(queries.detach(), keys.detach(), values.detach())
    output, d_output = (_fitted(tensor, *inputs)[0] for tensor in (output, d_output))
    weighted = isinstance(mask, DeviceMask) and mask.weighted
    if weighted or not (isinstance(mask, _core.Mask) or _core.CudaBackwardPlan.serves_patterns(q, k, v)):
        mask = as_mask(mask, queries, keys)
    plan = _core.CudaBackwardPlan(q, k, v, _for_plan(mask, keys), soft_cap=soft_cap, **settings)
    gradients = [torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device) for tensor in inputs]
    plan.run(q, k, v, output, lse.contiguous(), d_output.contiguous(), *gradients, **settings)
    d_queries, d_keys, d_values = (
        gradient[..., :own].to(tensor.dtype)
        for gradient, own, tensor in zip(gradients, (width, width, value_width), inputs, strict=True)
    )
    return d_queries, d_keys, d_values


#: Head sizes that there are kernels for.
HEAD_DIMS = (64, 128, 256)


def _fitted_width(*tensors: Tensor) -> int:
    """The least head size of a kernel that holds these; their own where there is none, which plans refuse."""
    widest = max(tensor.shape[-1] for tensor in tensors)
    return next((size for size in HEAD_DIMS if size >= widest), widest)


def _require_one_head_dim(queries: Tensor, keys: Tensor) -> None:
    """Zeros behind would hide that there are two."""
    if queries.shape[-1] != keys.shape[-1]:
        raise _core.ShapeError(
            f"keys need the head_dim of the queries: queries {tuple(queries.shape)}, keys {tuple(keys.shape)}"
        )


def _fitted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one head size that there are kernels for: copies with zeros behind, where theirs is another."""
    width = _fitted_width(*tensors)
    return tuple(
        tensor if tensor.shape[-1] == width else torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]))
        for tensor in tensors
    )


def _bias(attention_mask: Tensor | None, queries: Tensor) -> Tensor | None:
    """As kernels take it: float32 of four dimensions beside the queries, -inf where the most negative numbers of its dtype
    forbid."""
    if attention_mask is None:
        return None
    bias = attention_mask.detach()
    if bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape, device=bias.device).masked_fill(~bias, -torch.inf)
    if not bias.is_floating_point() or bias.dim() > 4:
        raise _core.ShapeError(
            f"attention_mask: is {attention_mask.dtype} {tuple(attention_mask.shape)}; expected floats or booleans of at most "
            "four dimensions"
        )
    bias = bias[(None,) * (4 - bias.dim())].to(queries.device)
    return bias.float().masked_fill(bias <= torch.finfo(bias.dtype).min / 2, -torch.inf)


@dataclass(frozen=True, eq=False)
class SelectedBlocks:
    """A mask of key blocks that each query has selected, causal: a block's keys after the query's own position are left out,
    the last query being at the last key (Native Sparse Attention).

        blocks = scores.topk(16).indices.sort().values.int()  # (batch, kv_heads, queries, 16)
        output, lse = reticle.attention(q, k, v, reticle.torch.SelectedBlocks(blocks, block_size=64))

    On a GPU attention over it is planned there, gradients included (in 16 bits), and nothing waits.
    """

    #: (batch, kv_heads, queries, n) int32, ascending in each row; -1, last, for blocks that are not needed. A dimension of 1
    #: is shared.
    numbers: Tensor
    #: Keys of a block.
    block_size: int = 64

    def mask(self, shape: tuple[int, int, int, int]) -> Mask:
        """The same as a Mask of (batch, heads, queries, keys). Waits for the numbers."""
        batch, heads, queries, keys = shape
        numbers = self.numbers.cpu().numpy().astype(np.int64)
        numbers = np.broadcast_to(numbers, (batch, numbers.shape[1], queries, numbers.shape[3]))
        visible = np.clip(np.arange(queries) + keys - queries + 1, 0, keys)[:, None]
        begins = np.where(numbers < 0, keys, numbers * self.block_size)
        ends = np.minimum(begins + self.block_size, visible)
        intervals = np.stack((begins, ends), -1).repeat(heads // numbers.shape[1], 1)
        return _mask_of_intervals(shape, intervals)


@dataclass(frozen=True, eq=False)
class Band:
    """A mask of keys that end where a query does: a sliding window, or keys that were compressed from windows.

        window = reticle.torch.Band(width=512)
        compressed = reticle.torch.Band(kernel=32, stride=16)

    Key c is complete at position c * stride + kernel - 1; a query sees those that are complete at its own position, query 0
    being at first_query, and of them the last `width`. On a GPU nothing of it lies in memory but the plan.
    """

    #: Keys, at most; None: all that are complete.
    width: int | None = None
    #: The position of query 0.
    first_query: int = 0
    #: Positions that a key was made of.
    kernel: int = 1
    #: Positions from one key to the next.
    stride: int = 1

    def mask(self, shape: tuple[int, int, int, int]) -> Mask:
        """The same as a Mask of (batch, heads, queries, keys)."""
        _, _, queries, keys = shape
        complete = np.maximum((np.arange(queries) + self.first_query + 1 - self.kernel) // self.stride + 1, 0)
        begins = np.zeros_like(complete) if self.width is None else np.maximum(complete - self.width, 0)
        intervals = np.stack((begins, np.minimum(complete, keys)), -1)[None, None, :, None]
        return _mask_of_intervals((1, 1, queries, keys), intervals).broadcast_to(shape)


def _mask_of_intervals(shape: tuple[int, int, int, int], intervals: Any) -> Mask:
    """A Mask of intervals (batch, heads, queries, n, 2), ascending; of empty ones nothing is seen."""
    kept = intervals[..., 0] < intervals[..., 1]
    row_ptr = np.concatenate(([0], np.cumsum(kept.sum(-1).ravel())))
    return _core.Mask.runs(shape, row_ptr, intervals[kept].astype(np.int32))


class DeviceMask:
    """A mask in the memory of a GPU, and the algebra of masks there.

        fixed = reticle.torch.DeviceMask(mask)  # copied once
        both = fixed | other  # one launch on the current stream, waits for nothing
        plan = reticle.torch.AttentionPlan(q, k, v, both)

    Bits where more than a 32nd is attended and no entry has a p; else lists of columns, which have as much room in every
    row. `|`, `&`, `-` and `merge` are those of Mask. Raises DeviceError where there is no GPU, or the build has no CUDA.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask = _core.CudaMask(mask, stream=_current_stream())

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, heads, queries, keys)."""
        return self._mask.shape

    @property
    def kind(self) -> str:
        """How it is stored: bits or lists."""
        return self._mask.kind

    @property
    def weighted(self) -> bool:
        """Whether entries carry a p."""
        return self._mask.weighted

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        return self._mask.nbytes

    @property
    def nnz(self) -> int:
        """Attended positions. Waits for the stream."""
        return self._mask.nnz(stream=_current_stream())

    @property
    def density(self) -> float:
        """nnz over all positions. Waits for the stream."""
        return self.nnz / max(1, math.prod(self.shape))

    def merge(self, other: DeviceMask, rule: Literal["add", "max", "independent"] = "add") -> DeviceMask:
        """The union; p of a key that both attend to is min(1, a + b), max(a, b) or 1 - (1-a)(1-b)."""
        return self._of(self._mask.merge(other._mask, rule, stream=_current_stream()))

    def __or__(self, other: DeviceMask) -> DeviceMask:
        return self.merge(other)

    def __and__(self, other: DeviceMask) -> DeviceMask:
        return self._of(self._mask.intersect(other._mask, stream=_current_stream()))

    def __sub__(self, other: DeviceMask) -> DeviceMask:
        return self._of(self._mask.subtract(other._mask, stream=_current_stream()))

    def to_host(self) -> Mask:
        """A Mask of the same entries. Waits for the stream."""
        return self._mask.to_host(stream=_current_stream())

    @classmethod
    def _of(cls, mask: _core.CudaMask) -> DeviceMask:
        made = cls.__new__(cls)
        made._mask = mask
        return made

    def __repr__(self) -> str:
        weighted = ", weighted" if self.weighted else ""
        return f"DeviceMask {self.shape}, {self.kind}{weighted}, {self.nbytes / 1e3:.1f} kB"


#: What attention takes for a mask, beside reticle.Mask: of torch, bool tensors that are broadcastable to (batch, heads,
#: queries, keys).
AnyMask: TypeAlias = "Mask | DeviceMask | SelectedBlocks | Band | Tensor"


def _booleans(mask: Tensor) -> Tensor:
    """A tensor that says what is attended to: of booleans, or of 0 and 1."""
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point() or mask.is_complex() or not bool(((mask == 0) | (mask == 1)).all()):
        raise _core.ShapeError(
            f"mask: a tensor of {mask.dtype}; expected booleans, or integers that are 0 or 1. What is added to the scores is "
            "attention_mask=, and probabilities become a mask by Mask.dense"
        )
    return mask.bool()


def as_mask(mask: AnyMask, queries: Tensor, keys: Tensor) -> Mask:
    """A mask of any kind as a Mask, on the host, for attention of these tensors. Waits for what lies on a GPU."""
    shape = (*queries.shape[:3], keys.shape[2])
    if isinstance(mask, Tensor):
        return _core.Mask.dense(_booleans(mask).expand(shape).cpu().numpy())
    if isinstance(mask, DeviceMask):
        return mask.to_host()
    return mask.mask(shape) if isinstance(mask, (SelectedBlocks, Band)) else mask


def dense_weights(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Mask, *, attention_mask: Tensor | None = None, **options: Any
) -> Tensor:
    """Every position's weight in attention over a mask, (batch, heads, queries, keys) float32 without gradients: those of the
    mask's entries, computed in host memory, and zeros. Options are those of `reticle.attention`."""
    q, k, v = (tensor.detach().cpu() for tensor in (queries, keys, values))
    bias = None if attention_mask is None else attention_mask.detach().cpu()
    row_ptr, indices, of_entries = _core.attention_weights(q, k, v, mask, attention_mask=bias, **options)[2]
    rows = torch.arange(len(row_ptr) - 1).repeat_interleave(torch.from_numpy(row_ptr).diff())
    weights = torch.zeros(len(row_ptr) - 1, keys.shape[2])
    weights[rows, torch.from_numpy(indices).long()] = torch.from_numpy(of_entries)
    return weights.reshape(mask.shape).to(queries.device)


def _for_plan(mask: AnyMask, keys: Tensor, block_size: tuple[int, int] = (1, 1)) -> Any:
    """As plans take it."""
    if not isinstance(mask, Tensor) and block_size != (1, 1):
        raise ValueError(f"block_size is {block_size}; it is for masks that are tensors")
    pattern = _core.CudaPattern
    if isinstance(mask, DeviceMask):
        return pattern.of_mask(mask._mask)
    if isinstance(mask, Band):
        width = (1 << 31) - 1 if mask.width is None else mask.width
        return pattern.of_band(mask.first_query, mask.kernel, mask.stride, width)
    if isinstance(mask, SelectedBlocks):
        numbers = mask.numbers.to(torch.int32)
        return pattern.of_numbers(numbers if numbers.stride(-1) == 1 else numbers.contiguous(), mask.block_size)
    if isinstance(mask, Tensor):
        blocks = -(-keys.shape[2] // block_size[1]) if block_size[1] > 0 else -1  # what is refused says so in the plan
        mask = mask.to(torch.bool)[(None,) * (4 - mask.dim())].expand(-1, -1, -1, blocks)
        return pattern.of_bytes(mask if mask.stride(-1) == 1 else mask.contiguous(), block_size)
    return mask


def _current_stream() -> int:
    """0 where there is no GPU: what is called with it says so."""
    return torch.cuda.current_stream().cuda_stream if _core.cuda_device_count() else 0


class AttentionPlan:
    """Attention over one mask on a GPU, planned once for tensors of these extents, for any number of calls.

        plan = reticle.torch.AttentionPlan(q, k, v, mask)
        output, lse = plan(q, k, v)  # as reticle.attention's; launches one kernel on the current stream, waits for nothing

    The mask may also be a DeviceMask, SelectedBlocks, a Band, or a bool tensor on the GPU, broadcastable to (batch, heads,
    queries, keys) or, with a block_size (queries, keys), to the numbers of blocks of that size: the plan is made there.
    A plan for an attention mask is made with one of its extents, and called with one. head_dim is 64, 128 or
    256, or at most that: then every call copies its tensors with zeros behind. No gradients. Raises DeviceError where there is no GPU, or the build has no CUDA.
    """

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: AnyMask,
        *,
        scaling: float | None = None,
        causal: bool = False,
        attention_mask: Tensor | None = None,
        soft_cap: float | None = None,
        sink_logits: Sequence[float] = (),
        block_size: tuple[int, int] = (1, 1),
    ) -> None:
        self._settings: Any = {
            "scaling": queries.shape[-1] ** -0.5 if scaling is None else scaling,
            "causal": causal,
        }
        stream = torch.cuda.current_stream(queries.device).cuda_stream if queries.is_cuda else 0
        options: Any = {"soft_cap": soft_cap, "sink_logits": sink_logits, "stream": stream, **self._settings}
        options["attention_mask"] = _bias(attention_mask, queries)
        _require_one_head_dim(queries, keys)
        width = _fitted_width(queries, keys, values)
        q, k, v = (  # a plan needs the extents
            tensor.detach() if tensor.shape[-1] == width else tensor.new_empty((*tensor.shape[:-1], width))
            for tensor in (queries, keys, values)
        )
        self._plan = _core.CudaAttentionPlan(q, k, v, _for_plan(mask, keys, block_size), **options)

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(output, lse) of tensors of the plan's extents."""
        settings = {**self._settings, "attention_mask": _bias(attention_mask, queries)}
        return _run(self._plan, queries, keys, values, settings)


class KeyListAttention:
    """Attention on a GPU over the keys that each query's list names: what a pattern written in torch has chosen.

        attend = reticle.torch.KeyListAttention(rows=32)
        indices = scores.topk(256).indices.sort().values  # (batch, heads, queries, 256)
        output, lse = attend(q, k, v, indices)

    `rows` is batch * heads * queries, at most. One launch on the current stream, which may be captured; no gradients.
    Raises DeviceError where there is no GPU, or the build has no CUDA.
    """

    def __init__(self, rows: int) -> None:
        self._attention = _core.CudaKeyListAttention(rows, stream=_current_stream())

    def __call__(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        indices: Tensor,
        counts: Tensor | None = None,
        *,
        p: Tensor | None = None,
        scaling: float | None = None,
        soft_cap: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(output, lse). indices (batch, heads, queries, n): distinct keys; counts (batch, heads, queries): how many of
        them count, all by default; p, laid out as indices: the probabilities that they were drawn with."""
        if counts is None:
            counts = torch.full(indices.shape[:3], indices.shape[3], dtype=torch.int32, device=indices.device)
        lists = (indices.to(torch.int32).contiguous(), counts.to(torch.int32).contiguous())
        weights = None if p is None else p.to(torch.float32).contiguous()
        factor = queries.shape[-1] ** -0.5 if scaling is None else scaling
        settings: Any = {"scaling": factor, "soft_cap": soft_cap}
        return _run(self._attention, queries, keys, values, settings, *lists, weights)


class SparseDecoder:
    """Decoding on a GPU over the keys that a pipeline's generation stage chooses, chosen there.

        decode = reticle.torch.SparseDecoder(sparse, rows=32, most_keys=131072)
        output, lse = decode(q, k, v)  # q (batch, heads, 1, head_dim); three launches on the current stream

    For the maskers that say what they choose as rules (`sparse.rules(keys)` raises DeviceError and names the one that does
    not): sink, local, causal, a_shape, strided, oracle_top_k, oracle_top_p, top_k and top_p by exact scores, quest_top_k,
    hash_attention_top_k, pq_cache, random_sampling, adaptive_sampling, magic_pig. `rows` is batch * heads * queries, at
    most; no gradients. Serves one sequence at a time: what a rule keeps of its keys (bounds of pages, codes) goes on from
    call to call.
    Raises DeviceError where there is no GPU, or the build has no CUDA.
    """

    def __init__(self, sparse: SparseAttention, rows: int, most_keys: int) -> None:
        self._sparse = sparse
        self._decoder = _core.CudaSparseDecoder(rows, most_keys, stream=_current_stream())

    def reset(self) -> None:
        """Forgets what is kept of the sequence: before another one."""
        self._decoder.reset()

    def __call__(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        layer: int = 0,
        scaling: float | None = None,
        soft_cap: float | None = None,
        attention_mask: Tensor | None = None,
        sink_logits: Sequence[float] = (),
        counts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(output, lse). An attention mask is added to the scores of those that choose, too. How many keys each row attends to is written to `counts`, int32 (batch, heads, queries), if
        given."""
        factor = queries.shape[-1] ** -0.5 if scaling is None else scaling
        rules = self._sparse.rules(keys.shape[2], layer=layer)
        if why := why_not_padded(queries, rules):
            raise _core.DeviceError(why)
        settings: Any = {"rules": rules, "layer": layer, "scaling": factor, "soft_cap": soft_cap, "counts": counts}
        settings |= {"attention_mask": _bias(attention_mask, queries), "sink_logits": sink_logits}
        return _run(self._decoder, queries, keys, values, settings)


def why_not_padded(queries: Tensor, rules: Sequence[_core.Rule]) -> str | None:
    """What keeps rules from keys with zeros behind, which heads of other sizes than HEAD_DIMS get: codes are of all of a
    key, and would be others."""
    kinds = [rule.kind for rule in rules if rule.kind in ("hashed", "quantised", "colliding")]
    if queries.shape[-1] in HEAD_DIMS or not kinds:
        return None
    return f"head_dim is {queries.shape[-1]}; on a GPU it is one of {HEAD_DIMS} where keys are {kinds[0]}"


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row of scores (rows, n) float32 on a GPU: indices (rows, k) int32, ascending in a row, and how
    many there are, (rows) int32: fewer than k where scores are NaN or -infinity. Equal scores go to the lower index."""
    indices = torch.empty((scores.shape[0], k), dtype=torch.int32, device=scores.device)
    counts = torch.empty(scores.shape[0], dtype=torch.int32, device=scores.device)
    stream = torch.cuda.current_stream(scores.device).cuda_stream if scores.is_cuda else 0
    _core.cuda_top_k(scores, k, indices, counts, stream=stream)
    return indices, counts


def _run(
    kernel: Any, queries: Tensor, keys: Tensor, values: Tensor, settings: Any, *chosen: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Fresh results, filled on the current stream."""
    _require_one_head_dim(queries, keys)
    inputs = _fitted(queries.detach(), keys.detach(), values.detach())
    output, lse = queries.new_empty(inputs[0].shape), queries.new_empty(queries.shape[:3], dtype=torch.float32)
    stream = torch.cuda.current_stream(queries.device).cuda_stream
    kernel.run(*inputs, *chosen, output, lse, **settings, stream=stream)
    return output[..., : values.shape[3]].contiguous(), lse


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


def backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    mask: AnyMask | None = None,
    *,
    scaling: float,
    causal: bool = False,
    attention_mask: Tensor | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum(output * d_output) by queries, keys and values, in their dtypes, of what `reticle.attention` gave
    output and lse for."""
    options: Any = {"scaling": scaling, "causal": causal, "attention_mask": attention_mask, "soft_cap": soft_cap}
    if mask is None:
        mask = _core.Mask.full((*queries.shape[:3], keys.shape[2]))
    if queries.is_cuda:
        return _backward_on_gpu(queries, keys, values, output, lse, d_output, mask, **options)
    on_host = as_mask(mask, queries, keys)
    gradients = _core.attention_backward(queries, keys, values, on_host, output, lse, d_output, **options)
    d_queries, d_keys, d_values = gradients
    return d_queries.to(queries.dtype), d_keys.to(keys.dtype), d_values.to(values.dtype)


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
    options: Any = {"scaling": scaling, "causal": causal, "attention_mask": attention_mask, "soft_cap": soft_cap}
    return backward(queries, keys, values, output, lse, d_output, _numbered(mask), **options)


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


def _no_second_derivative(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError("second derivatives of attention are not supported")


_attention.register_autograd(_differentiate, setup_context=_save)
_attention_backward.register_autograd(_no_second_derivative)


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: AnyMask | None = None,
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
    if not queries.is_cuda:
        mask = as_mask(mask, queries, keys)
    factor = queries.shape[-1] ** -0.5 if scaling is None else scaling
    number: int = _number_of(mask)
    output, lse = _attention(queries, keys, values, number, attention_mask, factor, causal, soft_cap)
    return output, lse
