"""Sparse attention in Hugging Face models, through transformers' attention interface.

    with reticle.hf.attach(model, generation="configs/sink_local_oracle_top_k.json") as attached:
        model.generate(**inputs, max_new_tokens=100)
    print(attached.generation.density)

A model qualifies when its attention layers call transformers' attention interface and know their layer: Llama,
Mistral, Qwen and most others since transformers 4.48. To add one that does not, let its attention forward call
`ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation](self, query, key, value, attention_mask, scaling=...)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

import reticle
import reticle._core as _core
import reticle.maskers
from reticle.metrics import DENSITY, OUTPUT_ERROR
from reticle.torch import Band

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from transformers import PreTrainedModel

    from reticle import InferenceState, SparseAttention, StageRecord
    from reticle.maskers import MaskerConfig
    from reticle.metrics import MetricLogger

    Config: TypeAlias = SparseAttention | str | Path | Mapping[str, Any] | Sequence[MaskerConfig] | None

NAME = "reticle"


def pipeline_of(config: Config) -> SparseAttention:
    """A pipeline from itself, a JSON file, a config as a dict, a list of masker configs, or None for dense attention."""
    if config is None:
        return _core.SparseAttention.from_json('{"maskers": []}')
    if isinstance(config, _core.SparseAttention):
        return config
    if isinstance(config, (str, Path)):
        return _core.SparseAttention.from_file(str(config))
    if isinstance(config, Mapping):
        return _core.SparseAttention.from_json(json.dumps(dict(config)))
    return reticle.maskers.pipeline(config)


class Attachment:
    """A model's attention as Reticle computes it, until `detach()`."""

    def __init__(
        self,
        model: PreTrainedModel,
        prefill: Config,
        generation: Config,
        keep_masks: bool,
        metrics: MetricLogger | None,
    ) -> None:
        self._metrics = metrics
        self._handler = _core.InferenceHandler(pipeline_of(prefill), pipeline_of(generation), keep_masks=keep_masks)
        self.state: InferenceState = _core.InferenceState()
        self._layers: list[Any] = [
            module for module in model.modules() if isinstance(getattr(module, "layer_idx", None), int)
        ]
        if not self._layers:
            raise ValueError(f"{type(model).__name__}: none of its modules has a layer_idx; see reticle.hf")
        for layer in self._layers:
            if getattr(layer, "_reticle", None) is not None:
                raise ValueError(f"{type(model).__name__}: is attached already; detach it first")
        self._first = min(layer.layer_idx for layer in self._layers)
        self._model = model
        # What was read of tensors that come again, layer by layer or step by step: on a GPU reading waits.
        self._positions: tuple[torch.Tensor | None, int] = (None, 0)
        self._sink_logits: dict[int, tuple[torch.Tensor, int, list[float]]] = {}
        self._before = model.config._attn_implementation
        for layer in self._layers:
            layer._reticle = self
        model.set_attn_implementation(NAME)

    @property
    def prefill(self) -> StageRecord:
        """What the prompts of the last sequences attended to."""
        return self.state.prefill

    @property
    def generation(self) -> StageRecord:
        """What was generated after them attended to."""
        return self.state.generation

    def length(self, position_ids: torch.Tensor) -> int:
        """Tokens so far."""
        if self._positions[0] is not position_ids:
            self._positions = (position_ids, int(position_ids.max()) + 1)
        return self._positions[1]

    def sink_logits(self, layer: int, logits: torch.Tensor) -> list[float]:
        """A layer's, as numbers."""
        known, version = self._sink_logits.get(layer), -1 if logits.is_inference() else logits._version
        if known is None or known[0] is not logits or known[1] != version:
            known = self._sink_logits[layer] = (logits, version, logits.tolist())
        return known[2]

    def detach(self) -> None:
        """Gives the model its own attention back. Records stay."""
        for layer in self._layers:
            layer._reticle = None
        self._layers = []
        self._model.set_attn_implementation(self._before)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def begin(self, layer: int, *, prompt: bool) -> None:
        """A layer is called: when it is the first one, with a prompt, new sequences begin."""
        if prompt and layer == self._first:
            self.state.reset()

    def attend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, call: dict[str, Any]
    ) -> torch.Tensor:
        """(batch, heads, queries, head_dim); `call` is what the model's layer says of its scores."""
        prompt = queries.shape[2] == keys.shape[2]
        stage: Any = "prefill" if prompt else "generation"
        output, _ = self._handler.attend(queries, keys, values, self.state, layer=layer, stage=stage, **call)
        if self._metrics is not None:
            where = {"layer": layer, "stage": stage, "keys": keys.shape[2]}
            if self._metrics.wants(DENSITY):
                record = self.prefill if prompt else self.generation
                self._metrics.log(DENSITY, 1 - record.sparsity[-1], **where)
            if self._metrics.wants(OUTPUT_ERROR):
                dense, _ = reticle.attention(queries, keys, values, causal=True, **call)
                error = (dense.double() - output.double()).norm() / dense.double().norm().clamp_min(1e-300)
                self._metrics.log(OUTPUT_ERROR, error.item(), **where)
        return output


