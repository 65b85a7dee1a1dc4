"""Attention over a mask as a torch operator: autograd, torch.compile, fake tensors."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor  # needed at run time: torch reads operators' annotations
from torch.utils.dlpack import from_dlpack

import reticle._core as _core

if TYPE_CHECKING:
    from reticle import Mask

# Custom ops accept only tensors and numbers, so masks travel as ids. The caller keeps the mask alive during the call;
# the backward pass holds a reference.
_masks: weakref.WeakValueDictionary[int, AnyMask] = weakref.WeakValueDictionary()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _number_of(mask: AnyMask) -> int:
    _masks[id(mask)] = mask
    return id(mask)


def _numbered(number: int, queries: Tensor, keys: Tensor) -> Any:
    """The mask with this id, as the library takes it."""
    return as_given(_masks[number], queries, keys)


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
        _numbered(mask, queries, keys),
        scaling=scaling,
        causal=causal,
        attention_mask=attention_mask,
        soft_cap=soft_cap,
    )


def of_other_package(
    queries: Any, keys: Any, values: Any, mask: AnyMask | None, *, attention_mask: Any, **options: Any
) -> tuple[Any, Any]:
    """`reticle.attention` for GPU arrays of cupy, jax and others: converted to torch without copies, and the results
    back. DLPack makes each package's current stream wait for the other's."""
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


@dataclass(frozen=True, eq=False)
class SelectedBlocks:
    """A causal mask of key blocks that each query has selected, as in Native Sparse Attention: keys of a block after
    the query's position are excluded, and the last query is at the last key.

        blocks = scores.topk(16).indices.sort().values.int()  # (batch, kv_heads, queries, 16)
        output, lse = reticle.attention(q, k, v, reticle.torch.SelectedBlocks(blocks, block_size=64))

    On a GPU, attention over it is planned on the device, in 16 bits with gradients too, without synchronising.
    """

    #: (batch, kv_heads, queries, n) int32, ascending in each row, padded with -1 at the end. A dimension of 1 is
    #: shared.
    numbers: Tensor
    #: Number of keys in a block.
    block_size: int = 64

    def pattern(self) -> _core.Pattern:
        """The mask as the library takes it."""
        if self.numbers.is_floating_point() or self.numbers.dtype == torch.bool:
            raise _core.ShapeError(f"numbers: is {self.numbers.dtype}; expected integers, the numbers of blocks")
        numbers = self.numbers.to(torch.int32)
        return _core.Pattern.of_numbers(numbers if numbers.stride(-1) == 1 else numbers.contiguous(), self.block_size)

    def mask(self, shape: tuple[int, int, int, int]) -> Mask:
        """The equivalent Mask of (batch, heads, queries, keys). Copies the numbers to the host, which waits for the
        device.

        Raises:
            ShapeError: for numbers that are neither -1 nor a block of the keys; attention on a GPU does not check them.
        """
        return self.pattern().mask(shape, self.numbers.shape[1] if self.numbers.dim() == 4 else 1)


@dataclass(frozen=True, eq=False)
class Band:
    """A mask whose keys end at each query: a sliding window, or keys that were compressed from windows.

        window = reticle.torch.Band(width=512)
        compressed = reticle.torch.Band(kernel=32, stride=16)

    Key c is complete at position c * stride + kernel - 1. A query sees the last `width` of the keys that are complete
    at its position; query 0 is at first_query. On a GPU, only the plan takes memory.
    """

    #: The largest number of keys per query; None: all complete keys.
    width: int | None = None
    #: The position of query 0.
    first_query: int = 0
    #: The number of positions that a key was made from.
    kernel: int = 1
    #: The distance in positions from one key to the next.
    stride: int = 1

    def pattern(self) -> _core.Pattern:
        """The mask as the library takes it."""
        width = (1 << 31) - 1 if self.width is None else self.width
        return _core.Pattern.of_band(self.first_query, self.kernel, self.stride, width)

    def mask(self, shape: tuple[int, int, int, int]) -> Mask:
        """The equivalent Mask of (batch, heads, queries, keys)."""
        return self.pattern().mask(shape)


#: The types of masks that attention accepts. Tensors hold booleans, or integers 0 and 1, and are broadcastable to
#: (batch, heads, queries, keys).
AnyMask: TypeAlias = "Mask | SelectedBlocks | Band | Tensor | _core.AttentionPlan"


def _booleans(mask: Tensor) -> Tensor:
    """A mask as a bool tensor; accepts booleans, and integers that are 0 or 1."""
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point() or mask.is_complex() or not bool(((mask == 0) | (mask == 1)).all()):
        raise _core.ShapeError(
            f"mask: a tensor of {mask.dtype}; expected booleans, or integers that are 0 or 1. What is added to the scores is "
            "attention_mask=, and probabilities become a mask by Mask.dense"
        )
    return mask.bool()


def as_given(mask: AnyMask, queries: Tensor, keys: Tensor) -> Mask | _core.Pattern | _core.AttentionPlan:
    """A mask of any accepted type as the library takes it, for attention of these tensors."""
    if isinstance(mask, (SelectedBlocks, Band)):
        return mask.pattern()
    if not isinstance(mask, Tensor):
        return mask
    attended, shape = _booleans(mask), (*queries.shape[:3], keys.shape[2])
    fits = attended.dim() <= 4 and all(
        extent in (1, wanted) for extent, wanted in zip(reversed(attended.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise _core.ShapeError(
            f"mask: is {tuple(mask.shape)}; expected a tensor that is broadcastable to {tuple(shape)}"
        )
    attended = attended[(None,) * (4 - attended.dim())].expand(-1, -1, -1, shape[3])
    return _core.Pattern.of_bytes(attended if attended.stride(-1) == 1 else attended.contiguous())


def blocks(attended: Tensor, block_size: tuple[int, int]) -> _core.Pattern:
    """A mask of blocks of positions, for `reticle.plan` and `reticle.attention`.

    Args:
        attended: bool (batch, heads, ceil(queries / block_size[0]), ceil(keys / block_size[1])); a dimension of 1 is
            shared.
        block_size: (queries, keys) of a block.
    """
    whole = _booleans(attended)[(None,) * (4 - attended.dim())]
    return _core.Pattern.of_bytes(whole if whole.stride(-1) == 1 else whole.contiguous(), block_size)


def dense_weights(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Mask, *, attention_mask: Tensor | None = None, **options: Any
) -> Tensor:
    """The attention weights of every position, (batch, heads, queries, keys) float32, without gradients; 0 outside the
    mask. Computed in host memory. Options are those of `reticle.attention`."""
    q, k, v = (tensor.detach().cpu() for tensor in (queries, keys, values))
    bias = None if attention_mask is None else attention_mask.detach().cpu()
    row_ptr, indices, entries = _core.attention_weights(q, k, v, mask, attention_mask=bias, **options)[2]
    rows = torch.arange(len(row_ptr) - 1).repeat_interleave(torch.from_numpy(row_ptr).diff())
    weights = torch.zeros(len(row_ptr) - 1, keys.shape[2])
    weights[rows, torch.from_numpy(indices).long()] = torch.from_numpy(entries)
    return weights.reshape(mask.shape).to(queries.device)


class KeyListAttention:
    """Attention on a GPU over the keys in each query's list, for patterns that are written in torch.

        attend = reticle.torch.KeyListAttention(rows=32)
        indices = scores.topk(256).indices.sort().values  # (batch, heads, queries, 256)
        output, lse = attend(q, k, v, indices)

    `rows` is the largest batch * heads * queries. A call is one launch on the current stream, which may be captured; no
    gradients. Raises DeviceError if there is no GPU, or the build has no CUDA.
    """

    def __init__(self, rows: int) -> None:
        self._attention = _core.KeyListAttention(rows)

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
        """Returns (output, lse). indices (batch, heads, queries, n): distinct keys; counts (batch, heads, queries): the
        number of valid indices in each list, all by default; p, of the shape of indices: the keys' sampling
        probabilities."""
        if counts is None:
            counts = torch.full(indices.shape[:3], indices.shape[3], dtype=torch.int32, device=indices.device)
        lists = (indices.to(torch.int32).contiguous(), counts.to(torch.int32).contiguous())
        weights = None if p is None else p.to(torch.float32).contiguous()
        return self._attention.attend(queries, keys, values, *lists, weights, scaling=scaling, soft_cap=soft_cap)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest values in each row of scores (rows, n) float32 on a GPU: indices (rows, k) int32, ascending in a
    row, and their number (rows) int32, less than k if too many scores are NaN or -infinity. Equal scores go to the
    lower index."""
    indices = torch.empty((scores.shape[0], k), dtype=torch.int32, device=scores.device)
    counts = torch.empty(scores.shape[0], dtype=torch.int32, device=scores.device)
    _core.cuda_top_k(scores, k, indices, counts)
    return indices, counts


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
    """Gradients of sum(output * d_output) for queries, keys and values, in their dtypes; output and lse are the results
    of `reticle.attention`."""
    options: Any = {"scaling": scaling, "causal": causal, "attention_mask": attention_mask, "soft_cap": soft_cap}
    if mask is None:
        mask = _core.Mask.full((*queries.shape[:3], keys.shape[2]))
    given: Any = as_given(mask, queries, keys)
    gradients = _core.attention_backward(queries, keys, values, given, output, lse, d_output, **options)
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
    return backward(queries, keys, values, output, lse, d_output, _masks[mask], **options)


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
    """`reticle.attention` with gradients for queries, keys and values; the mask and the LSE have none.

    `reticle.attention` calls it if a gradient is required. Under torch.compile the mask is a constant of the graph.
    """
    if mask is None:
        mask = _core.Mask.full((queries.shape[0], queries.shape[1], queries.shape[2], keys.shape[2]))
    if isinstance(mask, _core.AttentionPlan):
        raise _core.ShapeError("mask: is a plan, which has no gradients; expected the mask that it was made of")
    factor = queries.shape[-1] ** -0.5 if scaling is None else scaling
    number: int = _number_of(mask)
    output, lse = _attention(queries, keys, values, number, attention_mask, factor, causal, soft_cap)
    return output, lse


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, why: str, *inputs: Tensor) -> Tensor:
        ctx.why = why
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(ctx.why)


def without_gradients(output: Tensor, why: str, *inputs: Any) -> Tensor:
    """A result without gradients, although inputs require them: a backward pass through it raises an error that gives
    `why`."""
    asking = [each for each in inputs if isinstance(each, Tensor) and each.requires_grad]
    if not asking or not torch.is_grad_enabled():
        return output
    guarded: Tensor = _NoGradient.apply(output, why, *asking)  # type: ignore[no-untyped-call]
    return guarded
