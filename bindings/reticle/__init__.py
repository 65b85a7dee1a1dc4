"""Mask algebra and sparse attention: masks as values, attention over just their entries."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

import reticle._core as _core
from reticle._core import (
    AttentionInputs,
    AttentionPlan,
    ConfigError,
    DeviceError,
    Error,
    FormatError,
    InvalidValueError,
    Mask,
    MissingFileError,
    PluginError,
    SequenceState,
    ShapeError,
    SparseAttention,
    StageRecord,
    attention_backward,
    attention_weights,
    get_num_threads,
    load_tensors,
    merge_states,
    plan,
    set_num_threads,
)
from reticle._core import __version__ as __version__
from reticle._handler import InferenceHandler, InferenceState
from reticle._mask import plot_contributions
from reticle._masker import Masker, register
from reticle._quantised import QuantisedTensor, quantise

if TYPE_CHECKING:
    from reticle.torch import AnyMask

# A torch tensor, a numpy array, or any array that supports DLPack (for GPU arrays, torch must be installed). Results
# have the framework of the queries.
Array = TypeVar("Array")

__all__ = [
    "AttentionInputs",
    "AttentionPlan",
    "ConfigError",
    "DeviceError",
    "Error",
    "FormatError",
    "InferenceHandler",
    "InferenceState",
    "InvalidValueError",
    "Mask",
    "Masker",
    "MissingFileError",
    "PluginError",
    "QuantisedTensor",
    "SequenceState",
    "ShapeError",
    "SparseAttention",
    "StageRecord",
    "attention",
    "attention_backward",
    "attention_weights",
    "get_num_threads",
    "load_tensors",
    "merge_states",
    "plan",
    "plot_contributions",
    "quantise",
    "register",
    "set_num_threads",
]


def attention(
    queries: Array,
    keys: Array,
    values: Array,
    mask: AnyMask | None = None,
    *,
    scaling: float | None = None,
    causal: bool = False,
    attention_mask: Array | None = None,
    soft_cap: float | None = None,
    sink_logits: Sequence[float] = (),
) -> tuple[Array, Array]:
    """Attention over the entries of a mask: (output, lse).

    Args:
        queries: (batch, heads, queries, head_dim) float32, float16 or bfloat16, any strides.
        keys: (batch, kv_heads, keys, head_dim); heads is a multiple of kv_heads. On the CPU also a `QuantisedTensor`.
        values: (batch, kv_heads, keys, value_dim); likewise.
        mask: the keys that each query attends to: a Mask, on the tensors' device or the CPU, or a plan
            (`reticle.plan`); None: all keys. For torch tensors also `reticle.torch.SelectedBlocks`,
            `reticle.torch.Band`, or a bool tensor (or an integer one of 0 and 1) broadcastable to (batch, heads,
            queries, keys).
        scaling: factor of queries . keys; default 1 / sqrt(head_dim).
        causal: forbid keys after each query's own position; the last query is aligned with the last key.
        attention_mask: broadcastable to (batch, heads, queries, keys); missing leading dimensions have extent 1. Floats
            are added to the scores; of booleans, True marks keys that may be attended to. Has no gradients.
        soft_cap: scores are replaced by soft_cap * tanh(scores / soft_cap).
        sink_logits: one logit per query head, which joins the softmax with a value of zero (gpt-oss). Has no gradients.

    Returns:
        output (batch, heads, queries, value_dim) in the queries' dtype and framework, and lse (batch, heads, queries)
        float32, the natural log of the sum of exp(score) / p over the entries. A row without entries gives 0 and -inf.

    Torch tensors that require gradients receive them; the mask and the LSE have none.

    Raises:
        ShapeError: when tensors and mask do not fit together; ValueError: when a result would not be finite.
    """
    _require_plain(scaling=scaling, soft_cap=soft_cap)
    if not isinstance(causal, (bool, np.bool_)):
        raise TypeError(f"causal: is {causal!r}; expected True or False")
    options: Any = {
        "scaling": scaling,
        "causal": bool(causal),
        "attention_mask": attention_mask,
        "soft_cap": soft_cap,
    }
    torch: Any = sys.modules.get("torch")
    is_torch = torch is not None and isinstance(queries, torch.Tensor)
    given: Any = mask
    if torch is not None:
        _require_supported(torch, queries, keys, values, attention_mask, sink_logits)
    if is_torch:
        inputs: tuple[Any, ...] = (queries, *map(_stored, (keys, values)))
        compiling = torch.compiler.is_compiling()
        special = compiling or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs))
        if special and any(isinstance(tensor, QuantisedTensor) for tensor in (keys, values)):
            raise NotImplementedError(
                "quantised keys or values with gradients or torch.compile are not supported; dequantise() them"
            )
        if special and len(sink_logits):
            raise NotImplementedError(
                "sink_logits with gradients or torch.compile are not supported; call it under torch.no_grad(), uncompiled"
            )
        if special:
            import reticle.torch

            differentiable: Any = reticle.torch.attention
            result: tuple[Array, Array] = differentiable(queries, keys, values, mask, **options)
            return result
        if not (mask is None or isinstance(mask, Mask)):
            import reticle.torch

            as_given: Any = reticle.torch.as_given
            given = as_given(mask, queries, keys)
    elif _lies_on_gpu(queries):
        import reticle.torch

        with_package: Any = reticle.torch.of_other_package
        return with_package(queries, keys, values, mask, sink_logits=sink_logits, **options)  # type: ignore[no-any-return]
    if not (given is None or isinstance(given, (Mask, _core.Pattern, AttentionPlan))):
        raise TypeError(
            f"mask: a {type(given).__name__}; expected a reticle.Mask (Mask.dense makes one of an array), None, or, beside torch "
            "tensors, a bool tensor"
        )
    return _core.attention(queries, keys, values, given, sink_logits=sink_logits, **options)


def _stored(tensor: Any) -> Any:
    """What a tensor's elements are stored in: the codes of a QuantisedTensor, else the tensor."""
    return tensor.codes if isinstance(tensor, QuantisedTensor) else tensor


