"""Pipelines of maskers over torch tensors on a GPU.

`SparseAttention.run`, `SparseAttention.mask` and `InferenceHandler.attend` come here when tensors lie on a GPU, and so do
models that `reticle.hf` attaches to. Attention runs on the GPU. Where a handler decodes over `sink`, `local` and
`oracle_top_k` after a dense prompt, so does the choice of keys. Any other masker chooses on the host, with a warning: keys
and values are copied to it once, when a sequence begins, and then token by token, and the mask goes to the GPU with every
call.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import reticle._core as _core
import reticle.torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reticle import InferenceHandler, InferenceState, Mask, SequenceState, SparseAttention


class HostCopies:
    """One sequence's keys and values on the host, layer by layer, with room to grow."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor, int]] = {}

    def follow(self, layer: int, keys: Tensor, values: Tensor, *, begins: bool) -> tuple[Tensor, Tensor]:
        """What the host has, brought up to date: new tokens are copied, or all of them when a sequence begins."""
        length = keys.shape[2]
        held = self._layers.get(layer)
        if begins or held is None or held[2] >= length or not _same_sequence(held, keys, values):
            held = (_with_room(keys, 0), _with_room(values, 0), 0)
        known = held[2]
        if held[0].shape[2] < length:
            room = length // 4
            grown = (_with_room(keys, room), _with_room(values, room), known)
            for new, old in zip(grown[:2], held[:2], strict=True):
                new[:, :, :known] = old[:, :, :known]
            held = grown
        for copy, tensor in zip(held[:2], (keys, values), strict=True):
            copy[:, :, known:length].copy_(tensor[:, :, known:])
        self._layers[layer] = (held[0], held[1], length)
        return held[0][:, :, :length], held[1][:, :, :length]


def _with_room(tensor: Tensor, room: int) -> Tensor:
    batch, heads, length, width = tensor.shape
    return torch.empty((batch, heads, length + room, width), dtype=tensor.dtype)


def _same_sequence(held: tuple[Tensor, Tensor, int], keys: Tensor, values: Tensor) -> bool:
    return all(
        copy.dtype == tensor.dtype and copy.shape[:2] == tensor.shape[:2] and copy.shape[3] == tensor.shape[3]
        for copy, tensor in zip(held[:2], (keys, values), strict=True)
    )


