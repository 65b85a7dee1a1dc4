"""The tables of make_stubs.py: types that pybind11 knows only as an object, a tuple or a string."""

from __future__ import annotations

#: The beginning of _core.pyi, after the module's docstring.
CORE_HEAD = """
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import EllipsisType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

__version__: str

# A torch tensor, a numpy array, or anything with DLPack on the CPU; results come back as what the queries are.
_Array = TypeVar("_Array")
_Path = str | bytes | PathLike[str] | PathLike[bytes]
_Recording = Literal["none", "figures", "masks"]
_RuleKind = Literal[
    "sinks", "window", "top_k", "top_p", "hashed", "quantised", "pages", "sample", "adaptive", "colliding"
]
_Shape = Sequence[int]
_Stage = Literal["prefill", "generation"]
_Stored = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], int]
"""

#: The beginning of maskers.pyi.
MASKERS_HEAD = '''"""A config dataclass for every masker, with the registry's fields and defaults."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reticle import SparseAttention
from reticle._masker import MaskerConfig as MaskerConfig

'''

#: Patterns in signatures -> what the stub has instead. Types of packages that users need not have installed become Any,
#: because stubtest fails on imports that are missing.
SPELLINGS = {
    r"reticle::bindings::HeldPattern": "Pattern",
    r"reticle::AttentionPlan": "AttentionPlan",
    r"reticle\._core\.": "",
    r"typing\.SupportsInt(?: \| typing\.SupportsIndex)?": "int",
    r"typing\.SupportsFloat(?: \| typing\.SupportsIndex)?": "float",
    r'typing\.Annotated\[collections\.abc\.Sequence\[(\w+)\], "FixedSize\(4\)"\]': r"Sequence[\1]",
    r"typing\.Annotated\[numpy\.typing\.ArrayLike, numpy\.\w+\]": "ArrayLike",
    r"numpy\.typing\.NDArray\[numpy\.": "NDArray[np.",
    r"os\.PathLike \| str \| bytes": "_Path",
    r"collections\.abc\.": "",
    r"\b(?:scipy\.sparse\.\w+ \| scipy\.sparse\.|scipy\.sparse\.|torch\.)\w+|BlockMask|Axes(?: \| None)?": "Any",
    r"\bobject\b": "Any",
}

TENSORS = [
    "queries",
    "keys",
    "values",
    "output",
    "lse",
    "d_output",
    "output_a",
    "lse_a",
    "output_b",
    "lse_b",
    "x",
    "dy",
]
TENSORS += ["compressed_keys", "scores", "indices", "counts", "p"]

#: Types of arguments, by name. An entry for the methods of one class goes before that for the name alone, and one for
#: a single function before both.
ARGUMENTS: dict[str, str] = {
    **dict.fromkeys(TENSORS, "_Array"),
    "weight": "_Array | None",
    "pe": "_Array | None",
    **{f"Mask.{name}": "ArrayLike" for name in ("p", "row_ptr", "indices", "intervals", "ptr", "data", "x")},
    "attention_mask": "_Array | None",
    "extras": "Mapping[str, Any] | None",
    "memo": "dict[int, Any]",
    "record": "_Recording",
    "shape": "_Shape",
    "stage": "_Stage",
    "stored": "_Stored",
    "Mask.__eq__.other": "object",
    "Mask.__getitem__.index": "int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]",
    "Mask.merge.rule": 'Literal["add", "max", "independent"]',
    "NsaModule.parameters": "dict[str, Any]",
    "register_masker.cls": "type",
    "register_masker.docs": "tuple[str, str, str, str]",
    "register_masker.fields": "list[tuple[Any, ...]]",
    "top_k.scores": "ArrayLike",
}

#: Types of results and properties.
RESULTS: dict[str, str] = {
    "Mask.shape": "tuple[int, int, int, int]",
    "Mask.to_blocks": "tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]",
    "Mask.to_csr": "tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32] | None]",
    "Mask.to_flat_indices": "tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]",
    "SequenceState.record": "_Recording",
    "StageRecord.masks": "list[tuple[int, Mask]]",
    "Rule.kind": "_RuleKind",
    "SparseAttention.__copy__": "SparseAttention",
    "SparseAttention.__deepcopy__": "SparseAttention",
    "SparseAttention.run": "tuple[_Array, Mask]",
    "SparseAttention.attend": "tuple[_Array, _Array]",
    "SparseAttention.measure": "tuple[_Array, Mask, dict[str, Any]]",
    "AttentionInputs.extras": "dict[str, Any]",
    "AttentionInputs.stage": "_Stage",
    "attention": "tuple[_Array, _Array]",
    "attention_weights": "tuple[_Array, _Array, tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]]",
    "attention_backward": "tuple[_Array, _Array, _Array]",
    "KeyListAttention.attend": "tuple[_Array, _Array]",
    "NsaConfig.compress_type": "str",
    **{f"NsaConfig.{field}": "int" for field in ("kernel_size", "kernel_stride", "block_size", "topk")},
    **{f"NsaConfig.{field}": "int" for field in ("init_blocks", "local_blocks", "window_size")},
    "NsaModule.forward": "tuple[_Array, NsaTape]",
    "NsaModule.backward": "tuple[_Array, dict[str, _Array]]",
    "NsaModule.extend": "_Array",
    "nsa_compress": "tuple[_Array, list[int]]",
    "nsa_compress_backward": "tuple[_Array, _Array | None, _Array | None]",
    "nsa_compressed_attention": "tuple[_Array, _Array, NDArray[np.int32]]",
    "merge_states": "tuple[_Array, _Array]",
    "load_tensors": "dict[str, NDArray[Any]]",
}
