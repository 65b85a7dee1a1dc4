"""The public names of sparse-attention-hub, implemented by Reticle's pipelines.

    from reticle.hub import LocalMaskerConfig, OracleTopKConfig, ResearchAttention, ResearchAttentionConfig, SinkMaskerConfig

    config = ResearchAttentionConfig(
        masker_configs=[SinkMaskerConfig(sink_size=128), LocalMaskerConfig(window_size=128), OracleTopKConfig(heavy_size=0.1)]
    )
    attention = ResearchAttention.create_from_config(config)
    output, weights = attention.custom_attention(
        module, queries, keys, values, attention_mask, scaling, dropout=0.0, sparse_meta_data={}, layer_idx=0
    )

Programs change `sparse_attention_hub` to `reticle.hub` in their imports: the module paths exist, each with all names.
Results equal the reference's except where docs/deviations.md says otherwise. `reticle.hf.attach` accepts these configs
too: `attach(model, generation=config.masker_configs)`.
"""

from __future__ import annotations

import sys
import types

from reticle.hub.adapters import (
    ModelAdapter,
    ModelAdapterHF,
    ModelHubAdapterInterface,
    Request,
    RequestResponse,
    SparseAttentionAdapterInterface,
)
from reticle.hub.attention import (
    ResearchAttention,
    ResearchAttentionConfig,
    SparseAttention,
    SparseAttentionConfig,
    SparseAttentionMetadata,
    get_attention_denominator,
    get_attention_numerator,
    get_masked_attention_output,
    get_true_attention_output,
)
from reticle.hub.channels import (
    ChannelConfig,
    extract_layer_channels,
    load_sorted_channels_from_file,
    validate_channel_data,
)
from reticle.hub.configs import (
    AdaptiveSamplingMaskerConfig,
    CausalMaskerConfig,
    DoubleSparsityTopKMaskerConfig,
    FixedMaskerConfig,
    HashAttentionTopKMaskerConfig,
    LocalMaskerConfig,
    MagicPigConfig,
    MaskerConfig,
    OracleTopKConfig,
    OracleTopPMaskerConfig,
    PQCacheConfig,
    QuestTopKMaskerConfig,
    RandomSamplingMaskerConfig,
    SamplingMaskerConfig,
    SinkMaskerConfig,
    SocketMaskerConfig,
    TopKMaskerConfig,
    TopPMaskerConfig,
)
from reticle.hub.helpers import (
    attention_mask_to_allowed_prob,
    compute_page_min_max,
    convert_usa_weights_to_hash_attention,
    create_hat_weights_file_from_usa,
    create_sampling_mask_with_per_head_budget,
    ip2l2_augment,
    ip2l2_augment_queries,
    load_hat_weights,
    pages_to_token_mask,
    pages_valid,
    pseudo_quantize,
    quest_page_scores,
    repeat_kv,
)
from reticle.hub.logger import LogEvent, MicroMetricLogger
from reticle.hub.mask import Mask, apply_inv_mask_sum
from reticle.hub.maskers import (
    AdaptiveSamplingMasker,
    AttentionTensorDimensions,
    CausalMasker,
    DoubleSparsityTopKMasker,
    FixedMasker,
    HashAttentionTopKMasker,
    LocalMasker,
    MagicPig,
    MaskerRegistry,
    OracleTopK,
    OracleTopPMasker,
    PQCache,
    QuestTopKMasker,
    RandomSamplingMasker,
    ResearchMasker,
    SamplingMasker,
    SinkMasker,
    SocketMasker,
    TopKMasker,
    TopPMasker,
)
from reticle.hub.plotting import Granularity, PlotGenerator

