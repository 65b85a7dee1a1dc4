"""Converts published HashAttention weights (.pt or .pkl) to the safetensors file that hash_attention_top_k reads.

    reticle convert-hat weights.pkl hat.safetensors

Two forms are supported: sparse-attention-hub's, {layer: {query_matrix, query_bias, key_matrix, key_bias}} with a list
over the linear maps in each, and the training code's state dict, whose keys are
"<layer>.learning_to_hash_transformation_<q|k>.<head>.<0|2|4>.weight" and ".bias". Pickles are read with an allow-list
of the few types that hold numbers; any other name is refused, and nothing in the file is executed.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import reticle._core as _core
from reticle import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

Weights = dict[str, torch.Tensor]


def _tensors_from(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _tensors_from,
}


class _DType:
    """A dtype as numpy pickles it, kept as text until it is known to be a dtype of numbers."""

    def __init__(self, name: str, align: bool = False, copy: bool = True) -> None:
        if not (isinstance(name, str) and re.fullmatch(r"[<>|=]?(f[248]|[iu][1248]|b1)", name)):
            raise pickle.UnpicklingError(f"holds numbers of dtype {name!r}; expected floats, integers or booleans")
        self.name = name

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, and entries that only structures, strings and times use)
        if not (isinstance(state, tuple) and len(state) >= 2 and state[1] in ("<", ">", "|", "=")):
            raise pickle.UnpicklingError("holds a damaged dtype")
        self.name = state[1] + self.name.lstrip("<>|=")

    def value(self) -> np.dtype[Any]:
        return np.dtype(self.name)


class _Array:
    """An array as numpy pickles it: (version, shape, dtype, column-major flag, bytes)."""

    _state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self._state = state if isinstance(state, tuple) else ()

    def value(self) -> np.ndarray[Any, Any]:
        try:
            _, shape, dtype, by_columns, data = self._state
            return np.frombuffer(data, dtype.value()).reshape(shape, order="F" if by_columns else "C")
        except (AttributeError, TypeError, ValueError) as error:
            raise FormatError(f"holds a damaged array: {error}") from None


def _empty_array(*_: Any) -> _Array:
    """Stands for numpy's function that makes an empty array, which is given its state afterwards."""
    return _Array()


def _array_of_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(data)))
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    return _array_of_buffer(data, dtype, (), "C").value()[()]


# numpy 1 and 2 have these in different modules.
_NUMPY_STAND_INS: dict[str, Any] = {
    "multiarray._reconstruct": _empty_array,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _array_of_buffer,
}


# The unpickler written in Python, with stand-ins for numpy's functions: the C implementations trust the sizes that a
# damaged file claims.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if match := re.fullmatch(r"numpy\.(?:_core|core)\.(multiarray|numeric)", module):
            found = _NUMPY_STAND_INS.get(f"{match[1]}.{name}")
            if found is not None:
                return found
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Array if name == "ndarray" else _DType
        raise pickle.UnpicklingError(f"names {module}.{name}, which is not a number; refused, and nothing was executed")


def read(path: str | Path) -> Any:
    """The object in a .pt or .pkl file that holds only containers, numbers, tensors and arrays.

    Raises:
        FormatError: naming the file, for any other content.
    """
    data = _core.read_file(path)
    try:
        # Files of torch.save, in the old and the new format, go to torch, which has an allow-list.
        zipped = data[:4] == b"PK\x03\x04"
        content = None if zipped else _Unpickler(io.BytesIO(data)).load()
        return _tensors_from(data) if zipped or content == torch.serialization.MAGIC_NUMBER else content
    except Exception as error:  # a damaged file makes unpicklers raise arbitrary exceptions
        reason = str(error).strip().split("\n")[0]
        raise FormatError(f"{path}: {reason or type(error).__name__}") from None


def _number(tensor: Any, name: str) -> torch.Tensor:
    try:
        if isinstance(tensor, _Array):
            tensor = np.ascontiguousarray(tensor.value()).astype(np.float32)
        return torch.as_tensor(tensor).detach().float().contiguous()
    except (TypeError, ValueError, RuntimeError):
        raise FormatError(f"{name}: is a {type(tensor).__name__}; expected numbers") from None


def _from_hub(layers: Mapping[Any, Any]) -> Weights:
    weights: Weights = {}
    for layer, sides in layers.items():
        for side in ("query", "key"):
            for kind in ("matrix", "bias"):
                if f"{side}_{kind}" not in sides:
                    raise FormatError(f"layer {layer}: has no {side}_{kind}")
                for i, tensor in enumerate(sides[f"{side}_{kind}"]):
                    name = f"hat.{int(layer)}.{side}_{kind}.{i}"
                    weights[name] = _number(tensor, name)
    return weights


