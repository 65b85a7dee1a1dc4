"""sparse-attention-hub's maskers: objects with `add_mask`, which a registry makes from configs.

Reticle's maskers compute in C++. A masker of yours derives from `ResearchMasker` and is registered with its config:

    @MaskerRegistry.register(MyCustomMaskerConfig)
    class MyCustomMasker(ResearchMasker): ...

Its config can then be used beside the others, in `ResearchAttentionConfig` and in `reticle.hf.attach`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import weakref
from abc import ABC, abstractmethod
from contextvars import ContextVar
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

import reticle._core as _core
from reticle import _masker
from reticle.hub import configs
from reticle.hub.configs import MaskerConfig
from reticle.hub.helpers import load_hat_weights
from reticle.hub.mask import Mask
from reticle.maskers import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

    from reticle.hub.helpers import HatWeights

_Masker = TypeVar("_Masker", bound="type[ResearchMasker]")
_numbers = itertools.count()


@dataclass
class AttentionTensorDimensions:
    """Extents of the tensors of a call."""

    batch_size: int
    num_heads: int
    seq_len_queries: int
    seq_len_keys: int


class MaskerRegistry:
    """Maps types of configs to maskers."""

    _registry: dict[type[MaskerConfig], type[ResearchMasker]] = {}  # noqa: RUF012 - shared by the class on purpose

    @classmethod
    def register(cls, config_type: type[MaskerConfig]) -> Callable[[_Masker], _Masker]:
        """A decorator for the masker of `config_type`; registering again replaces it, so that a notebook cell can run
        twice."""

        def add(masker_class: _Masker) -> _Masker:
            if not (isinstance(masker_class, type) and issubclass(masker_class, ResearchMasker)):
                raise TypeError(f"{masker_class!r} is registered; expected a class that derives from ResearchMasker")
            cls._registry[config_type] = masker_class
            return masker_class

        if not (isinstance(config_type, type) and issubclass(config_type, MaskerConfig)):
            raise TypeError(f"{config_type!r} is registered for; expected a class that derives from MaskerConfig")
        return add

    @classmethod
    def get_masker_class(cls, config_type: type[MaskerConfig]) -> type[ResearchMasker]:
        """The masker class for exactly this type of config.

        Raises:
            ValueError: when none is registered.
        """
        if config_type not in cls._registry:
            raise ValueError(
                f"No masker class registered for config type: {config_type}; import the module that registers it"
            )
        return cls._registry[config_type]

    @classmethod
    def get_all_registered_types(cls) -> list[type[MaskerConfig]]:
        """The types of config that have a masker."""
        return list(cls._registry)

    @classmethod
    def get_all_masker_types(cls) -> dict[type[MaskerConfig], type[ResearchMasker]]:
        """A copy of the map from types of config to masker classes."""
        return dict(cls._registry)


class ResearchMasker(ABC):
    """Adds positions to a mask."""

    def __init__(self, config: MaskerConfig) -> None:
        self.config = config

    @abstractmethod
    def add_mask(
        self,
        keys: Tensor,
        queries: Tensor,
        values: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any] | None,
        previous_mask: Mask,
        **kwargs: Any,
    ) -> Mask:
        """Returns the union of `previous_mask` and the keys that this masker chooses.

        Args:
            keys, values: (batch, kv_heads, keys, head_dim); queries: (batch, heads, queries, head_dim). Read-only.
            attention_mask: added to the scores, broadcastable to (batch, heads, queries, keys); or None.
            scaling, dropout: parameters of the attention.
            sparse_meta_data: a dict that belongs to the sequence; maskers keep state across steps in it, by layer.
            previous_mask: (batch, heads, queries, keys), the keys that earlier maskers chose.
            kwargs: `layer_idx`, and other keyword arguments of the attention call.
        """

    @classmethod
    def create_from_config(cls, config: MaskerConfig) -> ResearchMasker:
        """Makes this masker from its config.

        Raises:
            ValueError: for the config of another masker.
        """
        if MaskerRegistry.get_all_masker_types().get(type(config)) is not cls:
            raise ValueError(f"Invalid config type: {type(config)}")
        return cls(config)

    @classmethod
    def create_masker_from_config(cls, config: MaskerConfig) -> ResearchMasker:
        """Makes the masker that is registered for the type of `config`.

        Raises:
            ValueError: when none is registered.
        """
        return MaskerRegistry.get_masker_class(type(config)).create_from_config(config)

    def to_dict(self) -> dict[str, Any]:
        """An entry of a JSON config that stands for this object in this process, while the object lives."""
        number = next(_numbers)
        _live[number] = self
        _register_bridges()
        return {"type": "hub_masker", "number": number}

    def _extract_tensor_dimensions(self, keys: Tensor, queries: Tensor) -> AttentionTensorDimensions:
        return AttentionTensorDimensions(queries.shape[0], queries.shape[1], queries.shape[2], keys.shape[2])

    def _calculate_effective_size(self, size: float, seq_len_keys: int) -> int:
        """Resolves a size, a count (int) or a fraction of the keys (float), to a count."""
        return int(size * seq_len_keys) if isinstance(size, float) else int(size)


class FixedMasker(ResearchMasker):
    """Base of deterministic maskers."""


class TopKMasker(FixedMasker):
    """Base of maskers that choose the best `heavy_size` keys of each query."""


class TopPMasker(FixedMasker):
    """Base of maskers that choose the best keys up to a share of the softmax mass."""


class SamplingMasker(ResearchMasker):
    """Base of maskers that draw keys; the mask holds the probabilities of the draws."""


# --- execution by Reticle's pipelines -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """Arguments of a call that Python maskers receive and pipelines do not carry."""

    dropout: float
    sparse_meta_data: dict[Any, Any]
    kwargs: dict[str, Any]
    previous: _core.Mask | None
    attention_mask: Tensor | None


_call: ContextVar[_Call | None] = ContextVar("reticle.hub call", default=None)
_live: weakref.WeakValueDictionary[int, ResearchMasker] = weakref.WeakValueDictionary()


@functools.cache
def _register_bridges() -> None:
    """Registers the two maskers that stand for Python objects in pipelines; called when the first is needed."""

    @_masker.register("hub_previous", source="reticle.hub", rule="The mask that a chain of maskers starts from")
    @dataclass(frozen=True)
    class Previous(_masker.Masker):
        """The mask that a chain of maskers starts from."""

        def select(self, inputs: _core.AttentionInputs, previous: _core.Mask, state: dict[str, Any]) -> _core.Mask:
            call = _call.get()
            if call is None or call.previous is None:
                raise RuntimeError("hub_previous stands in pipelines of reticle.hub only")
            return call.previous

    @_masker.register("hub_masker", source="reticle.hub", rule="What the ResearchMasker of this process adds")
    @dataclass(frozen=True)
    class Bridge(_masker.Masker):
        """A ResearchMasker of this process."""

        framework = "torch"
        number: int

        def __post_init__(self) -> None:
            if self.number not in _live:
                raise ValueError(
                    "number: stands for a Python masker of another process, or one that is gone; make the pipeline of its config"
                )
            object.__setattr__(self, "masker", _live[self.number])

        def select(self, inputs: _core.AttentionInputs, previous: _core.Mask, state: dict[str, Any]) -> _core.Mask:
            masker: ResearchMasker = self.masker  # type: ignore[attr-defined]
            call = _call.get() or _Call(0.0, state, {}, None, inputs.attention_mask)
            before = Mask.from_pattern(previous, dtype=inputs.queries.dtype, device=inputs.queries.device)
            after = masker.add_mask(
                keys=inputs.keys,
                queries=inputs.queries,
                values=inputs.values,
                attention_mask=call.attention_mask,
                scaling=inputs.scaling,
                dropout=call.dropout,
                sparse_meta_data=call.sparse_meta_data,
                previous_mask=before,
                **{"layer_idx": inputs.layer, **call.kwargs},
            )
            return _added(type(masker).__name__, previous, after)


def _added(name: str, previous: _core.Mask, after: Any) -> _core.Mask:
    """The part of `after` beyond `previous`, so that their sum is `after`."""
    if not isinstance(after, Mask):
        raise TypeError(f"{name}.add_mask returned {type(after).__name__}; expected a reticle.hub.Mask")
    if after.pattern.shape != previous.shape:
        raise ValueError(f"{name}.add_mask returned a mask {after.shape}; expected {previous.shape}")
    lost = (previous - after.pattern).nnz
    if lost:
        raise ValueError(
            f"{name}.add_mask dropped {lost} positions of previous_mask; maskers add to it: "
            "return previous_mask.merge_mask(yours, inplace=False)"
        )
    if not previous.weighted:
        return after.pattern - previous
    difference = after.pattern.to_dense() - previous.to_dense()
    if difference.min(initial=0) < -0.01:  # more than the rounding of a probability to bfloat16
        raise ValueError(f"{name}.add_mask lowered probabilities of previous_mask; maskers add to it")
    return _core.Mask.dense(np.clip(difference, 0, 1))


class Chain:
    """Maskers in sequence as one pipeline, which is rebuilt when one of them was replaced or changed."""

    def __init__(self, maskers: Sequence[ResearchMasker], *, continues: bool = False) -> None:
        """`continues`: the first masker starts from a given mask instead of an empty one."""
        self.maskers = maskers
        self._continues = continues
        self._made_of: list[Any] = []
        self._make()

    def _parts(self) -> list[Any]:
        return [getattr(masker, "_settings", masker) for masker in self.maskers]

    def _make(self) -> None:
        strangers = [masker for masker in self.maskers if not isinstance(masker, ResearchMasker)]
        if strangers:
            raise TypeError(f"maskers: {type(strangers[0]).__name__} is not a ResearchMasker")
        if sum(isinstance(masker, SamplingMasker) for masker in self.maskers) > 1:
            raise ValueError(
                "Only one sampling masker supported for efficiency; consider implementing all sampling logic in one masker"
            )
        self._made_of = self._parts()
        if self._continues:
            _register_bridges()
        entries = [{"type": "hub_previous"}] if self._continues else []
        entries += [masker.to_dict() for masker in self.maskers]
        self.pipeline = _core.SparseAttention.from_json(to_json({"maskers": entries}))
        self._state = f"reticle {next(_numbers)}"

    def select(
        self,
        keys: Tensor,
        queries: Tensor,
        values: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        sparse_meta_data: dict[Any, Any] | None = None,
        previous_mask: Mask | None = None,
        **kwargs: Any,
    ) -> Mask:
        """The same as `ResearchMasker.add_mask`. The states of Reticle's maskers live in `sparse_meta_data`; without it
        every call is the first of its sequence."""
        parts = self._parts()
        if len(parts) != len(self._made_of) or any(a is not b for a, b in zip(parts, self._made_of, strict=True)):
            self._make()
        held: dict[Any, Any] = {} if sparse_meta_data is None else sparse_meta_data
        state = held.setdefault(self._state, _core.SequenceState())
        others = dict(kwargs)
        layer = others.pop("layer_idx", 0)
        stage: Literal["prefill", "generation"] = "prefill" if queries.shape[2] == keys.shape[2] else "generation"
        previous = None if previous_mask is None else previous_mask.pattern
        seen = None if attention_mask is None else attention_mask[..., : keys.shape[2]].detach()
        token = _call.set(_Call(dropout, held, others, previous, seen))
        try:
            pattern = self.pipeline.mask(
                queries.detach(),
                keys.detach(),
                values.detach(),
                state,
                scaling=scaling,
                attention_mask=of_keys(attention_mask, keys, self.maskers),
                layer=layer,
                stage=stage,
            )
        finally:
            _call.reset(token)
        dtype = queries.dtype if previous_mask is None else previous_mask.dtype
        return Mask.from_pattern(pattern, dtype=dtype, device=queries.device)


_FORBIDS = -1e4
"""Programs write -1e4, -1e9 or a dtype's lowest number for a key that must not be attended to: exp() of it is 0."""