__all__ = [
    "AdaptiveSamplingMasker",
    "AdaptiveSamplingMaskerConfig",
    "AttentionTensorDimensions",
    "CausalMasker",
    "CausalMaskerConfig",
    "ChannelConfig",
    "DoubleSparsityTopKMasker",
    "DoubleSparsityTopKMaskerConfig",
    "FixedMasker",
    "FixedMaskerConfig",
    "Granularity",
    "HashAttentionTopKMasker",
    "HashAttentionTopKMaskerConfig",
    "LocalMasker",
    "LocalMaskerConfig",
    "LogEvent",
    "MagicPig",
    "MagicPigConfig",
    "Mask",
    "MaskerConfig",
    "MaskerRegistry",
    "MicroMetricLogger",
    "ModelAdapter",
    "ModelAdapterHF",
    "ModelHubAdapterInterface",
    "OracleTopK",
    "OracleTopKConfig",
    "OracleTopPMasker",
    "OracleTopPMaskerConfig",
    "PQCache",
    "PQCacheConfig",
    "PlotGenerator",
    "QuestTopKMasker",
    "QuestTopKMaskerConfig",
    "RandomSamplingMasker",
    "RandomSamplingMaskerConfig",
    "Request",
    "RequestResponse",
    "ResearchAttention",
    "ResearchAttentionConfig",
    "ResearchMasker",
    "SamplingMasker",
    "SamplingMaskerConfig",
    "SinkMasker",
    "SinkMaskerConfig",
    "SocketMasker",
    "SocketMaskerConfig",
    "SparseAttention",
    "SparseAttentionAdapterInterface",
    "SparseAttentionConfig",
    "SparseAttentionMetadata",
    "TopKMasker",
    "TopKMaskerConfig",
    "TopPMasker",
    "TopPMaskerConfig",
    "apply_inv_mask_sum",
    "attention_mask_to_allowed_prob",
    "compute_page_min_max",
    "convert_usa_weights_to_hash_attention",
    "create_hat_weights_file_from_usa",
    "create_sampling_mask_with_per_head_budget",
    "extract_layer_channels",
    "get_attention_denominator",
    "get_attention_numerator",
    "get_masked_attention_output",
    "get_true_attention_output",
    "ip2l2_augment",
    "ip2l2_augment_queries",
    "load_hat_weights",
    "load_sorted_channels_from_file",
    "pages_to_token_mask",
    "pages_valid",
    "pseudo_quantize",
    "quest_page_scores",
    "repeat_kv",
    "validate_channel_data",
]

_RESEARCH = "sparse_attention.research_attention"
_FIXED = (
    "basic_fixed",
    "double_sparsity_top_k",
    "hashattention_top_k",
    "oracle_top_k",
    "oracle_top_p",
    "pq_top_k",
    "quest_top_k",
    "socket_top_k",
)
_UTILS = ("common_utils", "double_sparsity_utils", "pq_utils", "quest_utils")
_SAMPLING = ("adaptive_sampling", "magic_pig", "random_sampling")

# Module paths of sparse-attention-hub. Every path has every name.
_PATHS = (
    "sparse_attention",
    "sparse_attention.base",
    "sparse_attention.metadata",
    "sparse_attention.utils",
    "sparse_attention.utils.hashattention_utils",
    "sparse_attention.utils.kv_utils",
    "sparse_attention.utils.mask",
    "sparse_attention.utils.mask_attention_utils",
    "sparse_attention.utils.pq_utils",
    _RESEARCH,
    f"{_RESEARCH}.base",
    f"{_RESEARCH}.maskers",
    f"{_RESEARCH}.maskers.base",
    f"{_RESEARCH}.maskers.fixed",
    f"{_RESEARCH}.maskers.fixed.base",
    f"{_RESEARCH}.maskers.fixed.implementations",
    *(f"{_RESEARCH}.maskers.fixed.implementations.{name}" for name in _FIXED),
    f"{_RESEARCH}.maskers.fixed.implementations.utils",
    *(f"{_RESEARCH}.maskers.fixed.implementations.utils.{name}" for name in _UTILS),
    f"{_RESEARCH}.maskers.sampling",
    f"{_RESEARCH}.maskers.sampling.base",
    f"{_RESEARCH}.maskers.sampling.implementations",
    *(f"{_RESEARCH}.maskers.sampling.implementations.{name}" for name in _SAMPLING),
    "metric_logging",
    "metric_logging.logger",
    "plotting.generator",
    "plotting.granularity",
    "adapters.base",
    "adapters.huggingface",
)


def _add_module(path: str) -> None:
    parent, _, name = f"{__name__}.{path}".rpartition(".")
    module = types.ModuleType(f"{parent}.{name}", f"sparse-attention-hub's {path}: see reticle.hub.")
    vars(module).update({exported: globals()[exported] for exported in __all__})
    sys.modules[module.__name__] = module
    setattr(sys.modules[parent], name, module)


for _path in _PATHS:
    _add_module(_path)