_STATE = re.compile(r"(?:.*\.)?(\d+)\.learning_to_hash_transformation_([qk])\.(\d+)\.(\d+)\.(weight|bias)")


def _from_state(state: Mapping[str, Any]) -> Weights:
    found: dict[tuple[int, str], dict[int, dict[int, dict[str, torch.Tensor]]]] = {}
    for key, tensor in state.items():
        match = _STATE.fullmatch(key)
        if match is None:
            continue
        layer, side, head, place, kind = match.groups()
        heads = found.setdefault((int(layer), "query" if side == "q" else "key"), {})
        heads.setdefault(int(head), {}).setdefault(int(place), {})[kind] = _number(tensor, key)
    weights: Weights = {}
    for (layer, side), heads in found.items():
        if sorted(heads) != list(range(len(heads))):
            raise FormatError(f"layer {layer}: the {side} side has heads {sorted(heads)}; expected 0, 1, ...")
        places = [sorted(maps) for maps in heads.values()]
        if any(each != places[0] for each in places):
            raise FormatError(f"layer {layer}: heads of the {side} side have other linear maps than head 0")
        for i, place in enumerate(places[0]):
            maps = [heads[head][place] for head in range(len(heads))]
            if any("weight" not in each for each in maps):
                raise FormatError(f"layer {layer}: linear map {place} of the {side} side has a bias and no weight")
            shapes = {tuple(each["weight"].shape) for each in maps}
            if len(shapes) != 1 or any(len(shape) != 2 for shape in shapes):
                raise FormatError(
                    f"layer {layer}: linear map {place} of the {side} side has weights of shapes {sorted(shapes)}; expected "
                    "one shape (out, in) for all heads"
                )
            biases = [each.get("bias", torch.zeros(each["weight"].shape[0])) for each in maps]
            if any(bias.shape != each["weight"].shape[:1] for bias, each in zip(biases, maps, strict=True)):
                raise FormatError(f"layer {layer}: linear map {place} of the {side} side has a bias of another size")
            weights[f"hat.{layer}.{side}_matrix.{i}"] = torch.stack([each["weight"].T for each in maps]).contiguous()
            weights[f"hat.{layer}.{side}_bias.{i}"] = torch.stack(biases)
    return weights


def tensors_of(content: Any) -> Weights:
    """The tensors of either form under the names that hash_attention_top_k reads: hat.<layer>.<query|key>_matrix.<i>
    (heads, in, out) and hat.<layer>.<query|key>_bias.<i> (heads, out), float32.

    Raises:
        FormatError: when the content is neither form, or when parts are missing or differ in extents.
    """
    weights: Weights = {}
    if isinstance(content, dict) and content and all(isinstance(sides, dict) for sides in content.values()):
        weights = _from_hub(content)
    elif isinstance(content, dict):
        weights = _from_state(content)
    if not weights:
        raise FormatError("holds no HashAttention weights in a form that is known; see reticle.research.hat")
    for name, matrix in weights.items():
        if "_matrix." not in name:
            continue
        layer, side, i = name.split(".")[1], name.split(".")[2].split("_")[0], int(name.rpartition(".")[2])
        bias = weights.get(name.replace("_matrix.", "_bias."))
        if matrix.ndim != 3 or bias is None or bias.shape != (matrix.shape[0], matrix.shape[2]):
            given = None if bias is None else tuple(bias.shape)
            raise FormatError(
                f"{name}: is {tuple(matrix.shape)} with a bias {given}; expected (heads, in, out) and (heads, out)"
            )
        before = weights.get(f"hat.{layer}.{side}_matrix.{i - 1}")
        if before is not None and before.shape[2] != matrix.shape[1]:
            raise FormatError(
                f"{name}: takes {matrix.shape[1]} numbers; the linear map before it gives {before.shape[2]}"
            )
    return weights


def convert(source: str | Path, target: str | Path) -> dict[str, Any]:
    """Writes the weights of `source` to `target`; returns the masker config that uses them.

    Raises:
        FormatError: naming the file and the fault; nothing is written then.
    """
    from safetensors.torch import save_file

    content = read(source)
    try:
        weights = tensors_of(content)
    except FormatError as error:
        raise FormatError(f"{source}: {error}") from None
    save_file(weights, str(target))
    layer = next(iter(weights)).split(".")[1]
    maps = [
        weights[f"hat.{layer}.query_matrix.{i}"] for i in range(sum(f"hat.{layer}.query_matrix." in n for n in weights))
    ]
    return {
        "type": "hash_attention_top_k",
        "hat_bits": maps[-1].shape[2],
        "hat_mlp_layers": len(maps),
        "hat_mlp_hidden_size": maps[0].shape[2],
        "hat_weight_file": str(target),
    }


if __name__ == "__main__":
    import sys

    from reticle.__main__ import _convert_hat

    sys.exit(_convert_hat(sys.argv[1:]))