def of_keys(
    attention_mask: Tensor | None, keys: Tensor, maskers: Sequence[ResearchMasker] | None = None
) -> Tensor | None:
    """An attention mask as Reticle takes it: cut to the existing keys (static caches have more), forbidden keys at
    -inf.

    Raises:
        ValueError: for a bool mask, unless all `maskers` ignore it or read True as a forbidden key, as
            sparse-attention-hub's Quest and SOCKET do.
    """
    if attention_mask is None:
        return None
    if attention_mask.dtype.is_floating_point:
        bias = attention_mask[..., : keys.shape[2]].detach()
        forbidden = bias <= _FORBIDS
        return bias.masked_fill(forbidden, float("-inf")) if forbidden.any() else bias
    if maskers and all(
        isinstance(masker, (SinkMasker, LocalMasker, RandomSamplingMasker, MagicPig)) for masker in maskers
    ):
        return None
    reads_blocked = bool(maskers) and all(isinstance(each, (QuestTopKMasker, SocketMasker)) for each in maskers or ())
    if attention_mask.dtype == torch.bool and reads_blocked:
        blocked = attention_mask[..., : keys.shape[2]]
        return torch.zeros_like(blocked, dtype=torch.float32).masked_fill(blocked, float("-inf"))
    raise ValueError(
        f"attention_mask: is {attention_mask.dtype}; expected floats that are added to the scores, 0 for a key that may be "
        "attended to and -inf for one that may not (of bool masks, sparse-attention-hub reads True as either)"
    )


