"""Attaches pipelines to a model: its modules, its cache, the stage of each call, and records of attended keys."""

from __future__ import annotations

import copy
import errno
import inspect
import itertools
import json
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

import reticle
import reticle._core as _core
import reticle.maskers
import reticle.torch
from reticle._metrics import DENSITY, OUTPUT_ERROR
from reticle.hf._attention import Call, cache_in
from reticle.hf._cache import GrowingLayer, LayerRows, Row
from reticle.hf._compiled import number_layer
from reticle.hf._evicting import EvictingLayer
from reticle.hf._sparse_cache import SparseCache
from reticle.maskers import MaskerConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import TypeAlias

    from reticle import SequenceState, SparseAttention, StageRecord
    from reticle._metrics import MetricLog
    from reticle.hf._evicting import StoredRow
    from reticle.hf._visibility import Visibility

    Config: TypeAlias = SparseAttention | str | Path | Mapping[str, Any] | Sequence[MaskerConfig] | None
    Stage: TypeAlias = Literal["prefill", "generation"]

NAME = "reticle"

STAGES: tuple[Stage, Stage] = ("prefill", "generation")
_CACHE_NAMES = ("cache", "past_key_values")  # from transformers 5.23 on, and before

_tokens = itertools.count()


def pipeline_of(config: Config) -> SparseAttention:
    """A pipeline from a pipeline, a JSON file, a config as a dict, a list of masker configs, or None for dense
    attention."""
    if config is None:
        return _core.SparseAttention.from_json('{"maskers": []}')
    if isinstance(config, _core.SparseAttention):
        return config
    if isinstance(config, (str, Path)):
        if not Path(config).exists():
            hint = "no such file; expected the path of a JSON config (a clone has them in configs/), or masker configs"
            raise _core.MissingFileError(errno.ENOENT, hint, str(config))
        return _core.SparseAttention.from_file(str(config))
    if isinstance(config, Mapping):
        return _core.SparseAttention.from_json(reticle.maskers.to_json(dict(config)))
    maskers = [config] if isinstance(config, MaskerConfig) else config
    if not isinstance(maskers, (list, tuple)) or not all(isinstance(masker, MaskerConfig) for masker in maskers):
        raise TypeError(
            f"a pattern is {config!r}; expected a SparseAttention, a JSON file, a config as a dict, a list of masker configs, or "
            "None"
        )
    return reticle.maskers.pipeline(maskers)


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model that Reticle attaches to: the text decoder of a multimodal model or an encoder-decoder, else
    the whole model."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False) or config.get_text_config(decoder=True) is not config:
        decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[no-untyped-call]
        if decoder is None or not hasattr(decoder, "set_attn_implementation"):
            raise ValueError(f"{type(model).__name__}: its text decoder is not to be found; attach to that part itself")
        backbone: PreTrainedModel = decoder
        return backbone
    return model


def calls_interface(module: torch.nn.Module) -> bool:
    """True if a module's forward calls transformers' attention interface."""
    try:
        source = inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return False
    return "ALL_ATTENTION_FUNCTIONS" in source or "attention_interface" in source


class _Call(threading.local):
    """Per-thread state of a running call: its stage, its prompt, its cache, and counts of attended keys."""

    def __init__(self) -> None:
        self.attended = {stage: [0.0, 0.0] for stage in STAGES}
        self.stage: Stage | Callable[[int, int], Stage] | None = None
        self.prompt: int | None = None
        self.cache: Cache | None = None
        #: How many times the running module's forward has called its attention.
        self.number = 0