def _require_plain(**numbers: Any) -> None:
    """Requires numbers or None; refuses tensors that require gradients, because these arguments have none."""
    for name, given in numbers.items():
        if getattr(given, "requires_grad", False):
            raise NotImplementedError(f"{name}: requires gradients, which it gets none of; give a number")
        if given is not None and not isinstance(given, Real) and getattr(given, "ndim", 1) != 0:
            raise TypeError(f"{name}: is {given!r}; expected a number or None")


def _require_supported(torch: Any, queries: Any, keys: Any, values: Any, attention_mask: Any, sink_logits: Any) -> None:
    """Requires tensors of one package, no active transforms, and no input that would silently get no gradient."""
    inputs = {"queries": queries, "keys": _stored(keys), "values": _stored(values)}
    is_torch = isinstance(queries, torch.Tensor)
    for name, given in inputs.items():
        if is_torch and not isinstance(given, torch.Tensor):
            raise TypeError(f"{name}: a {type(given).__name__} beside queries of torch; expected a torch tensor")
    compiling = torch.compiler.is_compiling()
    transformed = torch._C._functorch.is_functorch_wrapped_tensor
    if is_torch and not compiling and any(transformed(tensor) for tensor in inputs.values()):
        raise NotImplementedError(
            "torch.func's transforms (vmap, grad, ...) are not supported; call attention on the batch, and use autograd"
        )
    if not compiling and torch.autograd.forward_ad._current_level >= 0:
        tangents = (torch.autograd.forward_ad.unpack_dual(each).tangent for each in inputs.values() if is_torch)
        if any(tangent is not None for tangent in tangents):
            raise NotImplementedError("forward-mode derivatives are not supported; use backward()")
    if not torch.is_grad_enabled():
        return
    without = {"attention_mask": attention_mask, "sink_logits": sink_logits, **({} if is_torch else inputs)}
    for name, given in without.items():
        if getattr(given, "requires_grad", False):
            raise NotImplementedError(f"{name}: requires gradients, which it gets none of; detach it")


def _lies_on_gpu(tensor: Any) -> bool:
    """True if DLPack says that a tensor of any package lies in CUDA memory (kDLCUDA)."""
    where = getattr(tensor, "__dlpack_device__", None)
    return where is not None and int(where()[0]) == 2


if not TYPE_CHECKING:  # type checkers see the imports

    def __getattr__(name: str) -> Any:
        """Imports `reticle.hf` and the like on first use, because they import torch or transformers."""
        if name == "ValueError":  # its name until it shadowed Python's in `from reticle import *`
            warnings.warn("reticle.ValueError is reticle.InvalidValueError now", DeprecationWarning, stacklevel=2)
            return InvalidValueError
        if name.startswith("_") or importlib.util.find_spec(f"reticle.{name}") is None:
            raise AttributeError(f"module 'reticle' has no attribute {name!r}")
        return importlib.import_module(f"reticle.{name}")