def _expect_mode(mode: str, *known: str) -> None:
    if mode not in known:
        raise ValueError(f"mode: is {mode!r}; expected one of {', '.join(known)}")


class BuiltIn(ResearchMasker):
    """A Reticle masker. The fields of its config are its attributes, which may be set."""

    _size: ClassVar[str] = ""
    """The field that `_resized` sets."""

    _demands: ClassVar[tuple[str, ...]] = ()
    """Words of `add_mask` that it cannot do without: another layer's weights would be silently wrong."""

    def __init__(self, config: MaskerConfig) -> None:
        super().__init__(config)
        object.__setattr__(self, "_settings", copy.copy(config))
        self._chain: Chain | None = None

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("_settings")
        if settings is not None and name in {field.name for field in dataclasses.fields(settings)}:
            return getattr(settings, name)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        settings: Any = self.__dict__.get("_settings")
        if settings is None or name not in {field.name for field in dataclasses.fields(settings)}:
            object.__setattr__(self, name, value)
            return
        changed = dataclasses.replace(settings, **{name: value})
        object.__setattr__(self, "_settings", changed)

    def _resized(self, size: int) -> Self:
        """A copy of this masker with another size."""
        settings: Any = self.__dict__["_settings"]
        return type(self)(dataclasses.replace(settings, **{self._size: size}))

    def to_dict(self) -> dict[str, Any]:
        """The entry of a JSON config."""
        settings: MaskerConfig = self.__dict__["_settings"]
        return settings.to_dict()

    def add_mask(
        self,
        keys: Tensor,
        queries: Tensor,
        values: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any] | None,
        previous_mask: Mask,
        **kwargs: Any,
    ) -> Mask:
        for word in self._demands:
            given = sparse_meta_data if word == "sparse_meta_data" else kwargs.get(word)
            if given is None:
                must = "cannot be None" if word == "sparse_meta_data" else "must be provided in kwargs"
                raise ValueError(f"{word} {must}: {type(self).__name__} keeps what it knows of a sequence by it")
        if previous_mask.is_full_mask():
            return previous_mask
        if self._chain is None:
            self._chain = Chain([self], continues=True)
        return self._chain.select(
            keys, queries, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask, **kwargs
        )


