"""sparse-attention-hub's ResearchAttention, and the functions of attention over a mask that it consists of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import reticle
import reticle._core as _core
from reticle._layer_words import not_understood
from reticle._metrics import DENSITY, OUTPUT_ERROR
from reticle.hub.logger import MicroMetricLogger
from reticle.hub.mask import Mask
from reticle.hub.maskers import BuiltIn, Chain, ResearchMasker, of_keys
from reticle.torch import dense_weights, without_gradients

if TYPE_CHECKING:
    from reticle._metrics import MetricLog
    from reticle.hub.configs import MaskerConfig

_METRICS = {DENSITY: "research_attention_density", OUTPUT_ERROR: "research_attention_output_error"}
#: Keyword arguments that would change the scores; refused even if a masker reads them.
_SCORE_ARGUMENTS = ("softcap", "position_bias")
for _name in _METRICS.values():
    MicroMetricLogger.register_metric(_name, float)


@dataclass
class SparseAttentionConfig:
    """Base of the configs of attentions."""


@dataclass
class ResearchAttentionConfig(SparseAttentionConfig):
    """A list of maskers; each adds to the keys that earlier ones chose. Without maskers, attention is dense."""

    masker_configs: Sequence[MaskerConfig]


class SparseAttentionMetadata(dict[str, Any]):
    """The masker states of one sequence: the type of `sparse_meta_data`, for which any dict may be passed."""


class SparseAttention(ABC):
    """Base of attentions."""

    def __init__(self, sparse_attention_config: SparseAttentionConfig) -> None:
        self.sparse_attention_config = sparse_attention_config

    @abstractmethod
    def custom_attention(
        self,
        module: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Computes attention; returns (output, weights)."""

    @classmethod
    def create_from_config(cls, config: SparseAttentionConfig) -> SparseAttention:
        """Makes the attention of a config.

        Raises:
            TypeError: when no attention has a config of this type.
        """
        return ResearchAttention.create_from_config(config)


