"""The C++ library. Import reticle instead."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import EllipsisType
from typing import Any, Literal, TypeVar, overload

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
    @staticmethod
    def from_row_indices(shape: _Shape, indices: ArrayLike, p: ArrayLike | None = None) -> Mask: ...
    @staticmethod
    def from_flat_indices(shape: _Shape, ptr: ArrayLike, indices: ArrayLike, data: ArrayLike | None = None) -> Mask: ...
    @staticmethod
    def from_scipy(matrix: Any, shape: _Shape) -> Mask: ...
    @staticmethod
    def from_torch_sparse(matrix: Any, shape: _Shape) -> Mask: ...
    @staticmethod
    def from_mask_mod(
        mask_mod: Callable[..., Any], shape: _Shape, *, tile: int = 4194304, module: Any = ...
    ) -> Mask: ...
    @staticmethod
    def load(path: str | PathLike[str]) -> Mask: ...
    def save(self, path: str | PathLike[str]) -> None: ...
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
    def __getitem__(self, index: int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]) -> Mask: ...
    def merge(self, other: Mask, rule: Literal["add", "max", "independent"] = "add") -> Mask: ...
    def restrict_causal(self) -> Mask: ...
    def transpose(self) -> Mask: ...
    def append_keys(self, count: int) -> Mask: ...
    def append_queries(self, rows: Mask) -> Mask: ...
    def broadcast_to(self, shape: _Shape) -> Mask: ...
    def apply(self, x: ArrayLike) -> NDArray[np.float32]: ...
    def apply_inverse(self, x: ArrayLike) -> NDArray[np.float32]: ...
    def to_flat_indices(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]: ...
    def to_blocks(
        self, block_q: int, block_k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]: ...
    def to_scipy(self) -> Any: ...
    def to_torch(self) -> Any: ...
    def to_bsr(self, block_q: int, block_k: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]: ...
    def to_block_mask(self, block_size: int = 128) -> Any: ...
    def picture(self, batch: int = 0, head: int = 0, width: int = 512, height: int = 512) -> NDArray[np.float32]: ...
    def plot(self, batch: int = 0, head: int = 0, ax: Any = None) -> Any: ...
    def _repr_png_(self) -> bytes | None: ...
    def to_dense(self) -> NDArray[np.float32]: ...
    def to_csr(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32] | None]: ...

class AttentionPlan: ...

class SequenceState:
    def __init__(self) -> None: ...
    def reset(self) -> None: ...

class Rule:
    @property
    def kind(self) -> Literal["sinks", "window", "top_k", "top_p", "pages", "sample", "adaptive"]: ...
    @property
    def count(self) -> int: ...
    @property
    def dilation(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def share(self) -> float: ...

class SparseAttention:
    @staticmethod
    def from_json(text: str, directory: str | PathLike[str] = ...) -> SparseAttention: ...
    @staticmethod
    def from_file(path: str | PathLike[str]) -> SparseAttention: ...
    def to_json(self) -> str: ...
    def rules(self, keys: int, *, stage: _Stage = "generation", layer: int = 0) -> list[Rule]: ...
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
        extras: Mapping[str, Any] | None = None,
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
        extras: Mapping[str, Any] | None = None,
        soft_cap: float | None = None,
        sink_logits: Sequence[float] = ...,
    ) -> tuple[_Array, Mask]: ...
    def measure(
        self,
        queries: _Array,
        keys: _Array,
        values: _Array,
        state: SequenceState,
        *,
        compare: bool = True,
        scaling: float | None = None,
        causal: bool = False,
        attention_mask: _Array | None = None,
        layer: int = 0,
        stage: _Stage = "prefill",
        extras: Mapping[str, Any] | None = None,
        soft_cap: float | None = None,
        sink_logits: Sequence[float] = ...,
    ) -> tuple[_Array, Mask, dict[str, Any]]: ...

class StageRecord:
    @property
    def sparsity(self) -> list[float]: ...
    def add(self, entries: float, visible: float) -> None: ...
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
    @property
    def sparse(self) -> SparseAttention: ...
    @property
    def keeps_masks(self) -> bool: ...
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
        sink_logits: Sequence[float] = ...,
        extras: Mapping[str, Any] | None = None,
    ) -> tuple[_Array, _Array]: ...
    def mask(
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
        extras: Mapping[str, Any] | None = None,
    ) -> Mask: ...

class AttentionInputs:
    @property
    def queries(self) -> Any: ...
    @property
    def keys(self) -> Any: ...
    @property
    def values(self) -> Any: ...
    @property
    def attention_mask(self) -> Any: ...
    @property
    def extras(self) -> dict[str, Any]: ...
    @property
    def scaling(self) -> float: ...
    @property
    def causal(self) -> bool: ...
    @property
    def layer(self) -> int: ...
    @property
    def stage(self) -> _Stage: ...
    @property
    def seed(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int, int, int]: ...
    @property
    def kv_heads(self) -> int: ...
    def position(self, query: int) -> int: ...

def register_masker(
    name: str, cls: type, fields: list[tuple[Any, ...]], docs: tuple[str, str, str, str], as_torch: bool
) -> None: ...
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
    sink_logits: Sequence[float] = ...,
) -> tuple[_Array, _Array]: ...
def attention_weights(
    queries: _Array,
    keys: _Array,
    values: _Array,
    mask: Mask | None = None,
    *,
    scaling: float | None = None,
    causal: bool = False,
    attention_mask: Any = None,
    soft_cap: float | None = None,
    sink_logits: Sequence[float] = ...,
) -> tuple[_Array, _Array, tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]]: ...
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

class CudaMask:
    def __init__(self, mask: Mask, *, stream: int = 0) -> None: ...
    @property
    def shape(self) -> tuple[int, int, int, int]: ...
    @property
    def kind(self) -> str: ...
    @property
    def weighted(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    def nnz(self, *, stream: int = 0) -> int: ...
    def merge(
        self, other: CudaMask, rule: Literal["add", "max", "independent"] = "add", *, stream: int = 0
    ) -> CudaMask: ...
    def intersect(self, other: CudaMask, *, stream: int = 0) -> CudaMask: ...
    def subtract(self, other: CudaMask, *, stream: int = 0) -> CudaMask: ...
    def to_host(self, *, stream: int = 0) -> Mask: ...

class CudaPattern:
    @staticmethod
    def of_bytes(attended: Any, block_size: tuple[int, int] = (1, 1)) -> CudaPattern: ...
    @staticmethod
    def of_numbers(numbers: Any, block_size: int) -> CudaPattern: ...
    @staticmethod
    def of_band(first_query: int, kernel: int, stride: int, width: int) -> CudaPattern: ...
    @staticmethod
    def of_mask(mask: CudaMask) -> CudaPattern: ...

class CudaAttentionPlan:
    @overload
    def __init__(
        self,
        queries: Any,
        keys: Any,
        values: Any,
        mask: Mask,
        *,
        scaling: float,
        causal: bool = False,
        attention_mask: Any = None,
        soft_cap: float | None = None,
        sink_logits: Sequence[float] = ...,
        stream: int = 0,
    ) -> None: ...
    @overload
    def __init__(
        self,
        queries: Any,
        keys: Any,
        values: Any,
        mask: CudaPattern,
        *,
        scaling: float,
        causal: bool = False,
        attention_mask: Any = None,
        soft_cap: float | None = None,
        sink_logits: Sequence[float] = ...,
        stream: int = 0,
    ) -> None: ...
    def run(
        self,
        queries: Any,
        keys: Any,
        values: Any,
        output: Any,
        lse: Any,
        *,
        scaling: float,
        causal: bool = False,
        attention_mask: Any = None,
        stream: int = 0,
    ) -> None: ...
    @property
    def uses_tiles(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...

class CudaBackwardPlan:
    @overload
    def __init__(
        self,
        queries: Any,
        keys: Any,
        values: Any,
        mask: Mask,
        *,
        scaling: float,
        causal: bool = False,
        attention_mask: Any = None,
        soft_cap: float | None = None,
        sink_logits: Sequence[float] = ...,
        stream: int = 0,
    ) -> None: ...
    @overload
    def __init__(
        self,
        queries: Any,
        keys: Any,
        values: Any,
        mask: CudaPattern,
        *,
        scaling: float,
        causal: bool = False,
        attention_mask: Any = None,
        soft_cap: float | None = None,
        sink_logits: Sequence[float] = ...,
        stream: int = 0,
    ) -> None: ...
    @staticmethod
    def serves_patterns(queries: Any, keys: Any, values: Any) -> bool: ...
    @property
    def uses_tiles(self) -> bool: ...
    def run(
        self,
        queries: Any,
        keys: Any,
        values: Any,
        output: Any,
        lse: Any,
        d_output: Any,
        d_queries: Any,
        d_keys: Any,
        d_values: Any,
        *,
        scaling: float,
        causal: bool = False,
        attention_mask: Any = None,
        stream: int = 0,
    ) -> None: ...

class CudaKeyListAttention:
    def __init__(self, rows: int, *, stream: int = 0) -> None: ...
    def run(
        self,
        queries: Any,
        keys: Any,
        values: Any,
        indices: Any,
        counts: Any,
        p: Any,
        output: Any,
        lse: Any,
        *,
        scaling: float,
        soft_cap: float | None = None,
        stream: int = 0,
    ) -> None: ...

class CudaSparseDecoder:
    def __init__(self, rows: int, most_keys: int, *, stream: int = 0) -> None: ...
    def run(
        self,
        queries: Any,
        keys: Any,
        values: Any,
        output: Any,
        lse: Any,
        *,
        rules: Sequence[Rule],
        counts: Any = None,
        scaling: float,
        soft_cap: float | None = None,
        attention_mask: Any = None,
        sink_logits: Sequence[float] = ...,
        layer: int = 0,
        stream: int = 0,
    ) -> None: ...
    def reset(self) -> None: ...

def cuda_block_scores_serve(queries: Any, compressed_keys: Any, config: NsaConfig) -> bool: ...
def cuda_block_scores(
    queries: Any,
    compressed_keys: Any,
    lse: Any,
    scores: Any,
    *,
    first_query: int,
    scaling: float,
    config: NsaConfig,
    stream: int = 0,
) -> None: ...
def cuda_top_k(scores: Any, k: int, indices: Any, counts: Any, *, stream: int = 0) -> None: ...
def cuda_device_count() -> int: ...
def why_cuda_is_unavailable() -> str: ...

class NsaConfig:
    def __init__(
        self,
        *,
        compress_type: str = "weightedpool",
        kernel_size: int = 32,
        kernel_stride: int = 16,
        block_size: int = 64,
        topk: int = 16,
        init_blocks: int = 1,
        local_blocks: int = 2,
        window_size: int = 512,
    ) -> None: ...
    def compressed_length(self, tokens: int) -> int: ...
    @property
    def compress_type(self) -> str: ...
    @property
    def kernel_size(self) -> int: ...
    @property
    def kernel_stride(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def topk(self) -> int: ...
    @property
    def init_blocks(self) -> int: ...
    @property
    def local_blocks(self) -> int: ...
    @property
    def window_size(self) -> int: ...

class Rope:
    def __init__(self, head_dim: int, theta: float, scaling: Any = None) -> None: ...
    @property
    def inverse_frequencies(self) -> list[float]: ...

class NsaTape: ...

class NsaState:
    @property
    def lengths(self) -> list[int]: ...

class NsaModule:
    def __init__(
        self, config: NsaConfig, hidden_size: int, heads: int, kv_heads: int, rope: Rope, parameters: dict[str, Any]
    ) -> None: ...
    def forward(self, x: _Array, cu_seqlens: Sequence[int]) -> tuple[_Array, NsaTape]: ...
    def backward(self, tape: NsaTape, dy: _Array) -> tuple[_Array, dict[str, _Array]]: ...
    def start(self, sequences: int, capacity: int) -> NsaState: ...
    def extend(self, x: _Array, cu_seqlens: Sequence[int], state: NsaState) -> _Array: ...

def nsa_compress(
    x: Any, cu_seqlens: Sequence[int], weight: Any, pe: Any, config: NsaConfig
) -> tuple[Any, list[int]]: ...
def nsa_compress_backward(
    x: Any, cu_seqlens: Sequence[int], weight: Any, pe: Any, config: NsaConfig, dy: Any
) -> tuple[Any, Any, Any]: ...
def nsa_compressed_attention(
    queries: Any, keys: Any, values: Any, first_query: int, scaling: float | None, config: NsaConfig
) -> tuple[Any, Any, NDArray[np.int32]]: ...
def merge_states(output_a: _Array, lse_a: _Array, output_b: _Array, lse_b: _Array) -> tuple[_Array, _Array]: ...
def plan(queries: Any, keys: Any, mask: Mask, *, causal: bool = False) -> AttentionPlan: ...
def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int32]: ...
def load_tensors(path: str | PathLike[str]) -> dict[str, NDArray[Any]]: ...
def objective_at_density(error: float, density: float, percent: float) -> float: ...
def balanced_objective(error: float, density: float) -> float: ...
def masker_types() -> list[str]: ...
def schema(type: str = "") -> str: ...
def describe_masker(type: str) -> str: ...
def get_num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