class _PositionMasker(BuiltIn, FixedMasker):
    """Base of maskers that choose by position alone."""

    def get_updated_mask(
        self,
        tensor_dims: AttentionTensorDimensions,
        effective_size: int,
        keys: Tensor,
        previous_mask: Mask,
        mode: Literal["sparse", "dense1", "dense2"] = "dense2",
    ) -> Mask:
        """The union of `previous_mask` and the first, or last, `effective_size` keys of each query. The modes of
        sparse-attention-hub give equal masks, and have no effect here."""
        _expect_mode(mode, "sparse", "dense1", "dense2")
        shape = (tensor_dims.batch_size, tensor_dims.num_heads, tensor_dims.seq_len_queries, keys.shape[-1])
        return self._resized(effective_size).add_mask(
            keys, keys.new_zeros(shape), keys, None, 1.0, 0.0, {}, previous_mask
        )


@MaskerRegistry.register(configs.SinkMaskerConfig)
class SinkMasker(_PositionMasker):
    """The masker of SinkMaskerConfig."""

    _size = "sink_size"


@MaskerRegistry.register(configs.LocalMaskerConfig)
class LocalMasker(_PositionMasker):
    """The masker of LocalMaskerConfig."""

    _size = "window_size"


@MaskerRegistry.register(configs.CausalMaskerConfig)
@MaskerRegistry.register(configs.FixedMaskerConfig)
class CausalMasker(BuiltIn, FixedMasker):
    """The masker of FixedMaskerConfig, as in sparse-attention-hub, and of CausalMaskerConfig."""