class ResearchAttention(SparseAttention):
    """Sparse attention by a list of maskers, which may be modified. One object is used for all layers; masker states
    live in sparse_meta_data."""

    def __init__(
        self,
        sparse_attention_config: SparseAttentionConfig,
        maskers: Sequence[ResearchMasker],
        *,
        metrics: MetricLog | None = None,
    ) -> None:
        """
        Raises:
            ValueError: for more than one sampling masker, as in sparse-attention-hub: the probabilities of a second
                would refer to the keys that the first left over.
        """
        super().__init__(sparse_attention_config)
        self.maskers = maskers
        self._metrics = metrics

    @property
    def maskers(self) -> Sequence[ResearchMasker]:
        """The maskers, in order."""
        return self._chain.maskers

    @maskers.setter
    def maskers(self, maskers: Sequence[ResearchMasker]) -> None:
        self._chain = Chain(list(maskers))

    @classmethod
    def create_from_config(cls, config: SparseAttentionConfig, metrics: MetricLog | None = None) -> ResearchAttention:
        """Makes the attention of a config; `metrics` logs the density and the output error of every call, as
        MicroMetricLogger does once it is configured.

        Raises:
            TypeError: for a config of another type; ValueError: for two samplers, or configs without a masker;
                ConfigError (a ValueError): for values that a masker refuses.
        """
        if not isinstance(config, ResearchAttentionConfig):
            raise TypeError(f"Expected ResearchAttentionConfig, got {type(config).__name__}")
        maskers = [ResearchMasker.create_masker_from_config(each) for each in config.masker_configs]
        return cls(config, maskers, metrics=metrics)

    def custom_attention(
        self,
        module: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        sparse_meta_data: dict[Any, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(output, weights): output (batch, queries, heads, head_dim), weights (batch, heads, queries, keys), dense.

        Gradients reach queries, keys and values through the output; the choice of keys and the weights have none.

        Args:
            module: the attention layer; its training flag enables dropout. May be None.
            queries: (batch, heads, queries, head_dim); keys, values: (batch, kv_heads, keys, head_dim).
            attention_mask: additive, (batch, heads or 1, queries, keys); entries beyond the number of keys are ignored.
            dropout: the share of weights that is dropped, the others being scaled up, while `module` trains.
            sparse_meta_data: required: a dict that belongs to one sequence; maskers keep their state in it.
            layer_idx: index of the layer; default 0.
            output_attentions: False returns None for the weights, which take batch * heads * queries * keys numbers.
            s_aux: one sink logit per head (gpt-oss).
            others: passed to maskers written in Python.

        Raises:
            ValueError: without sparse_meta_data. NotImplementedError: for unknown keyword arguments that change
                attention.
        """
        if sparse_meta_data is None:
            raise ValueError("sparse_meta_data must be provided in kwargs while calling custom_attention()")
        kwargs["sparse_meta_data"] = sparse_meta_data
        others = dict(kwargs)
        wants_weights = others.pop("output_attentions", True)
        _refuse_unknown(kwargs, [masker for masker in self.maskers if not isinstance(masker, BuiltIn)])
        tensors = (keys, queries, values, attention_mask, scaling, dropout)
        mask = self._chain.select(*tensors, **others)
        inputs = (module, queries, keys, values, attention_mask, scaling)
        sinks = kwargs.get("s_aux")
        output, weights = _attend(*inputs, dropout, mask, sinks, weights=wants_weights is not False)
        self._log(DENSITY, kwargs, mask.get_density)
        self._log(OUTPUT_ERROR, kwargs, lambda: _error(output, _attend(*inputs, 0.0, None, sinks)[0]))
        return output, weights

    def _log(self, metric: str, call: dict[str, Any], measure: Any) -> None:
        """Logs a metric of the current call to each logger that wants it; computes it only if there is one."""
        theirs = MicroMetricLogger()
        for_us = self._metrics is not None and self._metrics.wants(metric)
        for_them = theirs.is_metric_enabled(_METRICS[metric])
        if not (for_us or for_them):
            return
        value = measure()
        if for_us and self._metrics is not None:
            self._metrics.log(metric, value, layer=call.get("layer_idx", 0))
        if for_them:
            theirs.log(_METRICS[metric], value, metadata={"layer_idx": call.get("layer_idx", 0)})


def _refuse_unknown(kwargs: dict[str, Any], listeners: Sequence[Any] = ()) -> None:
    """Refuses keyword arguments of a layer that neither attention nor a masker reads."""
    known = ("sparse_meta_data", "layer_idx", "s_aux", "output_attentions")
    for word in not_understood({word: given for word, given in kwargs.items() if word not in known}):
        if word in _SCORE_ARGUMENTS or not listeners:
            raise NotImplementedError(f"{word} is not supported; leave it out, or use a masker that takes it")


def _error(output: Tensor, dense: Tensor) -> float:
    """||dense - output|| / ||dense||."""
    difference = (dense.detach().double() - output.detach().double()).norm()
    return float(difference / dense.detach().double().norm().clamp_min(1e-300))


def _after_dropout(module: Any, dropout: float, mask: Mask) -> _core.Mask:
    """The mask without the positions that dropout removes, drawn from torch's generator. The reference normalises
    weights after dropout, so its scale cancels, and the result is attention over fewer keys."""
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout is {dropout}; expected a probability in [0, 1]")
    if not (dropout and getattr(module, "training", False)):
        return mask.pattern
    kept = torch.nn.functional.dropout(torch.ones(mask.shape), dropout) > 0
    return mask.pattern & _core.Mask.dense(kept.numpy())


def _attend(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float,
    mask: Mask | None,
    sinks: Tensor | None,
    *,
    weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(output (batch, queries, heads, head_dim), dense weights if requested, else None); mask None: over all keys."""
    for name, given in (("attention_mask", attention_mask), ("s_aux", sinks)):
        if given is not None and given.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(f"{name}: requires gradients, which it gets none of; detach it")
    if mask is None:
        shape = (*queries.shape[:3], keys.shape[2])
        mask = Mask.create_full_mask(shape, device=queries.device)
    pattern = _after_dropout(module, dropout, mask)
    call: dict[str, Any] = {
        "scaling": scaling,
        "attention_mask": of_keys(attention_mask, keys),
        "sink_logits": () if sinks is None else sinks.tolist(),
    }
    output, _ = reticle.attention(queries, keys, values, pattern, **call)
    dense = dense_weights(queries, keys, values, pattern, **call) if weights else None
    return output.transpose(1, 2).contiguous(), dense


def get_masked_attention_output(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float,
    sparse_attention_mask: Mask,
    return_attention_weights: bool = False,
    **kwargs: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over the entries of a mask, each weighted by 1 / p: output (batch, queries, heads, head_dim), and with
    `return_attention_weights` the weights (batch, heads, queries, keys). Arguments are those of
    `ResearchAttention.custom_attention`; of `kwargs`, `s_aux` is used."""
    _refuse_unknown(kwargs)
    output, weights = _attend(
        module,
        queries,
        keys,
        values,
        attention_mask,
        scaling,
        dropout,
        sparse_attention_mask,
        kwargs.get("s_aux"),
        weights=return_attention_weights,
    )
    return output if weights is None else (output, weights)


def get_true_attention_output(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Dense attention, and its weights."""
    _refuse_unknown(kwargs)
    sinks = kwargs.get("s_aux")
    return _attend(module, queries, keys, values, attention_mask, scaling, dropout, None, sinks, weights=True)


def get_attention_denominator(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float,
    sparse_attention_mask: Mask,
    **kwargs: Any,
) -> Tensor:
    """The sum of exp(score - m) / p over a mask's entries, (batch, heads, queries, 1); m is the query's largest score
    among them, 0 for a query without entries. Sink logits are not included."""
    _refuse_unknown(kwargs)
    pattern = _after_dropout(module, dropout, sparse_attention_mask)
    bias = of_keys(attention_mask, keys)
    # Weights are exp(score) / (p * sum), so the largest weight * p is exp(m) / sum.
    p = torch.from_numpy(pattern.to_dense()).to(queries.device)
    largest = (dense_weights(queries, keys, keys, pattern, scaling=scaling, attention_mask=bias) * p).amax(
        -1, keepdim=True
    )
    return torch.where(largest > 0, 1 / largest, 0)


def get_attention_numerator(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float,
    sparse_attention_mask: Mask,
    **kwargs: Any,
) -> Tensor:
    """The sum of value * exp(score - m) / p over a mask's entries, (batch, heads, queries, head_dim), to be divided by
    `get_attention_denominator`. With dropout each of the two functions draws separately, as in sparse-attention-hub."""
    _refuse_unknown(kwargs)
    pattern = _after_dropout(module, dropout, sparse_attention_mask)
    drawn = Mask.from_pattern(pattern, device=queries.device)
    inputs = (None, queries, keys, values, attention_mask, scaling, 0.0, drawn)
    with torch.no_grad():
        output = _attend(*inputs, None)[0].transpose(1, 2)
        sums = get_attention_denominator(None, queries, keys, attention_mask, scaling, 0.0, drawn)
    why = "get_attention_numerator has no gradients; those of get_masked_attention_output are there"
    return without_gradients(output.float() * sums, why, queries, keys, values)
