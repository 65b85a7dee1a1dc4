"""The names that users of sparse-attention-hub write, on Reticle's pipelines.

    from reticle.hub import LocalMaskerConfig, OracleTopKConfig, ResearchAttention, ResearchAttentionConfig, SinkMaskerConfig

    config = ResearchAttentionConfig(
        masker_configs=[SinkMaskerConfig(sink_size=128), LocalMaskerConfig(window_size=128), OracleTopKConfig(heavy_size=0.1)]
    )
    attention = ResearchAttention.create_from_config(config)
    output, _ = attention.custom_attention(
        module, queries, keys, values, attention_mask, scaling, dropout=0.0, sparse_meta_data={}, layer_idx=0
    )

Numbers are the reference's where docs/deviations.md does not say otherwise. `reticle.hf.attach` takes these configs as well:
`attach(model, generation=config.masker_configs)`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import reticle._core as _core
from reticle import maskers
from reticle._masker import MaskerConfig
from reticle.maskers import OracleTopKConfig as OracleTopKConfig
from reticle.metrics import DENSITY, OUTPUT_ERROR

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from reticle.metrics import MetricLogger

SinkMaskerConfig = maskers.SinkConfig
LocalMaskerConfig = maskers.LocalConfig
CausalMaskerConfig = maskers.CausalConfig
OracleTopPMaskerConfig = maskers.OracleTopPConfig
QuestTopKMaskerConfig = maskers.QuestTopKConfig
DoubleSparsityTopKMaskerConfig = maskers.DoubleSparsityTopKConfig
HashAttentionTopKMaskerConfig = maskers.HashAttentionTopKConfig
PQCacheConfig = maskers.PqCacheConfig
SocketMaskerConfig = maskers.SocketConfig
RandomSamplingMaskerConfig = maskers.RandomSamplingConfig
MagicPigConfig = maskers.MagicPigConfig
AdaptiveSamplingMaskerConfig = maskers.AdaptiveSamplingConfig


@dataclasses.dataclass
class ResearchAttentionConfig:
    """Maskers, in order; each adds to what those before it chose. No maskers: dense attention."""

    masker_configs: Sequence[MaskerConfig]


class ResearchAttention:
    """Sparse attention by a list of maskers. Serves all layers; what maskers keep lives in sparse_meta_data."""

    def __init__(self, config: ResearchAttentionConfig, metrics: MetricLogger | None = None) -> None:
        if not isinstance(config, ResearchAttentionConfig):
            raise TypeError(f"Expected ResearchAttentionConfig, got {type(config).__name__}")
        self.config = config
        self.pipeline = maskers.pipeline(config.masker_configs)
        self._metrics = metrics

    @classmethod
    def create_from_config(
        cls, config: ResearchAttentionConfig, metrics: MetricLogger | None = None
    ) -> ResearchAttention:
        """An attention of this config; `metrics` gets density and output error of every call.

        Raises:
            TypeError: for another type of config; ConfigError: for values that a masker refuses.
        """
        return cls(config, metrics)

    def custom_attention(
        self,
        module: Any,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(output, weights): output (batch, queries, heads, head_dim).

        Args:
            module: the attention layer; asked whether it trains, for dropout, which is not built. May be None.
            queries: (batch, heads, queries, head_dim); keys, values: (batch, kv_heads, keys, head_dim).
            attention_mask: additive, (batch, heads or 1, queries, keys); keys beyond those there are are ignored.
            sparse_meta_data: a dict that belongs to one sequence; maskers keep their state in it.
            layer_idx: default 0.
            output_attentions: return the weights too, (batch, heads, queries, keys), dense; else None.
            s_aux: one sink logit per head (gpt-oss).
        """
        if "sparse_meta_data" not in kwargs:
            raise ValueError("sparse_meta_data must be provided in kwargs while calling custom_attention()")
        if dropout and getattr(module, "training", False):
            raise NotImplementedError("attention dropout is not built; set it to 0")
        import torch

        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (queries, keys, values)):
            raise NotImplementedError("custom_attention gives no gradients; use torch.no_grad(), or reticle.attention")
        state = kwargs["sparse_meta_data"].setdefault(f"reticle {id(self)}", _core.SequenceState())
        if attention_mask is not None:
            attention_mask = attention_mask[..., : keys.shape[2]]
        sinks = kwargs.get("s_aux")
        call: dict[str, Any] = {
            "scaling": scaling,
            "attention_mask": attention_mask,
            "sink_logits": () if sinks is None else sinks.tolist(),
        }
        layer = kwargs.get("layer_idx", 0)
        stage: Any = "prefill" if queries.shape[2] == keys.shape[2] else "generation"
        compare = self._metrics is not None and self._metrics.wants(OUTPUT_ERROR)
        output, mask, measured = self.pipeline.measure(
            queries.detach(), keys.detach(), values.detach(), state, layer=layer, stage=stage, compare=compare, **call
        )
        if self._metrics is not None:
            if self._metrics.wants(DENSITY):
                self._metrics.log(DENSITY, measured["density"], layer=layer, stage=stage)
            if compare:
                self._metrics.log(OUTPUT_ERROR, measured["relative_error"], layer=layer, stage=stage)
        weights = None
        if kwargs.get("output_attentions"):
            _, _, (row_ptr, indices, of_entries) = _core.attention_weights(
                queries.detach(), keys.detach(), values.detach(), mask, **call
            )
            rows = torch.arange(len(row_ptr) - 1).repeat_interleave(torch.from_numpy(row_ptr).diff())
            weights = torch.zeros(len(row_ptr) - 1, keys.shape[2])
            weights[rows, torch.from_numpy(indices).long()] = torch.from_numpy(of_entries)
            weights = weights.reshape(mask.shape)
        return output.transpose(1, 2).contiguous(), weights