@MaskerRegistry.register(configs.OracleTopKConfig)
class OracleTopK(BuiltIn, TopKMasker):
    """The masker of OracleTopKConfig."""

    _size = "heavy_size"

    def get_updated_mask(
        self,
        tensor_dims: AttentionTensorDimensions,
        effective_heavy_size: int,
        keys: Tensor,
        queries: Tensor,
        attention_mask: Tensor | None,
        previous_mask: Mask,
        mode: Literal["old", "new"] = "new",
    ) -> Mask:
        """`previous_mask` and the `effective_heavy_size` highest-scoring keys outside it; both modes give the same
        mask."""
        _expect_mode(mode, "old", "new")
        resized = self._resized(effective_heavy_size)
        return resized.add_mask(keys, queries, keys, attention_mask, 1.0, 0.0, {}, previous_mask)


@MaskerRegistry.register(configs.OracleTopPMaskerConfig)
class OracleTopPMasker(BuiltIn, TopPMasker):
    """The masker of OracleTopPMaskerConfig."""


@MaskerRegistry.register(configs.QuestTopKMaskerConfig)
class QuestTopKMasker(BuiltIn, TopKMasker):
    """The masker of QuestTopKMaskerConfig."""


@MaskerRegistry.register(configs.DoubleSparsityTopKMaskerConfig)
class DoubleSparsityTopKMasker(BuiltIn, TopKMasker):
    """The masker of DoubleSparsityTopKMaskerConfig."""

    _demands = ("layer_idx",)


@MaskerRegistry.register(configs.HashAttentionTopKMaskerConfig)
class HashAttentionTopKMasker(BuiltIn, TopKMasker):
    """The masker of HashAttentionTopKMaskerConfig."""

    _demands = ("layer_idx", "sparse_meta_data")

    @functools.cached_property
    def _file_weights(self) -> HatWeights:
        return load_hat_weights(self.hat_weight_file)

    @property
    def hat_weights(self) -> Mapping[Any, Any]:
        """The weights of the config or of its file: {layer: {query_matrix, query_bias, key_matrix, key_bias}}."""
        given: Mapping[Any, Any] | None = self.__dict__["_settings"].hat_weights
        return self._file_weights if given is None else given


@MaskerRegistry.register(configs.PQCacheConfig)
class PQCache(BuiltIn, TopKMasker):
    """The masker of PQCacheConfig."""

    _demands = ("layer_idx", "sparse_meta_data")


@MaskerRegistry.register(configs.SocketMaskerConfig)
class SocketMasker(BuiltIn, TopKMasker):
    """The masker of SocketMaskerConfig."""

    @property
    def P(self) -> int:
        """The number of hyperplanes per table: sparse-attention-hub's name for the config's K."""
        return int(self.K)


@MaskerRegistry.register(configs.RandomSamplingMaskerConfig)
class RandomSamplingMasker(BuiltIn, SamplingMasker):
    """The masker of RandomSamplingMaskerConfig."""


@MaskerRegistry.register(configs.MagicPigConfig)
class MagicPig(BuiltIn, SamplingMasker):
    """The masker of MagicPigConfig."""


@MaskerRegistry.register(configs.AdaptiveSamplingMaskerConfig)
class AdaptiveSamplingMasker(BuiltIn, SamplingMasker):
    """The masker of AdaptiveSamplingMaskerConfig."""

    @property
    def delta_ppf(self) -> float:
        """The quantile of the normal distribution that a draw's error exceeds with probability `delta`."""
        return NormalDist().inv_cdf(1 - self.delta)

    def should_return_full_mask(self, sampling_range: int) -> bool:
        """True if so few keys are left to draw from that all of them are kept."""
        return sampling_range < 2
