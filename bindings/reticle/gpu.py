"""Pipelines of maskers over torch tensors on a GPU.

`SparseAttention.run`, `SparseAttention.mask` and `InferenceHandler.attend` come here when tensors lie on a GPU, and so do
models that `reticle.hf` attaches to. Attention runs on the GPU. Where a handler decodes after a dense prompt, so does the
choice of keys, if every masker of the layer says what it chooses as rules (`SparseAttention.rules`). Any other masker
chooses on the host, with a warning that names it: keys and values are copied to it once, when a sequence begins, and then
token by token, and the mask goes to the GPU with every call.
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import reticle._core as _core
import reticle.torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reticle import InferenceHandler, InferenceState, Mask, SequenceState, SparseAttention
    from reticle._core import Rule


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
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    state: Any,
    call: dict[str, Any],
    why: str | None = "maskers choose on the CPU",
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """What a masker is called with."""
    warnings.warn(
        f"{why}; keys are copied to it (an InferenceHandler with a dense prompt and reticle.torch.SparseDecoder choose on "
        "the GPU by rules)",
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


def entries_of(rules: Sequence[Rule], keys: int) -> int | None:
    """How many of `keys` keys a row gets from rules; None where that depends on the scores, or on what meets."""
    chosen = 0
    kinds: set[str] = set()
    for rule in rules:
        if rule.kind in ("sinks", "window"):
            if rule.kind in kinds or not kinds <= {"sinks", "window"} or rule.dilation > 1:
                return None
            added = rule.count
        elif rule.kind in ("top_k", "hashed"):
            added = rule.count
        elif rule.kind == "sample":
            candidates = keys - chosen
            added = min(candidates, max(1, int(rule.share * candidates + 0.5)))
        else:
            return None
        kinds.add(rule.kind)
        chosen = min(keys, chosen + added)
    return chosen


class Decoder:
    """A handler's way of attending on the GPU, over the layers of one sequence: a dense prompt, then decoding by rules."""

    def __init__(self, sparse: SparseAttention) -> None:
        self._sparse = sparse
        self._why_not: dict[int, str | None] = {}
        self._made_for = (0, 0)
        self._decoder: reticle.torch.SparseDecoder | None = None
        self._prompt: Any = None
        self._prompt_of: Any = None

    def why_not(self, layer: int, queries: Tensor, keys: int) -> str | None:
        """What keeps a layer's keys from being chosen on the GPU."""
        if layer not in self._why_not:
            try:
                rules = self._sparse.rules(keys, layer=layer)
                self._why_not[layer] = reticle.torch.why_not_padded(queries, rules)
            except _core.DeviceError as error:
                self._why_not[layer] = str(error)
        return self._why_not[layer]

    def prompt(
        self, queries: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Dense causal attention, planned for all layers that are alike: a sequence begins."""
        if self._decoder is not None:
            self._decoder.reset()
        biased = attention_mask is not None
        planned_for = (queries.shape, keys.shape, queries.dtype, queries.device, biased, tuple(sorted(options.items())))
        if self._prompt_of != planned_for:
            causal = reticle.torch.Band()
            self._prompt = reticle.torch.AttentionPlan(
                queries, keys, values, causal, attention_mask=attention_mask, **options
            )
            self._prompt_of = planned_for
        prompted: tuple[Tensor, Tensor] = self._prompt(queries, keys, values, attention_mask=attention_mask)
        return prompted

    def step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        layer: int,
        attention_mask: Tensor | None,
        options: dict[str, Any],
    ) -> tuple[tuple[Tensor, Tensor], int]:
        """Attention of one token over the keys chosen for it, and how many they are for all heads together: where that
        depends on the scores or an attention mask, this waits for the GPU."""
        rows, length = queries.shape[0] * queries.shape[1], keys.shape[2]
        if self._decoder is None or self._made_for[0] != rows or self._made_for[1] < length:
            self._made_for = (rows, length + length // 4)
            self._decoder = reticle.torch.SparseDecoder(self._sparse, *self._made_for)
            self._prompt = self._prompt_of = None  # its plan has served
        entries = None
        if attention_mask is None:
            entries = entries_of(self._sparse.rules(length, layer=layer), length)
        counts = torch.empty(queries.shape[:3], dtype=torch.int32, device=queries.device) if entries is None else None
        answer = self._decoder(
            queries, keys, values, layer=layer, counts=counts, attention_mask=attention_mask, **options
        )
        return answer, rows * entries if entries is not None else int(counts.sum()) if counts is not None else 0


def _decoder(handler: InferenceHandler, state: InferenceState) -> Decoder | None:
    """The sequence's, which is made when it is first asked for; None where the prompt is sparse, or masks are kept."""
    held: Any = state
    if not hasattr(state, "_decoder"):
        config = json.loads(handler.sparse.to_json())
        dense_prompt = "generation" in config and not config["prefill"]["maskers"]
        held._decoder = Decoder(handler.sparse) if dense_prompt and not handler.keeps_masks else None
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
    attention_mask = call["attention_mask"]
    why: str | None = "maskers choose on the CPU"
    if decoder is not None and not call["extras"] and rows == (length if prompt else 1):
        options: dict[str, Any] = {"scaling": call["scaling"], "soft_cap": soft_cap, "sink_logits": tuple(sink_logits)}
        heads = queries.shape[0] * queries.shape[1]
        why = decoder.why_not(call["layer"], queries, length)
        if why is None and prompt:
            visible = heads * length * (length + 1) // 2
            state.prefill.add(visible, visible)
            return decoder.prompt(queries, keys, values, attention_mask, options)
        if why is None:
            result, entries = decoder.step(queries, keys, values, call["layer"], attention_mask, options)
            state.generation.add(entries, heads * length)
            return result
    tensors, own = _on_host(queries, keys, values, state, call, why)
    chosen = handler.mask(*tensors, state, **own)
    rest: Any = {"attention_mask": own["attention_mask"], "soft_cap": soft_cap, "sink_logits": sink_logits}
    return reticle.torch.on_gpu(queries, keys, values, chosen, scaling=call["scaling"], **rest)