def _forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    **_others: object,
) -> tuple[torch.Tensor, None]:
    attached: Attachment | None = getattr(module, "_reticle", None)
    if attached is None:
        raise RuntimeError('this model\'s attention is "reticle", but nothing is attached; call reticle.hf.attach')
    if dropout:
        raise NotImplementedError("attention dropout is not built; set attention_dropout to 0")
    if torch.is_grad_enabled() and query.requires_grad:
        raise NotImplementedError("attached models generate; for gradients use reticle.attention, or torch.no_grad()")
    length = key.shape[2] if position_ids is None else attached.length(position_ids)
    if query.shape[2] < key.shape[2] and (length if attention_mask is None else attention_mask.shape[1]) < key.shape[2]:
        raise NotImplementedError(
            f"{key.shape[2]} keys after {length} tokens: a static cache, of which attention cannot tell how full it is; "
            "use a dynamic one"
        )
    attached.begin(module.layer_idx, prompt=query.shape[2] == key.shape[2])
    call: dict[str, Any] = {
        "scaling": scaling,
        "attention_mask": _additive(attention_mask, key.shape[2]),
        "soft_cap": softcap,
        "sink_logits": () if s_aux is None else attached.sink_logits(module.layer_idx, s_aux),
    }
    output: torch.Tensor
    if sliding_window is not None and key.shape[2] >= sliding_window:
        # The cache drops keys from here on, so what maskers know of them ends.
        window = Band(width=sliding_window, first_query=key.shape[2] - query.shape[2])
        output, _ = reticle.attention(query, key, value, window, **call)
    else:
        output = attached.attend(module.layer_idx, query, key, value, call)
    return output.transpose(1, 2), None


def _additive(padding: torch.Tensor | None, keys: int) -> torch.Tensor | None:
    """What transformers says of padding, (batch, tokens), as it is added to scores: (batch, 1, 1, keys)."""
    if padding is None:
        return None
    kept = padding[:, -keys:].to(torch.bool)
    return torch.zeros(kept.shape, device=kept.device).masked_fill(~kept, -torch.inf)[:, None, None]


# Masks stay (batch, keys): causality is the handler's, and nothing of size queries x keys is made.
AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, flash_attention_mask)


def attach(
    model: PreTrainedModel,
    *,
    prefill: Config = None,
    generation: Config = None,
    keep_masks: bool = False,
    metrics: MetricLogger | None = None,
) -> Attachment:
    """Computes a model's attention by Reticle: prompts by `prefill`, what is generated after them by `generation`.

    Each is a SparseAttention, a JSON file, a config as a dict, a list of reticle.maskers' configs, or None for dense
    attention. Works with `generate`, dynamic caches, grouped queries, and batches padded on the left. What maskers keep
    starts anew with every prompt, and one prompt (or batch) runs at a time. A layer with a sliding window follows the
    pattern while the sequence fits into the window, and attends to all of its window after that. `keep_masks` records
    every call's mask, for pictures; `metrics` gets the density and output error of every call. A model on a GPU computes
    attention there, while maskers choose on the host (see reticle.gpu).

    Raises, when the model runs: NotImplementedError for static caches, attention dropout and gradients.
    """
    return Attachment(model, prefill, generation, keep_masks, metrics)