class Patterns:
    """A pipeline for prompts and one for the tokens generated after them, over the sequences of a model's caches."""

    def __init__(self, prefill: Config, generation: Config, *, keep_masks: bool = False) -> None:
        pipelines = pipeline_of(prefill), pipeline_of(generation)
        self._pipeline = _core.SparseAttention.by_stage(*pipelines)
        self._keeps_masks = keep_masks
        self._sparse = tuple(_has_maskers(pipeline, stage) for pipeline, stage in zip(pipelines, STAGES, strict=True))
        self._observed = self._pipeline.observed_queries
        self._whole = self._pipeline.maskers_of_whole_prompts("prefill")
        self._metrics: MetricLog | None = None
        self.state: SequenceState = _core.SequenceState(record="figures")
        self._masks: dict[Stage, list[tuple[int, reticle.Mask]]] = {stage: [] for stage in STAGES}
        self._call = _Call()
        self._sinks: dict[int, tuple[Tensor, int, list[float]]] = {}

    def __deepcopy__(self, _: Any) -> Patterns:
        raise TypeError(
            "a part of a model whose attention follows a pattern cannot be copied; copy the model, or detach it first"
        )

    # --- records of attended keys ------------------------------------------------------------------------------------

    @property
    def prefill(self) -> StageRecord:
        """What the prompts of the most recent sequences attended to."""
        return self.state.prefill

    @property
    def generation(self) -> StageRecord:
        """What the tokens generated after those prompts attended to."""
        return self.state.generation

    def masks(self, stage: Stage) -> list[tuple[int, reticle.Mask]]:
        """(layer, mask) of each call and sequence since the last prompt began, if `keep_masks` is on."""
        return self._masks[stage]

    def forget_records(self) -> None:
        self.state.reset()
        for stage in STAGES:
            self._masks[stage].clear()

    def begin(self, layer: int, old: int) -> None:
        """Starts a call of a layer whose cache holds `old` tokens. Outside generate, a prompt on an empty cache resets
        records."""
        if old == 0 and self._call.prompt is None and self._is_first(layer):
            self.forget_records()

    def _is_first(self, layer: int) -> bool:
        return True

    def finish(self, layer: int, keys: int, output: Tensor, dense: Callable[[], Tensor]) -> None:
        """Ends a call, after the attention of all its sequences: adds to the records and logs the metrics."""
        for stage in STAGES:
            entries, visible = self._call.attended[stage]
            if visible == 0:
                continue
            self._call.attended[stage] = [0.0, 0.0]
            getattr(self.state, stage).add(entries, visible)
            if self._metrics is None:
                continue
            where = {"layer": layer, "stage": stage, "keys": keys}
            if self._metrics.wants(DENSITY):
                self._metrics.log(DENSITY, entries / visible, **where)
            if self._metrics.wants(OUTPUT_ERROR):
                wanted = dense()
                error = (wanted.double() - output.double()).norm() / wanted.double().norm().clamp_min(1e-300)
                self._metrics.log(OUTPUT_ERROR, error.item(), **where)

    def add(self, stage: Stage, entries: float, visible: float) -> None:
        self._call.attended[stage][0] += entries
        self._call.attended[stage][1] += visible

    # --- stages ------------------------------------------------------------------------------------------------------

    @contextmanager
    def stage(self, stage: Stage | Callable[[int, int], Stage]) -> Iterator[None]:
        """A context in which every call belongs to this stage, or to the stage that stage(new tokens, all tokens)
        returns.

        By default, the prompt given to `generate` is prefilled and later tokens are generated. In direct calls of the
        model, several tokens are prefilled, and a single token after others is generated.
        """
        if not callable(stage) and stage not in STAGES:
            raise ValueError(f'stage is {stage!r}; expected "prefill", "generation" or a function')
        before, self._call.stage = self._call.stage, stage
        try:
            yield
        finally:
            self._call.stage = before

    def prompt_length(self, new: int, total: int) -> int:
        """The end of the prompt among a call's `total` tokens; the tokens from there on are generated."""
        if self._call.stage is not None:
            stage = self._call.stage(new, total) if callable(self._call.stage) else self._call.stage
            if stage not in STAGES:
                raise ValueError(f'stage is {stage!r}; expected "prefill" or "generation"')
            return total if stage == "prefill" else total - new
        if self._call.prompt is not None:
            return self._call.prompt
        return total if new > 1 or new == total else total - new

    # --- a call ------------------------------------------------------------------------------------------------------

    def chooses(self, new: int, total: int) -> bool:
        """True if a pattern chooses keys for at least one token of the call."""
        prompt = self.prompt_length(new, total)
        return (self._sparse[0] and prompt > total - new) or (self._sparse[1] and total > prompt)

    def is_dense(self) -> bool:
        return not any(self._sparse) and not self._keeps_masks

    def refuse_patterns(self, module: torch.nn.Module, seen: Visibility | None) -> None:
        """Refuses prefill patterns for attention that is not causal."""
        if self._sparse[0] and seen is not None and seen.bidirectional and seen.queries > 1:
            raise NotImplementedError(
                f"{type(module).__name__}: its attention is not causal; prefill patterns are for causal attention"
            )

    def sink_logits(self, layer: int, logits: Tensor) -> list[float]:
        """A layer's sink logits as numbers, cached because reading them from a GPU waits for it."""
        known, version = self._sinks.get(layer), -1 if logits.is_inference() else logits._version
        if known is None or known[0] is not logits or known[1] != version:
            known = self._sinks[layer] = (logits, version, logits.tolist())
        return known[2]

    def attend(
        self,
        layer: int,
        row: Row,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        stage: Stage,
        bias: Tensor | None,
        call: Call,
        stored: tuple[Any, ...] | None = None,
    ) -> Tensor:
        """Attention of one sequence in one stage, (1, heads, queries, value_dim)."""
        if stage == "prefill" and query.shape[2] < key.shape[2]:
            self._refuse_part(query.shape[2])
        if stage == "generation" and self._observed and not row.prompted:
            raise ValueError(
                "the generation pattern chooses what to keep of a prompt, and this attachment has seen none of this cache's "
                "sequence (another attachment or model filled it, or its tokens are others now); prefill the prompt while this "
                "one is attached"
            )
        row.prompted |= stage == "prefill"
        row.state.record = "masks" if self._keeps_masks else "figures"
        record = getattr(row.state, stage)
        entries, visible = record.entries, record.visible
        where: Any = {
            "scaling": call.scaling,
            "causal": True,
            "attention_mask": bias,
            "layer": layer,
            "stage": stage,
        }
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
            chosen = self._pipeline.mask(query.detach(), key.detach(), value.detach(), row.state, **where)
            output = call.differentiable(query, key, value, chosen, causal=True, bias=bias)
        else:
            sinks: Any = () if call.sink_logits is None else self.sink_logits(layer, call.sink_logits)
            output, _ = self._pipeline.attend(
                query, key, value, row.state, soft_cap=call.soft_cap, sink_logits=sinks, stored=stored, **where
            )
        self.add(stage, record.entries - entries, record.visible - visible)
        if self._keeps_masks:
            self._masks[stage].append(record.masks[-1])
        return output

    def choose_for_prompt(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> reticle.Mask:
        """The mask (1, heads, tokens, tokens) of one whole sequence; nothing is recorded."""
        if self.prompt_length(query.shape[2], key.shape[2]) != query.shape[2]:
            raise NotImplementedError("a compiled model that is trained with the generation pattern is not supported")
        return self._pipeline.mask(query, key, value, scaling=scaling, causal=True, layer=layer, stage="prefill")

    def _refuse_part(self, tokens: int) -> None:
        """Raises NotImplementedError if a pattern needs the whole prompt in one call."""
        if self._whole:
            raise NotImplementedError(
                f"a prompt in parts: {', '.join(self._whole)} of the prefill pattern choose by the whole prompt; pass it in one "
                "call"
            )
        if tokens < self._observed:
            wanted = "all its tokens" if self._observed > 1 << 40 else f"its last {self._observed} tokens"
            raise NotImplementedError(
                f"a prompt in parts, {tokens} tokens in this one: the generation pattern chooses what to keep by {wanted}; pass "
                "them in one call"
            )

    def cache_layer(self, module: Any) -> GrowingLayer | None:
        """The layer of the cache that a module is called with, if it is a GrowingLayer; else None."""
        return None

    def next_call(self) -> int:
        """The number of this attention call within its module's forward, from 1; some layers call attention twice."""
        return 1

    def require_eviction(self) -> None:
        """Raises ValueError if keys must not be evicted, naming the maskers or the metric that need them all."""
        if not self._sparse[1]:
            raise ValueError("evict=True: expected a generation pattern; dense attention comes back to every key")
        self._pipeline.require_forgetful()
        if self._metrics is not None and self._metrics.wants(OUTPUT_ERROR):
            raise ValueError(f"evict=True: the metric {OUTPUT_ERROR} needs every key; expected others")

    def lasting(self, layer: int, query: Tensor, stored: StoredRow, first: int) -> reticle.Mask:
        """(1, heads, 1, tokens): the keys of a sequence that queries from token `first` on may attend to."""
        return self._pipeline.lasting(
            query, *stored.matrices(), stored.row.state, causal=True, first=first, layer=layer, stored=stored.without(0)
        )

    def rows_of(self, module: Any) -> LayerRows:
        """The masker states of a module's layer, one row per sequence that the module is called with."""
        rows: LayerRows | None = getattr(module, "_reticle_rows", None)
        if rows is None:
            rows = module._reticle_rows = LayerRows()
        return rows


class Attachment(Patterns):
    """A model whose attention Reticle computes, until `detach()`."""

    def __init__(
        self,
        model: PreTrainedModel,
        prefill: Config,
        generation: Config,
        *,
        keep_masks: bool,
        metrics: MetricLog | None,
        evict: bool,
    ) -> None:
        name = type(model).__name__
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"model is a {name}; expected a model of transformers (PreTrainedModel)")
        if metrics is not None and not hasattr(metrics, "wants"):
            raise TypeError(f"metrics is {metrics!r}; expected a reticle.research.metrics.MetricLogger")
        for word, given in (("keep_masks", keep_masks), ("evict", evict)):
            if not isinstance(given, bool):
                raise TypeError(f"{word} is {given!r}; expected True or False")
        super().__init__(prefill, generation, keep_masks=keep_masks)
        self._metrics = metrics
        self._evict = evict
        if evict:
            self.require_eviction()
            if getattr(model.config.get_text_config(decoder=True), "num_kv_shared_layers", None):
                raise ValueError(f"{name}: evict=True is not supported where layers share their keys")
        self._token = next(_tokens)
        self._model, self._backbone = model, backbone_of(model)
        modules = list(self._backbone.modules())
        self._layers: list[Any] = [module for module in modules if calls_interface(module)]
        others = sorted({type(m).__name__ for m in modules if _has_softmax(m) and not calls_interface(m)})
        if not self._layers or others:
            what = f"{', '.join(others)} does not" if others else "none of its modules does"
            raise ValueError(
                f"{name}: expected attention that calls transformers' attention interface (ALL_ATTENTION_FUNCTIONS); {what}"
            )
        if any(getattr(layer, "_reticle", None) is not None for layer in self._layers):
            raise ValueError(f"{name}: is attached already; detach it first")
        if any(self._sparse) and any(getattr(layer, "layer_idx", 0) == -1 for layer in self._layers):
            raise ValueError(
                f"{name}: some layers share one attention module; patterns are not supported there, dense attention is"
            )
        numbers = [m.layer_idx for m in self._layers if isinstance(getattr(m, "layer_idx", None), int)]
        self._first = min(numbers, default=0)
        self._before = self._backbone.config._attn_implementation
        self._switch(NAME)
        if self._backbone.config._attn_implementation != NAME:
            raise ValueError(f"{name}: transformers did not switch its attention to {NAME!r}")
        self._own: dict[str, Any] = {}
        self._take_hold()

    def _take_hold(self) -> None:
        self._hooks = [module.register_forward_pre_hook(self._enter, with_kwargs=True) for module in self._layers]
        for layer in self._layers:
            layer._reticle = self
            number_layer(layer)
        self._wrap_generate()
        self._wrap("__deepcopy__", self._copy_of_model)

    def _let_go(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            layer._reticle = None
        for name, before in self._own.items():
            if before is None:
                delattr(self._model, name)
            else:
                setattr(self._model, name, before)
        self._hooks, self._own = [], {}

    def _wrap(self, name: str, wrapper: Any) -> None:
        self._own[name] = self._model.__dict__.get(name)
        setattr(self._model, name, wrapper)

    def _copy_of_model(self, memo: dict[int, Any]) -> PreTrainedModel:
        """copy.deepcopy of the model: the copy has its original attention, because masker states belong to this
        model."""
        self._let_go()
        self._switch(self._before)
        try:
            return copy.deepcopy(self._model, memo)
        finally:
            self._switch(NAME)
            self._take_hold()

    def _switch(self, implementation: str) -> None:
        try:
            self._backbone.set_attn_implementation(implementation)
        except ValueError as error:
            raise ValueError(
                f"{type(self._model).__name__}: transformers cannot switch its attention: {error}"
            ) from error

    def _is_first(self, layer: int) -> bool:
        return layer == self._first

    def _wrap_generate(self) -> None:
        """Wraps generate, so that the prompt's length is known and the cache is a SparseCache."""
        model: Any = self._model
        if not hasattr(model, "generate"):
            return
        generate, prepare = model.generate, model._prepare_cache_for_generation

        def generate_with_prompt(*args: Any, **kwargs: Any) -> Any:
            self.forget_records()
            before, self._call.prompt = self._call.prompt, _prompt_of(model, args, kwargs)
            try:
                return generate(*args, **kwargs)
            finally:
                self._call.prompt = before

        def prepare_cache(generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            given = {name: model_kwargs.get(name) for name in _CACHE_NAMES}
            result = prepare(generation_config, model_kwargs, *args, **kwargs)
            for name in _CACHE_NAMES:
                made = model_kwargs.get(name)
                if made is not given[name] and type(made) is DynamicCache and not made.offloading:
                    model_kwargs[name] = SparseCache(config=model.config, evict=self._evict)
            return result

        for name, wrapper in (("generate", generate_with_prompt), ("_prepare_cache_for_generation", prepare_cache)):
            self._wrap(name, wrapper)

    def _enter(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("output_attentions") or getattr(getattr(module, "config", None), "output_attentions", False):
            raise NotImplementedError(
                f"{type(module).__name__}: output_attentions is not supported; use eager attention"
            )
        self._call.cache, self._call.number = cache_in(args, kwargs), 0
        layer = self.cache_layer(module)
        if isinstance(layer, EvictingLayer):
            layer.read = True

    def cache_layer(self, module: Any) -> GrowingLayer | None:
        layers = [] if self._call.cache is None else self._call.cache.layers
        number = getattr(module, "layer_idx", None)
        layer = layers[number] if isinstance(number, int) and 0 <= number < len(layers) else None
        return layer if isinstance(layer, GrowingLayer) else None

    def rows_of(self, module: Any) -> LayerRows:
        if self._call.cache is None:
            return LayerRows()
        kept: tuple[int | None, dict[tuple[int, int], LayerRows]] = getattr(
            self._call.cache, "_reticle_rows", (None, {})
        )
        if kept[0] != self._token:
            kept = (self._token, {})
            self._call.cache._reticle_rows = kept  # type: ignore[attr-defined]
        return kept[1].setdefault((module.layer_idx, self._call.number), LayerRows())

    def next_call(self) -> int:
        self._call.number += 1
        return self._call.number

    def detach(self) -> None:
        """Restores the model's original attention. Records stay available."""
        if not self._layers:
            return
        self._let_go()
        self._layers = []
        self._switch(self._before)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def patterns_of(module: Any) -> Patterns | None:
    """The patterns of a module's attention: its attachment's, or those of its config's `reticle`, {"prefill": ...,
    "generation": ...}."""
    attached: Patterns | None = getattr(module, "_reticle", None)
    if attached is not None:
        return attached
    asked = getattr(getattr(module, "config", None), "reticle", None)
    if asked is None:
        return None
    known: tuple[Any, Patterns] | None = getattr(module, "_reticle_patterns", None)
    if known is None or known[0] != asked:
        if not isinstance(asked, Mapping) or not set(asked) <= set(STAGES):
            raise ValueError(f'config.reticle is {asked!r}; expected {{"prefill": ..., "generation": ...}}')
        known = module._reticle_patterns = (dict(asked), Patterns(asked.get("prefill"), asked.get("generation")))
    return known[1]


def _has_maskers(pipeline: SparseAttention, stage: Stage) -> bool:
    config = json.loads(pipeline.to_json())
    return bool(config[stage]["maskers"] if stage in config else config["maskers"])


def _has_softmax(module: torch.nn.Module) -> bool:
    """True if a module computes softmax attention; linear attention does not, and is left unchanged."""
    if not type(module).__name__.endswith("Attention"):
        return False
    try:
        return "softmax" in inspect.getsource(type(module))
    except (OSError, TypeError):
        return False


def _prompt_of(model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """The number of tokens that generate is given before the first token it makes."""
    if model.config.is_encoder_decoder:
        given = kwargs.get("decoder_input_ids")
        return 1 if given is None else int(given.shape[1])
    for given in (kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1], kwargs.get("inputs_embeds")):
        if isinstance(given, Tensor) and given.dim() > 1:
            return int(given.shape[1])
    return None
