"""Written by tools/update_docs from the maskers' own fields."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reticle import SparseAttention
from reticle._masker import MaskerConfig as MaskerConfig

def class_name(masker: str) -> str: ...
def config_class(masker: str) -> type[MaskerConfig]: ...
def from_dict(config: Mapping[str, Any]) -> MaskerConfig: ...
def pipeline(
    maskers: Iterable[MaskerConfig] | None = None,
    *,
    prefill: Iterable[MaskerConfig] = (),
    generation: Iterable[MaskerConfig] = (),
    causal: bool = False,
    seed: int = 0,
    merge: str = "add",
) -> SparseAttention: ...
def to_json(config: Mapping[str, Any]) -> str: ...
def stub() -> str: ...

@dataclass(frozen=True, kw_only=True)
class AShapeConfig(MaskerConfig):
    n_init: int | float = 128
    n_local: int | float = 3968
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class AdaSnapKvConfig(MaskerConfig):
    token_capacity: int = 1024
    approximation_window: int = 256
    kernel_size: int = 7
    local_window: int = 128
    prefix_tokens: int = 4
    min_head_capacity_ratio: float = 0.2
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class AdaptiveSamplingConfig(MaskerConfig):
    base_rate_sampling: int | float = 0.1
    epsilon: float = 0.1
    delta: float = 0.1
    init_offset: int | float = 0
    local_offset: int | float = 0
    replacement: bool = False
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class AdaptiveVerticalSlashConfig(MaskerConfig):
    alpha: float = 0.9
    approximation_size: int = 512
    min_budget: int = 256
    attention_sinks: int = 4
    window_size: int = 64
    block_size: int = 1
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class BigBirdConfig(MaskerConfig):
    block_size: int = 64
    global_blocks: int = 2
    window_blocks: int = 3
    random_blocks: int = 3
    seed: int = 0
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class BlockListConfig(MaskerConfig):
    file: str
    block_q: int = 128
    block_k: int = 128
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class BlockSparseConfig(MaskerConfig):
    chunk_size: int = 64
    top_chunks: int = 16
    sink_chunks: int = 1
    recent_chunks: int = 0
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class CausalConfig(MaskerConfig):
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class DocumentConfig(MaskerConfig):
    lengths: Sequence[int] = ...
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class DoubleSparsityTopKConfig(MaskerConfig):
    heavy_size: int | float = 0.1
    sorted_channel_file: str
    group_factor: int = 16
    label_bits: int = 4
    channel_selection: Literal["qk_proj", "q_proj", "k_proj"] = 'qk_proj'
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class DsaTopKConfig(MaskerConfig):
    top_k: int | float = 2048
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class FlexPrefillConfig(MaskerConfig):
    gamma: float = 0.9
    tau: float = 0.1
    block_size: int = 128
    min_budget: int = 1
    max_budget: int | None = None
    tokens_per_block: int | None = None
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class H2oConfig(MaskerConfig):
    heavy_size: int | float = 0.1
    recent_size: int | float = 0.1
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class HashAttentionTopKConfig(MaskerConfig):
    heavy_size: int | float = 0.1
    hat_bits: int = 32
    hat_mlp_layers: int = 3
    hat_mlp_hidden_size: int = 128
    hat_mlp_activation: Literal["relu", "silu", "gelu", "tanh"] = 'silu'
    hat_weight_file: str
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class InfLlmConfig(MaskerConfig):
    block_size: int = 128
    n_init: int = 128
    n_local: int = 4096
    top_k: int = 16
    repr_top_k: int = 4
    exc_block_size: int = 512
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class LocalConfig(MaskerConfig):
    window_size: int | float = 128
    dilation: int = 1
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class LokiTopKConfig(MaskerConfig):
    pca_file: str
    heavy_size: int | float = 0.25
    rank: int | float = 0.25
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class MagicPigConfig(MaskerConfig):
    lsh_l: int = 75
    lsh_k: int = 8
    center: bool = True
    packing: Literal["int64", "float32"] = 'int64'
    seed: int = 42
    min_collisions: int = 1
    lift: bool = True
    center_query: bool = True
    mean_skips_first: int = 0
    mean_skips_last: int = 0
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class MobaConfig(MaskerConfig):
    block_size: int = 512
    top_k: int = 3
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class NsaTopKConfig(MaskerConfig):
    kernel_size: int = 32
    kernel_stride: int = 16
    block_size: int = 64
    top_k: int = 16
    init_blocks: int = 1
    local_blocks: int = 2
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class OracleTopKConfig(MaskerConfig):
    heavy_size: int | float = 0.1
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class OracleTopPConfig(MaskerConfig):
    top_p: float = 0.9
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class PqCacheConfig(MaskerConfig):
    heavy_size: int | float = 0.1
    pq_group_factor: int = 8
    pq_bits: int = 6
    kmeans_iter: int = 10
    init_offset: int = 0
    metric: Literal["euclidean", "ip"] = 'euclidean'
    seed: int = 0
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class PyramidKvConfig(MaskerConfig):
    num_layers: int
    token_capacity: int = 4096
    approximation_window: int = 32
    kernel_size: int = 5
    pooling: Literal["avg", "max"] = 'avg'
    beta: int = 20
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class QuestTopKConfig(MaskerConfig):
    heavy_size: int | float = 0.1
    page_size: int = 16
    label_bits: int = 16
    min_pages: int = 3
    share_within_group: bool = False
    keep_current_page: bool = False
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class RandomSamplingConfig(MaskerConfig):
    sampling_rate: float = 0.1
    replacement: bool = False
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class SinkConfig(MaskerConfig):
    sink_size: int | float = 128
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class SnapKvConfig(MaskerConfig):
    token_capacity: int = 1024
    approximation_window: int = 64
    kernel_size: int = 7
    pooling: Literal["avg", "max"] = 'avg'
    local_window: int | None = None
    prefix_tokens: int = 0
    pool_window: bool = True
    share_within_group: bool = False
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class SocketConfig(MaskerConfig):
    heavy_size: int | float = 0.1
    K: int = 4
    L: int = 1
    tau: float = 0.3
    seed: int = 0
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class StridedConfig(MaskerConfig):
    stride: int = 128
    pattern: Literal["strided", "fixed"] = 'strided'
    summary_size: int = 8
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class TopKConfig(MaskerConfig):
    heavy_size: int | float = 0.1
    scorer: Literal["exact", "value_aware", "page_bounds", "page_means", "key_norm"] = 'exact'
    page_size: int = 16
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class TopPConfig(MaskerConfig):
    top_p: float = 0.9
    scorer: Literal["exact", "value_aware", "page_bounds", "page_means", "key_norm"] = 'exact'
    page_size: int = 16
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class TovaConfig(MaskerConfig):
    token_capacity: int = 1024
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class TriShapeConfig(MaskerConfig):
    n_init: int | float = 128
    n_local: int | float = 3968
    n_last: int | float = 100
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class VerticalSlashConfig(MaskerConfig):
    vertical_size: int | float = 1000
    slash_size: int | float = 6096
    approximation_window: int = 64
    attention_sinks: int = 30
    window_size: int = 100
    block_size: int = 1
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None

@dataclass(frozen=True, kw_only=True)
class XAttentionConfig(MaskerConfig):
    stride: int = 8
    threshold: float = 0.9
    block_size: int = 128
    norm: float = 1.0
    layers: Sequence[int | str] | None = None
    heads: Sequence[int | str] | None = None