def _on_host(
    queries: Tensor, keys: Tensor, values: Tensor, state: Any, call: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """What a masker is called with."""
    warnings.warn(
        "maskers choose on the host, and keys are copied to it; reticle.torch.TopKAttention chooses on the GPU",
        RuntimeWarning,
        stacklevel=4,
    )
    copies: HostCopies | None = getattr(state, "_host_copies", None)
    if copies is None:
        copies = state._host_copies = HostCopies()
    begins = queries.shape[2] == keys.shape[2]
    on_host = copies.follow(call["layer"], keys.detach(), values.detach(), begins=begins)
    extras: Mapping[str, Any] | None = call["extras"]
    own = dict(call)
    if extras is not None:
        own["extras"] = {name: _to_host(extra) for name, extra in extras.items()}
    own["attention_mask"] = _to_host(call["attention_mask"])
    return (queries.detach().cpu(), *on_host), own


def _to_host(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def mask(
    pipeline: SparseAttention, queries: Tensor, keys: Tensor, values: Tensor, state: SequenceState, **call: Any
) -> Mask:
    """`SparseAttention.mask`, of tensors on a GPU."""
    tensors, own = _on_host(queries, keys, values, state, call)
    return pipeline.mask(*tensors, state, **own)


def run(
    pipeline: SparseAttention,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    state: SequenceState,
    *,
    soft_cap: float | None,
    sink_logits: Sequence[float],
    **call: Any,
) -> tuple[Tensor, Mask]:
    """`SparseAttention.run`, of tensors on a GPU. The output has no gradient."""
    tensors, own = _on_host(queries, keys, values, state, call)
    chosen = pipeline.mask(*tensors, state, **own)
    options: Any = {"attention_mask": own["attention_mask"], "soft_cap": soft_cap, "sink_logits": sink_logits}
    output, _ = reticle.torch.on_gpu(queries, keys, values, chosen, scaling=call["scaling"], **options)
    return output, chosen


@dataclass(frozen=True)
class BestKeys:
    """What reticle.torch.TopKAttention chooses: counts, or fractions of the keys."""

    sinks: float = 0
    window: float = 0
    heavy: float = 0

    def of(self, keys: int) -> dict[str, int]:
        """Counts, of so many keys."""
        sizes = {"sinks": self.sinks, "window": self.window, "heavy": self.heavy}
        return {name: min(keys, int(size * keys) if isinstance(size, float) else size) for name, size in sizes.items()}

    @staticmethod
    def of_pipeline(pipeline: SparseAttention) -> BestKeys | None:
        """What a handler's pipeline decodes over, if that is all it does: a dense prompt, then `sink`, `local` and
        `oracle_top_k`, each at most once, at every layer and head, the last one in the end."""
        config = json.loads(pipeline.to_json())
        fields = {
            "sink": ("sinks", "sink_size"),
            "local": ("window", "window_size"),
            "oracle_top_k": ("heavy", "heavy_size"),
        }
        if config.get("prefill", {}).get("maskers", []) or "generation" not in config:
            return None
        chosen: dict[str, float] = {}
        for masker in config["generation"]["maskers"]:
            if masker["type"] not in fields or "heavy" in chosen:
                return None
            name, size = fields[masker["type"]]
            known = {"type": masker["type"], size: masker[size], **({"dilation": 1} if name == "window" else {})}
            if masker != known or name in chosen:
                return None
            chosen[name] = masker[size]
        return BestKeys(**chosen) if chosen else None


class Decoder:
    """A handler's way of attending on the GPU, over the layers of one sequence."""

    def __init__(self, best: BestKeys) -> None:
        self._best = best
        self._sizes: tuple[int, int, dict[str, int]] | None = None
        self._attention: Any = None
        self._prompt: Any = None
        self._prompt_of: Any = None

    def prompt(self, queries: Tensor, keys: Tensor, values: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Dense causal attention, planned once for all layers."""
        planned_for = (queries.shape, keys.shape, queries.dtype, queries.device, tuple(sorted(options.items())))
        if self._prompt_of != planned_for:
            everything = _core.Mask.full((*queries.shape[:3], keys.shape[2]))
            self._prompt = reticle.torch.AttentionPlan(queries, keys, values, everything, causal=True, **options)
            self._prompt_of = planned_for
        prompted: tuple[Tensor, Tensor] = self._prompt(queries, keys, values)
        return prompted

    def step(
        self, queries: Tensor, keys: Tensor, values: Tensor, options: dict[str, Any]
    ) -> tuple[tuple[Tensor, Tensor], int]:
        """Attention of one token over the best keys, and how many they are for each head."""
        rows, length = queries.shape[0] * queries.shape[1], keys.shape[2]
        sizes = self._best.of(length)
        made_for = self._sizes
        if made_for is None or made_for[0] != rows or made_for[1] < length or made_for[2] != sizes:
            most = max(length + length // 4, 0 if made_for is None else made_for[1])
            self._attention = reticle.torch.TopKAttention(rows, most, **sizes)
            self._sizes = (rows, most, sizes)
            self._prompt = self._prompt_of = None  # its plan has served
        kept = min(length, sizes["sinks"] + sizes["window"])
        answer: tuple[Tensor, Tensor] = self._attention(queries, keys, values, **options)
        return answer, min(length, kept + sizes["heavy"])


def _decoder(handler: InferenceHandler, state: InferenceState) -> Decoder | None:
    """The sequence's, which is made when it is first asked for; None where maskers choose on the host."""
    held: Any = state
    if not hasattr(state, "_decoder"):
        best = None if handler.keeps_masks else BestKeys.of_pipeline(handler.sparse)
        held._decoder = None if best is None else Decoder(best)
    decoder: Decoder | None = held._decoder
    return decoder


def attend(
    handler: InferenceHandler,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    state: InferenceState,
    *,
    soft_cap: float | None,
    sink_logits: Sequence[float],
    **call: Any,
) -> tuple[Tensor, Tensor]:
    """`InferenceHandler.attend`, of tensors on a GPU. The output has no gradient."""
    decoder = _decoder(handler, state)
    rows, length = queries.shape[2], keys.shape[2]
    prompt = call["stage"] == "prefill"
    plain = call["attention_mask"] is None and not len(sink_logits)
    if decoder is not None and plain and rows == (length if prompt else 1):
        options: dict[str, Any] = {"scaling": call["scaling"], "soft_cap": soft_cap}
        heads = queries.shape[0] * queries.shape[1]
        if prompt:
            visible = heads * length * (length + 1) // 2
            state.prefill.add(visible, visible)
            return decoder.prompt(queries, keys, values, options)
        result, entries = decoder.step(queries, keys, values, options)
        state.generation.add(heads * entries, heads * length)
        return result
    tensors, own = _on_host(queries, keys, values, state, call)
    chosen = handler.mask(*tensors, state, **own)
    rest: Any = {"attention_mask": own["attention_mask"], "soft_cap": soft_cap, "sink_logits": sink_logits}
    return reticle.torch.on_gpu(queries, keys, values, chosen, scaling=call["scaling"], **rest)
