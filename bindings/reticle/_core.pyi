"""The C++ library. Import reticle instead."""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

__version__: str

# A torch tensor, a numpy array, or anything with DLPack on the CPU; results come back as what the queries are.
_Array = TypeVar("_Array")
_Stage = Literal["prefill", "generation"]
_Shape = Sequence[int]

class Error(Exception): ...
class ConfigError(Error, ValueError): ...  # type: ignore[misc]
class ShapeError(Error, ValueError): ...  # type: ignore[misc]
class FormatError(Error, ValueError): ...  # type: ignore[misc]
class ValueError(Error, ValueError): ...  # type: ignore[misc]
class PluginError(Error, RuntimeError): ...
class DeviceError(Error, RuntimeError): ...

class Mask:
    @staticmethod
    def empty(shape: _Shape) -> Mask: ...
    @staticmethod
    def full(shape: _Shape) -> Mask: ...
    @staticmethod
    def dense(p: ArrayLike) -> Mask: ...
    @staticmethod
    def csr(shape: _Shape, row_ptr: ArrayLike, indices: ArrayLike, p: ArrayLike | None = None) -> Mask: ...
    @staticmethod
    def runs(shape: _Shape, row_ptr: ArrayLike, intervals: ArrayLike, p: ArrayLike | None = None) -> Mask: ...
    def __or__(self, other: Mask, /) -> Mask: ...
    def __and__(self, other: Mask, /) -> Mask: ...
    def __sub__(self, other: Mask, /) -> Mask: ...
    def __invert__(self) -> Mask: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int, int, int]: ...
    @property
    def kind(self) -> str: ...
    @property
    def nnz(self) -> int: ...
    @property
    def density(self) -> float: ...
    @property
    def weighted(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    def to_dense(self) -> NDArray[np.float32]: ...
    def to_csr(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32] | None]: ...

class AttentionPlan: ...

class SequenceState:
    def __init__(self) -> None: ...
    def reset(self) -> None: ...

class SparseAttention:
    @staticmethod
    def from_json(text: str, directory: str = ".") -> SparseAttention: ...
    @staticmethod
    def from_file(path: str) -> SparseAttention: ...
    def to_json(self) -> str: ...
    def mask(
        self,
        queries: _Array,
        keys: _Array,
        values: _Array,
        state: SequenceState,
        *,
        scaling: float | None = None,
        causal: bool = False,
        attention_mask: _Array | None = None,
        layer: int = 0,
        stage: _Stage = "prefill",
    ) -> Mask: ...
    def run(
        self,
        queries: _Array,
        keys: _Array,
        values: _Array,
        state: SequenceState,
        *,
        scaling: float | None = None,
        causal: bool = False,
        attention_mask: _Array | None = None,
        layer: int = 0,
        stage: _Stage = "prefill",
    ) -> tuple[_Array, Mask]: ...

class StageRecord:
    @property
    def sparsity(self) -> list[float]: ...
    @property
    def mean_sparsity(self) -> float: ...
    @property
    def density(self) -> float: ...
    @property
    def masks(self) -> list[tuple[int, Mask]]: ...

class InferenceState:
    def __init__(self) -> None: ...
    @property
    def prefill(self) -> StageRecord: ...
    @property
    def generation(self) -> StageRecord: ...
    def reset(self) -> None: ...

class InferenceHandler:
    def __init__(self, prefill: SparseAttention, generation: SparseAttention, *, keep_masks: bool = False) -> None: ...
    def attend(
        self,
        queries: _Array,
        keys: _Array,
        values: _Array,
        state: InferenceState,
        *,
        scaling: float | None = None,
        attention_mask: Any = None,
        layer: int = 0,
        stage: _Stage = "prefill",
        soft_cap: float | None = None,
    ) -> tuple[_Array, _Array]: ...

def attention(
    queries: _Array,
    keys: _Array,
    values: _Array,
    mask: Mask | None = None,
    *,
    scaling: float | None = None,
    causal: bool = False,
    attention_mask: Any = None,
    soft_cap: float | None = None,
) -> tuple[_Array, _Array]: ...
def attention_backward(
    queries: _Array,
    keys: _Array,
    values: _Array,
    mask: Mask,
    output: _Array,
    lse: _Array,
    d_output: _Array,
    *,
    scaling: float | None = None,
    causal: bool = False,
    attention_mask: Any = None,
    soft_cap: float | None = None,
) -> tuple[_Array, _Array, _Array]: ...
def plan(queries: Any, keys: Any, mask: Mask, *, causal: bool = False) -> AttentionPlan: ...
def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int32]: ...
def get_num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
